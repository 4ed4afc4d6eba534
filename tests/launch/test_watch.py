"""When a run counts as hung, and which rank is named; the run's files and its ranks are played."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from launch import watch
from launch.attempt import Fault, launch
from launch.care import Care
from launch.group import Group
from launch.watch import HangWatch
from recipes.settings import override
from run import rank_logs
from run.directory import read_run
from tests.patience import wait_until
from tests.run.happened import event, step, write, write_run
from tests.training.test_recorder import play
from training import recorder

RANK = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from training import presence
presence.enter(Path({path!r}), int(sys.argv[1]))
{wait}
open({path!r} + "/up" + sys.argv[1], "w")
wait()
"""
WAIT = "def wait(): time.sleep(600)"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> "Clock":
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)
    return clock


class Clock:
    """Time that goes by when a test says so, or when a second look is asked for."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        import time

        time.sleep(seconds)
        self.now += seconds


@pytest.fixture
def group(path: Path) -> Iterator[Group]:
    found = launch([sys.executable, "-c", "import time; time.sleep(600)"], dict(os.environ), path, 2)
    yield found
    found.close()


def after(hang: HangWatch, clock: Clock, seconds: float) -> Fault | None:
    clock.now += seconds
    return hang.hangs()


def test_a_step_may_take_a_while_and_no_more(path: Path, clock: Clock, group: Group) -> None:
    hang = HangWatch(read_run(path), None, group, local=False)
    write(path, [event("training", 0.0, step=0, last_step=100)])
    assert after(hang, clock, 2.0) is None
    write(path, [step(1, 1.0)])
    assert after(hang, clock, 2.0) is None and after(hang, clock, 99.0) is None
    write(path, [step(2, 2.0)])
    assert after(hang, clock, 2.0) is None
    fault = after(hang, clock, 101.0)
    assert fault and fault.rank is None and fault.reason.startswith("the run hangs at step 3, for 101 s: no rank")


def test_slow_steps_get_three_times_the_median(path: Path, clock: Clock, group: Group) -> None:
    hang = HangWatch(read_run(path), None, group, local=False)
    write(path, [event("training", 0.0, step=0, last_step=100), *(step(n, n, seconds=60.0) for n in (1, 2, 3))])
    assert after(hang, clock, 2.0) is None and after(hang, clock, 179.0) is None
    assert after(hang, clock, 2.0)


def test_an_evaluation_that_is_due_gets_its_time(path: Path, clock: Clock, group: Group) -> None:
    hang = HangWatch(read_run(path), 10.0, group, local=False)
    write(path, [event("training", 0.0, step=0, last_step=100), step(20, 1.0, evaluate_seconds=50.0), step(39, 2.0)])
    assert after(hang, clock, 2.0) is None and after(hang, clock, 109.0) is None
    assert after(hang, clock, 2.0)  # 10 + 2 x 50


def test_tasks_that_are_due_get_an_hour_or_twice_their_time(path: Path, clock: Clock, group: Group) -> None:
    run = read_run(path)
    run = replace(run, recipe=override(run.recipe, ["tasks.names=mine", "tasks.every_steps=7"]))
    hang = HangWatch(run, 10.0, group, local=False)
    write(path, [event("training", 0.0, step=0, last_step=100), step(6, 1.0)])
    assert after(hang, clock, 2.0) is None and after(hang, clock, 3609.0) is None
    write(path, [step(7, 2.0, task_seconds=2000.0)])
    assert after(hang, clock, 2.0) is None and after(hang, clock, 9.0) is None
    write(path, [step(13, 3.0)])
    assert after(hang, clock, 2.0) is None and after(hang, clock, 4009.0) is None
    assert after(hang, clock, 2.0)  # 10 + 2 x 2000


def test_a_save_that_is_waited_for_gets_its_time(path: Path, clock: Clock, group: Group) -> None:
    hang = HangWatch(read_run(path), 10.0, group, local=False)
    write(path, [event("training", 0.0, step=0, last_step=100), step(1, 1.0), event("saved", 1.5, step=1, seconds=5.0)])
    write(path, [event("saving", 2.0, step=1)])
    assert after(hang, clock, 2.0) is None and after(hang, clock, 19.0) is None
    assert after(hang, clock, 2.0)  # 10 + 2 x 5


def test_a_save_beside_training_hides_no_hang(path: Path, clock: Clock, group: Group) -> None:
    hang = HangWatch(read_run(path), 10.0, group, local=False)
    write(path, [event("training", 0.0, step=0, last_step=100), event("saving", 0.1, step=1)])
    write(path, [event("saved", 0.5, step=1, seconds=5.0), step(2, 1.0), step(3, 2.0)])
    (path / "checkpoints" / "step-00000003.partial").mkdir(parents=True)
    assert after(hang, clock, 2.0) is None and after(hang, clock, 9.0) is None
    assert after(hang, clock, 2.0)


def test_a_start_has_an_hour_while_it_works(path: Path, clock: Clock, group: Group) -> None:
    hang = HangWatch(read_run(path), None, group, local=False)
    assert after(hang, clock, 3599.0) is None
    fault = after(hang, clock, 3.0)
    assert fault and "hangs at start" in fault.reason


def test_who_is_to_be_told_of_faults_is_told_of_slow_ranks(path: Path, clock: Clock, group: Group) -> None:
    told = path / "told"
    hang = HangWatch(read_run(path), None, group, local=False, care=Care(notify=f"tee {told}"))
    slow = {"rank": 3, "host": "worker-2", "what": "computing", "times": 1.8, "since": 5.0}
    write(path, [event("slow", 20.0, **slow)])
    assert after(hang, clock, 2.0) is None
    wait_until(lambda: told.exists() and told.read_text().endswith("\n"))
    said = json.loads(told.read_text())
    assert {name: said[name] for name in slow} == slow and said["event"] == "slow"


def test_a_rank_that_does_something_else_is_named(path: Path, group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    (path / "torch" / "distributed").mkdir(parents=True)
    waits = path / "torch" / "distributed" / "waits.py"
    waits.write_text("import time\n" + WAIT)
    ranks = []
    for number, wait in enumerate((f"import runpy; wait = runpy.run_path({str(waits)!r})['wait']", WAIT)):
        code = RANK.format(root=str(Path(__file__).parents[2]), path=str(path), wait=wait)
        ranks.append(subprocess.Popen([sys.executable, "-c", code, str(number)]))
    try:
        for number, rank in enumerate(ranks):
            wait_until((path / f"up{number}").exists, rank.pid)
        recorder.folder_of(path).mkdir()
        play(0, f"{recorder.folder_of(path)}/ask-", f"{recorder.folder_of(path)}/rank_")
        group.look()
        hang = HangWatch(read_run(path), 0.01, group, local=False)
        write(path, [event("training", 0.0, step=7, last_step=100)])
        monkeypatch.setattr(watch, "LOOK_SECONDS", 0.0)
        monkeypatch.setattr(watch, "STEP_SECONDS", 0.01)
        found: list[Fault] = []
        wait_until(lambda: found.extend(filter(None, [hang.hangs()])) or found, *(rank.pid for rank in ranks))
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert found[0].rank == 1 and "rank 1 of 2 is busy elsewhere: File " in found[0].reason
    traces = path / "logs" / "collectives.step-8"
    assert "; NCCL's last work of rank 0: torchfrtrace" in found[0].reason and found[0].reason.endswith(f" {traces}")
    assert [file.name for file in traces.iterdir()] == ["rank_0"]
    kept = rank_logs.stacks_of(path, 0).with_suffix(".step-8.stacks")
    assert "torch/distributed/waits.py" in kept.read_text()
