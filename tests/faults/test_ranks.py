"""Ranks that are fewer, late, or asked for a save from outside: the run goes on with the numbers of an unbroken one."""

import json
import signal
from pathlib import Path
from time import sleep

import pytest

from run.directory import end_of
from run.record import read_object
from support.errors import DONE, STOPPED
from tests.commands.running import metrics, write_corpus
from tests.faults.runs import Hurt


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("ranks")
    write_corpus(home / "corpus.jsonl")
    return home


def numbers(path: Path) -> list[float]:
    return [value for line in metrics(path) for value in (line["loss"], line["grad_norm"])]


def close_to(path: Path) -> object:
    return pytest.approx(numbers(path), rel=1e-5)


EVEN = ("model.dropout=0",)  # dropout is another one on other ranks


@pytest.mark.faults
def test_a_lost_board_leaves_the_most_ranks_that_divide(home: Path) -> None:
    """Of four GPUs three are left: a batch of eight does not divide by three, so two go on, and each step has the
    samples that it would have had. `--resume` brings it back to four."""
    settings = (*EVEN, "schedule.train_tokens=7680")
    whole = Hurt(home, "four", "--processes", "4", settings=settings)
    assert whole.finish()[0] == DONE
    run = Hurt(home, "fewer", "--processes", "4", "--max-steps", "25", settings=settings,
               module=("tests.faults.fewer", "recipes.gpt_tiny")).at_step(8)  # fmt: skip
    run.send(signal.SIGKILL, run.rank(3))
    status, said = run.finish()
    assert status == DONE, said
    line = "3 of 4 GPUs are left here: the run goes on with 2 ranks, micro-batch 2 x accumulation 2"
    assert line in [event["line"] for event in run.events("said")]
    assert [event["ranks"] for event in run.events("restart")] == [2]
    assert [read_object(run.path / "start.json")["world_size"]] == [2]
    again = Hurt(home, "fewer", "--processes", "4", resume=True)
    assert again.finish()[0] == DONE
    starts = [json.loads(each)["world_size"] for each in (run.path / "starts.jsonl").read_text().splitlines()]
    assert starts == [4, 2, 4]
    assert [line["consumed_samples"] for line in metrics(run.path)] == [8 * step for step in range(1, 31)]
    assert numbers(run.path) == close_to(whole.path)


@pytest.mark.faults
@pytest.mark.parametrize("who", ["rank", "command", "all"])
def test_sigusr2_saves_and_trains_on(home: Path, who: str) -> None:
    """Sent to a rank, to the command, or to all processes of the run, its launcher too."""
    run = Hurt(home, f"asked-{who}", settings=("intervals.save_every=1000",)).at_step(5)
    pids = {"rank": [run.rank(1)], "command": [run.command.pid], "all": sorted(run.pids)}[who]
    asked_at = run.step
    run.send(signal.SIGUSR2, *pids)
    run.command.wait_until(lambda: run.events("saved"))
    status, said = run.finish()
    assert status == DONE, said
    first, *_, last = [event["step"] for event in run.events("saved")]
    assert asked_at <= first < last == run.step
    assert not run.events("fault") and not run.events("stop")


@pytest.mark.faults
def test_a_rank_that_is_six_seconds_late_is_waited_for(home: Path) -> None:
    run = Hurt(home, "late").at_step(5)
    run.send(signal.SIGSTOP, run.rank(1))
    sleep(6.0)
    run.send(signal.SIGCONT, run.rank(1))
    status, said = run.finish()
    assert status == DONE, said
    assert not run.events("fault") and not run.events("restart")


ASKED = {
    "start": ((), lambda run: run.events("phase")[-1:] and run.events("phase")[-1]["phase"] == "engine"),
    "evaluation": (("intervals.evaluate_every=1",), lambda run: run.step >= 4),
    "save": (("intervals.save_every=1",), lambda run: run.step >= 4 and list(run.path.glob("checkpoints/*.partial*"))),
}


@pytest.mark.faults
@pytest.mark.parametrize("when", ASKED)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["SIGTERM", "SIGUSR1"])
def test_a_request_to_stop_is_kept_at_any_moment(home: Path, when: str, number: signal.Signals) -> None:
    """SIGTERM to the command, SIGUSR1 to one rank: while the engine is built, at an evaluation, in a save."""
    settings, holds = ASKED[when]
    name = f"{when}-{number.name}"
    run = Hurt(home, name, settings=(*settings, "schedule.train_tokens=7680"))
    run.command.wait_until(lambda: holds(run))
    run.send(number, run.rank(1) if number == signal.SIGUSR1 else run.command.pid)
    status, said = run.finish()
    assert (status, end_of(run.path)) == (STOPPED, STOPPED), said
    assert "Traceback" not in said and not run.events("fault")
    assert not list(run.path.glob("checkpoints/*.partial*"))
    if run.step:
        assert [run.step] == [event["step"] for event in run.events("saved")][-1:]
    again = Hurt(home, name, resume=True)
    assert again.finish()[0] == DONE
    assert [line["step"] for line in metrics(run.path)] == list(range(1, 31))
