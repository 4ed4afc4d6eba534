"""Kills in the middle of a save and of a step, and disks that are full or cannot be written: nothing is half there."""

import itertools
import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.checkpoint.format import completed, damage, folder_of, step_of
from model.checkpoint.write import save
from support.errors import CRASHED, DONE, CrashedError
from tests.commands.running import metrics, write_corpus
from tests.distributed import run_ranks
from tests.faults.loops import Fault, run_steps, steps, tensors
from tests.faults.runs import Hurt
from tests.faults.test_checkpoints import TIE, alone, countdown, loaded
from tests.model import training

pytestmark = pytest.mark.faults


class Dies(BaseException):
    """No error: who makes it is killed."""

    def __init__(self, *words: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def killed_in_a_save(root: Path, rank: int, number: int) -> list[str]:
    """A save in which a rank is killed at the `number`-th thing that it does with the disk."""
    engine, acts = training.trainer("zero1_fp32"), list[str]()
    training.step(engine, training.batches(1)[0])
    if not completed(root):
        save(engine, root, 1, {"step": 1}, keep=2, tie=TIE)
    assert loaded(engine, root)[0] in (1, 2)
    with pytest.MonkeyPatch.context() as patch:
        if torch.distributed.get_rank() == rank:
            countdown(patch, acts, number, Dies)
        save(engine, root, 2, {"step": 2}, keep=2, tie=TIE)
    return acts


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_at_any_point_of_a_save_leaves_whole_checkpoints(rank: int, tmp_path: Path) -> None:
    kills = 0
    for number in itertools.count(1):
        try:
            acts = run_ranks(2, killed_in_a_save, tmp_path, rank, number)[rank]
        except AssertionError:
            kills += 1
            found = completed(tmp_path)
            assert folder_of(tmp_path, 1) in found and all(not damage(path) for path in found)
        else:
            break
    assert kills == len(acts) > rank and [step_of(path) for path in completed(tmp_path)] == [1, 2]
    assert not list(tmp_path.glob("*.partial"))


def test_a_rank_that_is_killed_between_two_micro_batches_costs_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run_steps(whole, 9) == ["", ""]
    with pytest.raises(AssertionError, match=r"exit code -9|raised"):
        run_steps(broken, 9, fault=Fault(dies=8))
    assert [line["step"] for line in steps(broken)] == list(range(1, 8))
    assert run_steps(broken, 9) == ["", ""]
    assert steps(broken) == steps(whole)
    assert tensors(broken / "checkpoints" / "step-00000009") == tensors(whole / "checkpoints" / "step-00000009")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB, where this machine lets us mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("this machine lets us mount nothing")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def on_a_bad_disk(disk: Path) -> list[str]:
    """Saves on a disk that is full, then writable, then read-only, then writable."""
    engine = training.trainer("zero1_fp32")
    training.step(engine, training.batches(1)[0])
    said, ballast = [], disk / "ballast"

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", disk], check=True)

    def fill() -> None:
        with pytest.raises(OSError), open(ballast, "wb", buffering=0) as stream:
            while True:
                stream.write(bytes(1 << 12))

    root = disk / "checkpoints"
    save(engine, root, 1, {"step": 1}, keep=3, tie=TIE)
    for step, spoil, mend in ((2, fill, ballast.unlink), (3, lambda: remount("ro"), lambda: remount("rw"))):
        alone(spoil)
        with pytest.raises(CrashedError) as caught:
            save(engine, root, step, {"step": step}, keep=3, tie=TIE)
        said.append(str(caught.value))
        assert loaded(engine, root)[0] == step - 1
        alone(mend)
        save(engine, root, step, {"step": step}, keep=3, tie=TIE)
    return [*said, *(path.name for path in completed(root) if not damage(path))]


def test_a_disk_that_is_full_or_read_only_keeps_the_last_good_checkpoint(disk: Path) -> None:
    for full, read_only, *whole in run_ranks(2, on_a_bad_disk, disk):
        assert "No space left on device" in full and "the last good checkpoint is" in full and "step-00000001" in full
        assert "Read-only file system" in read_only and "step-00000002" in read_only
        assert whole == [f"step-0000000{step}" for step in (1, 2, 3)]


def test_metrics_without_room_cost_a_restart_and_no_number(tmp_path: Path) -> None:
    """Rank 0 may not make its metrics longer, as on a full disk; whoever is started next may."""
    write_corpus(tmp_path / "corpus.jsonl")
    whole = Hurt(tmp_path, "whole")
    assert whole.finish()[0] == DONE
    run = Hurt(tmp_path, "full", settings=("intervals.save_every=5",)).at_step(8)
    _, hard = resource.prlimit(run.rank(0), resource.RLIMIT_FSIZE)
    resource.prlimit(run.rank(0), resource.RLIMIT_FSIZE, ((run.path / "metrics.jsonl").stat().st_size, hard))
    status, said = run.finish()
    assert status == DONE, said
    (fault,) = run.events("fault")
    assert any(line.startswith("error: no room left") and "File too large" in line for line in fault["log"]), fault
    assert (fault["rank"], fault["code"], len(run.events("restart"))) == (0, CRASHED, 1)
    assert metrics(run.path) == metrics(whole.path)
