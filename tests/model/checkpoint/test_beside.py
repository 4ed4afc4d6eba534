"""Checkpoints that are begun, and finished later: what is in them, and what becomes of errors meanwhile."""

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch

from model.checkpoint import room, write
from model.checkpoint.format import completed, damage, folder_of, manifest
from model.checkpoint.read import load_newest
from model.checkpoint.write import begin, save
from model.engine.engine import Engine
from model.layout import Layout
from support.errors import CrashedError
from tests.distributed import run_ranks
from tests.model import training

SAVED, LATER = 2, 4
WAYS = {
    Layout(): (
        *("zero0_fp32", "zero1_bf16", "zero2_bf16", "zero3_fp32", "zero3_fp16"),
        *("zero2_offload_bf16", "zero3_offload_bf16"),
    ),
    Layout(pp=2): ("pipeline_bf16", "pipeline_fp16"),
}


def train(subject: Engine, first: int, last: int) -> None:
    for samples in training.batches(last)[first:]:
        training.step(subject, samples)


def held(release: threading.Event) -> Callable[..., None]:
    """Writing that waits until somebody lets it."""
    save_file = write.save_file

    def put(*arguments: object) -> None:
        assert release.wait(60)
        save_file(*arguments)

    return put


def beside_and_whole(layout: Layout, names: tuple[str, ...], root: Path) -> list[tuple[bool, bool]]:
    """Save whole and begin at the same moment, and finish after more steps; whether it was written before."""
    found = []
    for name in names:
        subject, release = training.trainer(name, layout), threading.Event()
        train(subject, 0, SAVED)
        state = {"step": SAVED, "list": [1]}
        save(subject, root / name / "whole", SAVED, state, keep=1)
        with mock.patch.object(write, "save_file", held(release)):
            pending = begin(subject, root / name / "beside", SAVED, state)
            train(subject, SAVED, LATER)
            before = pending.written
            release.set()
            pending.finish(keep=1)
        found.append((before, pending.written))
    return found


@pytest.mark.parametrize("layout", WAYS, ids=["data", "pipeline"])
def test_what_is_written_later_is_of_the_beginning(layout: Layout, tmp_path: Path) -> None:
    names = WAYS[layout]
    assert run_ranks(2, beside_and_whole, layout, names, tmp_path) == [[(False, True)] * len(names)] * 2
    for name in names:
        whole, beside = (folder_of(tmp_path / name / kind, SAVED) for kind in ("whole", "beside"))
        assert manifest(whole) == manifest(beside) and damage(beside) == "", name
        assert {file.name: file.read_bytes() for file in whole.iterdir()} == {
            file.name: file.read_bytes() for file in beside.iterdir()
        }, name


def fails_beside(root: Path, error: Exception) -> str:
    subject = training.trainer("zero1_fp32")
    train(subject, 0, 1)
    save(subject, root, 1, {}, keep=2)
    fails = {"side_effect": error} if torch.distributed.get_rank() == 1 else {"wraps": write.save_file}
    with mock.patch.object(write, "save_file", **fails):
        pending = begin(subject, root, 2, {})
        train(subject, 1, 2)
        with pytest.raises(CrashedError) as caught:
            pending.finish(keep=2)
    assert pending.written
    return str(caught.value)


def test_an_error_beside_training_reaches_all_ranks_at_the_finish(tmp_path: Path) -> None:
    first, second = run_ranks(2, fails_beside, tmp_path, OSError(errno.ENOSPC, "No space left on device"))
    assert first == second
    assert "rank 1: [Errno 28] No space left" in first and "last good checkpoint is" in first
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"] and damage(tmp_path / "step-00000001") == ""


def a_bug_beside(root: Path) -> None:
    subject = training.trainer("zero1_fp32")
    with mock.patch.object(write, "save_file", side_effect=KeyError("a bug")):
        pending = begin(subject, root, 1, {})
        with pytest.raises(KeyError, match="a bug"):
            pending.finish(keep=1)


def test_a_bug_beside_training_is_not_lost(tmp_path: Path) -> None:
    run_ranks(1, a_bug_beside, tmp_path)
    assert completed(tmp_path) == []


def begun_and_left(root: Path) -> None:
    subject = training.trainer("zero1_fp32")
    save(subject, root, 1, {"where": 1}, keep=2)
    begin(subject, root, 2, {"where": 2}).files.result()


def gone_on(root: Path) -> None:
    subject = training.trainer("zero1_fp32")
    assert load_newest(subject, root, print) == {"where": 1}
    save(subject, root, 3, {"where": 3}, keep=2)


def test_ranks_that_end_before_the_finish_leave_the_earlier_one(tmp_path: Path) -> None:
    run_ranks(2, begun_and_left, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002.partial"]
    run_ranks(2, gone_on, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def scarce(root: Path) -> tuple[bool, list[str]]:
    subject = training.trainer("zero1_fp32")
    said: list[str] = []
    with mock.patch.object(room, "free", lambda: 10_000):
        written = begin(subject, root, 1, {}, waits=said.append).written
    return written, said


def test_where_memory_has_no_room_training_waits(tmp_path: Path) -> None:
    first, second = run_ranks(2, scarce, tmp_path)
    assert first == second and first[0]
    assert first[1][0].endswith("has 0.0 GB of memory free, and a copy takes 0.0 GB")


def test_a_control_group_may_leave_less_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "GROUPS", tmp_path)
    monkeypatch.setattr(room, "MINE", tmp_path / "mine")
    (tmp_path / "mine").write_text("0::/job/step\n")
    everything = room.free()
    for group, most in (("job", "5000"), ("job/step", "max")):
        (tmp_path / group).mkdir()
        (tmp_path / group / "memory.max").write_text(most)
        (tmp_path / group / "memory.current").write_text("4000")
        (tmp_path / group / "memory.stat").write_text("anon 1000\nactive_file 200\ninactive_file 1000\n")
    assert room.free() == 5000 - 4000 + 1200 < everything
