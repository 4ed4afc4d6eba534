import itertools
import json
import os
import socket
from pathlib import Path

import pytest

from run.feed import Feed
from run.left import Left
from run.state import State, state_of
from support import files
from support.files import locked
from support.json_object import JsonObject
from tests.run.happened import BEGAN, event, started, step, write, write_run


def value(path: Path, after: float) -> JsonObject:
    """Where a run is so many seconds after its start."""
    return state_of(path).value(BEGAN + after)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_before_there_is_a_directory(tmp_path: Path) -> None:
    found = State(tmp_path / "nowhere", BEGAN).value(BEGAN + 3)
    assert found["status"] == "starting" and found["recipe"] is None
    assert found["phases"] == [{"phase": "checks", "seconds": 3.0}]


def test_a_start_tells_its_phases(path: Path) -> None:
    write(path, started()[:3])
    found = value(path, 5.5)
    assert found["phases"] == [{"phase": "data", "seconds": 1.0}, {"phase": "imports", "seconds": 4.5}]
    assert (found["status"], found["step"], found["seconds_left"]) == ("starting", None, None)


def test_a_run_in_its_course(path: Path) -> None:
    write(path, started())
    write(path, [step(n, 10.0 + 2 * n) for n in range(1, 30)])
    write(path, [step(30, 70.0, validation_loss=7.5, evaluate_seconds=1.0, samples_by_part=[480])])
    found = value(path, 71.0)
    assert (found["status"], found["step"], found["last_step"], found["tokens"]) == ("training", 30, 100, 30_720)
    assert found["phases"][-1] == {"phase": "load", "seconds": 1.0}
    assert (found["validation_loss"], found["best_validation_step"]) == (7.5, 30)
    assert found["parts"] == [{"corpus": "corpus-0", "samples": 480, "epochs": pytest.approx(480 * 64 / 64_000)}]
    assert found["next_save_step"] == 50 and found["seconds_to_save"] == pytest.approx(40)
    assert found["memory_bytes"] == [10**9, 2 * 10**9]


def test_the_time_left_is_steps_evaluations_and_saves(path: Path) -> None:
    """70 steps of 2 s; four evaluations of 16 samples in 1 s, one at the end of 100; two saves, of which the last is
    waited for."""
    write(path, [*started(), event("saved", 12.0, step=1, path="x", seconds=30.0, waited=3.0)])
    write(path, [step(n, 10.0 + 2 * n, evaluate_seconds=1.0) for n in range(1, 31)])
    found = value(path, 71.0)
    assert found["seconds_left"] == pytest.approx(70 * 2 + (4 * 16 + 100) / 16 + 3 + 30, rel=0.02)


def test_the_time_left_counts_tasks_once_they_were_done(path: Path) -> None:
    """After 40 steps of 2 s, with tasks of 50 s after every fifth: what is left has them twelve times more."""
    start, recipe = (json.loads((path / f"{name}.json").read_text()) for name in ("start", "recipe"))
    found = {}
    for names in ([], ["mine"]):
        tasks = {"names": names, "every_steps": 5}
        (path / "start.json").write_text(json.dumps({**start, "recipe": {**recipe, "tasks": tasks}}))
        state, now = State(path, BEGAN), 10.0
        for each in started():
            state.take(each)
        for number in range(1, 41):
            now += 2.0
            scored = bool(names) and number % 5 == 0
            state.take(step(number, now, **({"task_seconds": 50.0} if scored else {})))
            now += 50.0 * scored
        found[len(names)] = state.value(BEGAN + now)["seconds_left"]
    assert found[1] - found[0] == pytest.approx(12 * 50, rel=0.05)


def test_the_time_left_does_not_jump(path: Path) -> None:
    """A step now and then takes ten times as long, and an evaluation comes: the end moves by a few steps at most."""
    write(path, started())
    state = State(path, BEGAN)
    for happened in Feed(path).new():
        state.take(happened)
    ends, now = [], 10.0
    for number in range(1, 81):
        took = 20.0 if number % 13 == 0 else 2.0 + number % 3 / 10
        now += took
        state.take(step(number, now, seconds=took, **({"evaluate_seconds": 4.0} if number % 20 == 0 else {})))
        now += 4.0 * (number % 20 == 0)
        left = state.value(BEGAN + now)["seconds_left"]
        ends.append(now + left)
    assert max(abs(b - a) for a, b in itertools.pairwise(ends[9:])) < 5


