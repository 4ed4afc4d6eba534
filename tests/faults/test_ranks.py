"""Ranks that are fewer, late, or asked for a save from outside: the run goes on with the numbers of an unbroken one."""

import json
import signal
from pathlib import Path
from time import sleep

import pytest

from run.record import read_object
from support.errors import DONE
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
