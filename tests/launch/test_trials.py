"""A search: its points, what becomes of them, and what the same command does again. Training is imitated here;
tests/commands/test_try.py trains."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from launch import trials as launched
from launch.trials import Search, check_end, search
from recipes.axes import axes, grid
from recipes.recipe import Recipe
from recipes.registry import load
from run import events, trials
from run.request import Request, plan_run
from run.trials_show import show
from support.errors import DONE, STOPPED, WEIGHTS_LOST, CrashedError, StoppedError, UserError
from support.files import locked
from tests.run.test_compare import data, line

TINY = load("tiny")
Outcome = Callable[[Path], None]


def finish(path: Path, status: int, steps: int, loss: float = 5.0) -> None:
    """What the ranks of a run leave behind that took some steps."""
    lines = [line(step, loss, validation_loss=loss) for step in range(1, steps + 1)]
    if status == DONE:
        lines.append({"step": steps, "consumed_samples": 10 * steps, "final_validation_loss": loss})
    (path / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (path / "status.json").write_text(json.dumps({"status": status, "reason": "why" if status else ""}))
    if status:
        raise SystemExit(status)


def crash(path: Path) -> None:
    (path / "metrics.jsonl").write_text(json.dumps(line(1, 5.0)) + "\n")
    raise CrashedError("the ranks ended")


def refuse(path: Path) -> None:
    raise UserError("there is no such corpus")


class Starts:
    """In place of `launch.start.start`: plans as it does, and ends as the next outcome says."""

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.outcomes = list(outcomes)
        self.done: list[tuple[str, bool]] = []

    def __call__(self, recipe: Recipe, request: Request, processes: int | None, hostfile: str | None) -> None:
        run = plan_run(recipe, request, 2)
        self.done.append((run.path.name, run.resume))
        outcome = self.outcomes.pop(0)
        if outcome is not refuse:
            assert run.resume or run.name == f"{run.path.name.split('-')[0]}-{int(run.path.name[-3:])}"
            run.path.mkdir(parents=True, exist_ok=True)
            (run.path / "recipe.json").write_text(json.dumps(dataclasses.asdict(run.recipe)))
            (run.path / "ds_config.json").write_text(json.dumps(run.engine_json))
            (run.path / "data.json").write_text(json.dumps(data()))
            (run.path / "status.json").unlink(missing_ok=True)
        outcome(run.path)


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Starts]:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))

    def put(*outcomes: Outcome) -> Starts:
        found = Starts(outcomes)
        monkeypatch.setattr(launched, "start", found)
        return found

    return put


def ends(status: int, steps: int = 3, loss: float = 5.0) -> Outcome:
    return lambda path: finish(path, status, steps, loss)


def rates(*values: str, max_steps: int = 3, name: str = "rate") -> Search:
    points = grid(axes(TINY, [f"optimizer.lr={','.join(values)}"]), [])
    return Search(TINY, trials.folder(TINY.name, name), points, max_steps)


def states(of: Search) -> dict[int, str]:
    return {trial.number: trial.state for trial in trials.read(of.folder)}


def test_a_failing_point_is_noted_and_tried_again_where_that_helps(
    starts: Callable[..., Starts], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = rates("1", "2", "3", "4")
    first = starts(ends(DONE, loss=6.0), ends(WEIGHTS_LOST, 2), crash, refuse)
    search(wanted)
    assert first.done == [(f"rate-00{number}", False) for number in (1, 2, 3, 4)]
    assert states(wanted) == {1: "finished", 2: "weights lost", 3: "crashed", 4: "refused"}
    values = trials.table(wanted.folder)
    reasons = {point["number"]: point["reason"] for point in values["points"]}
    assert reasons == {1: None, 2: "why", 3: "the ranks ended", 4: "there is no such corpus"}
    assert "error: there is no such corpus" in capsys.readouterr().err
    with pytest.raises(CrashedError, match="1 of 4 points crashed; the same command tries them again"):
        check_end(values)
    again = starts(ends(DONE, loss=4.0), ends(DONE, loss=5.0))
    search(wanted)
    assert again.done == [("rate-003", True), ("rate-004", False)]
    assert "1 of 4, rate-001: optimizer.lr=1 (finished before)" in capsys.readouterr().out
    values = trials.table(wanted.folder)
    check_end(values)
    assert [point["number"] for point in values["points"]] == [3, 4, 1, 2]  # the lost one comes last, whatever it had
    assert [point["reason"] for point in values["points"]] == [None, None, None, "why"]
    show(values)
    assert "rate: 4 points" in capsys.readouterr().out
    trials.plot(wanted.folder)
    assert (wanted.folder / "try.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("stop", [ends(STOPPED, 1), ends(STOPPED, 0)])
def test_a_stopped_search_goes_on(starts: Callable[..., Starts], stop: Outcome) -> None:
    wanted = rates("1", "2")
    starts(ends(DONE), stop)
    with pytest.raises(StoppedError, match="stopped at 2 of 2; give the same command again to go on") as caught:
        search(wanted)
    assert caught.value.status == STOPPED
    again = starts(ends(DONE))
    search(wanted)
    assert again.done == [("rate-002", True)] and set(states(wanted).values()) == {"finished"}


def test_a_search_stopped_before_the_ranks_could_save_does_not_go_on_by_itself(starts: Callable[..., Starts]) -> None:
    def stop(path: Path) -> None:
        raise StoppedError("before")

    first = starts(stop)
    with pytest.raises(StoppedError, match="stopped at 1 of 2"):
        search(rates("1", "2"))
    assert first.outcomes == [] and states(rates("1", "2")) == {1: "waiting", 2: "waiting"}


def test_a_stop_after_a_run_s_last_step_stops_the_search(starts: Callable[..., Starts]) -> None:
    """The run has come to its end, and the next one does not begin."""

    def too_late(path: Path) -> None:
        ends(DONE)(path)
        events.note(path, "stop", signal="SIGINT")

    first = starts(too_late)
    with pytest.raises(StoppedError, match="stopped at 1 of 2"):
        search(rates("1", "2"))
    assert first.done == [("rate-001", False)]
    again = starts(ends(DONE))
    search(rates("1", "2"))
    assert again.done == [("rate-002", False)]


def test_more_values_and_more_steps_go_on_with_what_is_there(starts: Callable[..., Starts]) -> None:
    starts(ends(DONE), ends(DONE))
    search(rates("1", "2"))
    more = starts(ends(DONE))
    search(rates("0.5", "2"))  # the first is new, and comes after those that have their numbers
    assert more.done == [("rate-003", False)]
    longer = starts(*[ends(DONE, 5)] * 3)
    search(rates("0.5", "1", "2", max_steps=5))
    assert longer.done == [(f"rate-00{number}", True) for number in (1, 2, 3)]
    starts()
    search(rates("0.5", "1", "2", max_steps=4))


def test_the_order_of_settings_makes_no_new_points(starts: Callable[..., Starts]) -> None:
    settings = ["optimizer.lr=1,2", "seed=3"]
    folder = trials.folder(TINY.name, "order")
    starts(ends(DONE), ends(DONE))
    search(Search(TINY, folder, grid(axes(TINY, settings), []), 3))
    starts()
    search(Search(TINY, folder, grid(axes(TINY, settings[::-1]), []), 3))
    assert len(trials.read(folder)) == 2


def test_a_point_that_cannot_be_is_refused_before_the_first_run(starts: Callable[..., Starts], tmp_path: Path) -> None:
    for settings, words in (
        (["model.hidden_size=192,200"], "model.hidden_size=200: .*model.hidden_size"),
        (["optimizer.rate=1,2"], "optimizer.rate=1: .*did you mean"),
        (["optimizer.lr=1,x"], "optimizer.lr=x: .*'x' is not a number"),
        (["lora.rank=4,8"], "lora.rank=4: it tunes a model, and try takes none; pretrain with --from, --set and"),
    ):
        none = starts()
        wanted = Search(TINY, trials.folder(TINY.name, "wrong"), grid(axes(TINY, settings), []))
        with pytest.raises(UserError, match=words):
            search(wanted)
        assert none.done == [] and not (tmp_path / "runs").exists()


def test_a_recipe_that_tunes_is_named_where_nothing_is_tried(starts: Callable[..., Starts]) -> None:
    starts()
    tunes = load("tune_sentiment")
    with pytest.raises(UserError, match=r"^tune_sentiment: it tunes a model, and try takes none"):
        search(Search(tunes, trials.folder(tunes.name, "wrong"), grid([], [])))


def test_the_json_is_a_setting_of_its_own(starts: Callable[..., Starts]) -> None:
    points = grid([], ["ds_configs/zero1_fp32.json", "ds_configs/zero3_fp32.json"])
    wanted = Search(TINY, trials.folder(TINY.name, "engine"), points)
    starts(ends(DONE, 1600), ends(DONE, 1600))
    search(wanted)
    (first, second) = trials.read(wanted.folder)
    assert trials.labels([first, second]) == ["JSON=zero1_fp32.json", "JSON=zero3_fp32.json"]
    assert json.loads((second.path / "ds_config.json").read_text())["zero_optimization"]["stage"] == 3
    trials.plot(wanted.folder)


def test_a_loss_that_is_not_finite_is_none(starts: Callable[..., Starts]) -> None:
    """Such a point has no place among the others, and no dot."""

    def burst(path: Path) -> None:
        finish(path, DONE, 3, math.nan)

    points = grid(axes(TINY, ["data.tokeniser=bpe:300,bpe:400"]), [])
    wanted = Search(TINY, trials.folder(TINY.name, "burst"), points, 3)
    starts(burst, ends(STOPPED, 2))
    with pytest.raises(StoppedError):
        search(wanted)
    values = trials.table(wanted.folder)
    assert [(point["number"], point["validation_loss"]) for point in values["points"]] == [(2, 5.0), (1, None)]
    trials.plot(wanted.folder)


def test_nothing_that_came_to_a_loss_is_an_error(starts: Callable[..., Starts]) -> None:
    starts(refuse)
    search(rates("1"))
    with pytest.raises(UserError, match="no point came to a validation loss: there is no such corpus"):
        check_end(trials.table(rates("1").folder))
    trials.plot(rates("1").folder)


def test_one_process_searches_under_a_name(starts: Callable[..., Starts]) -> None:
    wanted = rates("1")
    none = starts()
    with locked(wanted.folder / ".lock"), pytest.raises(UserError, match="another process tries rate"):
        search(wanted)
    assert none.done == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"points": [{"number": 1}]}', '{"points": 1}'])
def test_a_record_that_was_changed_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "try.json").write_text(content)
    with pytest.raises(UserError, match=r"try.json was changed; restore it, or give the search another --name"):
        trials.read(tmp_path)


def test_names_that_are_none_or_taken_are_refused(starts: Callable[..., Starts], tmp_path: Path) -> None:
    for name in ("", "a/b", "../a", ".a", "a" * 65):
        with pytest.raises(UserError, match="--name"):
            trials.folder("gpt_tiny", name)
    with pytest.raises(UserError, match=r"there is no search in .*gpt_tiny/rate"):
        trials.table(trials.folder("gpt_tiny", "rate"))
    starts(ends(DONE))
    search(rates("1"))
    with pytest.raises(UserError, match=r"rate-001 is a run; give the search another --name"):
        trials.folder("gpt_tiny", "rate-001")