def test_saves_by_the_clock_are_told_in_seconds(path: Path) -> None:
    state = State(path, BEGAN)
    state._open()
    assert state.run is not None
    object.__setattr__(state.run.recipe.intervals, "save_every", 0)
    object.__setattr__(state.run.recipe.intervals, "save_minutes", 1.0)
    left = Left(state.run, state.parts, 1000, 0, BEGAN)
    for number in range(1, 11):
        left.step(step(number, 2.0 * number))
    assert left.next_save_step is None
    assert left.seconds_to_save(BEGAN + 20) == pytest.approx(40)
    left.saved(event("saved", 25.0, path="x", seconds=4.0, waited=0.5))  # was begun at 21
    assert left.seconds_to_save(BEGAN + 30) == pytest.approx(51)


def test_memory_that_did_not_change_is_not_written_again(path: Path) -> None:
    write(path, [*started(), step(1, 12.0), {k: v for k, v in step(2, 14.0).items() if k != "memory_bytes"}])
    assert value(path, 14.0)["memory_bytes"] == [10**9, 2 * 10**9]


def test_a_resumed_run_forgets_what_it_takes_again(path: Path) -> None:
    write(path, [*started(), *(step(n, 10.0 + n, validation_loss=n / 10) for n in range(1, 5))])
    state, feed = State(path, BEGAN), Feed(path)
    for happened in feed.new():
        state.take(happened)
    kept = (path / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]
    files.write(path / "metrics.jsonl", "".join(kept))
    write(path, [event("start", 50.0), event("training", 60.0, step=2, last_step=100)])
    for happened in feed.new():
        state.take(happened)
    assert [loss.step for loss in state.losses] == [loss.step for loss in state.validation] == [1, 2]
    assert state.value(BEGAN + 61)["step"] is None


@pytest.mark.parametrize(("status", "words"), [(0, "finished"), (75, "stopped"), (3, "weights lost"), (1, "crashed")])
def test_an_end_is_told_by_its_event_or_its_file(status: int, words: str, path: Path) -> None:
    write(path, [*started(), step(1, 12.0)])
    (path / "status.json").write_text(f'{{"status": {status}, "reason": "why"}}')
    os.utime(path / "status.json", (BEGAN - 5, BEGAN - 5))
    assert value(path, 15.0)["status"] == "training"  # that was the end of an earlier start
    os.utime(path / "status.json", (BEGAN + 14, BEGAN + 14))
    found = value(path, 15.0)
    assert (found["status"], found["reason"], found["seconds"], found["silent_seconds"]) == (words, "why", 14.0, None)
    (path / "status.json").unlink()
    write(path, [event("end", 14.0, status=status, reason="why")])
    assert value(path, 99.0)["status"] == words


def test_a_run_that_is_launched_again_starts_again(path: Path) -> None:
    write(path, [*started(), step(9, 12.0), event("fault", 13.0, rank=1, code=-9, reason="rank 1 was killed")])
    assert value(path, 14.0)["last_event"] == "fault: rank 1 was killed"
    write(path, [event("restart", 15.0, failures=1, waited=1.0, checkpoint=None)])
    assert value(path, 16.0)["status"] == "starting" and value(path, 16.0)["last_event"] == "fault: rank 1 was killed"
    write(path, [event("training", 20.0, step=8, last_step=100)])
    again = value(path, 21.0)
    assert (again["status"], again["seconds"]) == ("training", pytest.approx(6.0))


def test_a_run_that_holds_no_lock_has_crashed(path: Path) -> None:
    """The ranks hold it too: they may go on without the command. Of another machine nothing is known."""
    write(path, [event("start", 0.0, host="elsewhere"), event("training", 1.0, step=0, last_step=9), step(1, 3.0)])
    assert value(path, 90.0)["status"] == "training"
    write(path, [event("start", 3.5, host=socket.gethostname()), event("training", 3.6, step=1, last_step=9)])
    with locked(path / ".lock"):
        assert value(path, 90.0)["status"] == "training"
        write(path, [event("stop", 4.0, signal="SIGTERM")])
        assert value(path, 5.0)["status"] == "stopping"
    assert value(path, 5.0)["status"] == "crashed"
