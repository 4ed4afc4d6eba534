"""NCCL's flight recorder: where ranks write, and how they are asked. The ranks are played: no NCCL is needed."""

import os
import pickle
import threading
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch.distributed.flight_recorder.components.loader import read_dir

from training import recorder, train
from training.recorder import FILE, FILE_BEFORE, ON_TIMEOUT, PIPE

NAMES = (FILE, FILE_BEFORE, PIPE, ON_TIMEOUT)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is as before in the end
        monkeypatch.delenv(name)
    monkeypatch.setattr(recorder, "WRITE_SECONDS", 100.0)  # a busy machine is slow


def play(rank: int, stem: str, prefix: str) -> threading.Thread:
    """A rank that looks into its pipe and writes, in two parts, as torch does when it is asked."""
    pipe = Path(f"{stem}{rank}.pipe")
    os.mkfifo(pipe)
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)

    def look() -> None:
        found = b""
        while not found:
            time.sleep(0.01)
            with suppress(BlockingIOError):  # somebody has opened it and not yet written
                found = os.read(descriptor, 128)
        dump = pickle.dumps({"version": "2.10", "pg_config": {}, "entries": [], "rank": rank})
        with open(f"{prefix}{rank}", "wb") as stream:
            stream.write(dump[:10])
            stream.flush()
            time.sleep(0.3)
            stream.write(dump[10:])
        os.close(descriptor)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    return thread


def test_ranks_write_into_the_logs_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # ranks have another working directory than the user
    recorder.record(Path("run"))
    folder = tmp_path / "run" / "logs" / "collectives"
    assert {name: os.environ.get(name) for name in NAMES} == {
        FILE: f"{folder}/rank_", FILE_BEFORE: None, PIPE: f"{folder}/ask-", ON_TIMEOUT: "1"
    }  # fmt: skip
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("gpus", [False, True])
def test_only_ranks_on_gpus_record(gpus: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(train, "start_process_group", lambda: None)
    monkeypatch.setattr(train, "opened", lambda path: ())
    monkeypatch.setattr(train, "_train", lambda: None)
    train.train_launched(tmp_path)
    assert [name in os.environ for name in (FILE, PIPE, ON_TIMEOUT)] == [gpus] * 3
    assert recorder.folder_of(tmp_path).exists() is gpus


def test_what_the_user_has_set_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = {FILE_BEFORE: "/mine/dump_", PIPE: "/mine/pipe_", ON_TIMEOUT: "0"}
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    recorder.record(tmp_path)
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == mine


def test_storage_without_pipes_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would end the rank."""

    def mkfifo(path: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "mkfifo", mkfifo)
    recorder.record(tmp_path)
    assert PIPE not in os.environ and FILE in os.environ


def test_ranks_that_are_asked_write_and_torchs_tool_reads_it(tmp_path: Path) -> None:
    """Rank 2 does not look any more, and rank 3 is stopped. What rank 0 wrote before is not taken for the answer."""
    recorder.record(tmp_path)
    folder = recorder.folder_of(tmp_path)
    (folder / "rank_0").write_bytes(b"old.")
    ranks = [play(rank, os.environ[PIPE], os.environ[FILE]) for rank in (0, 1)]
    os.mkfifo(folder / "ask-2.pipe")
    asked = recorder.ask(tmp_path, (0, 1, 2, 3))
    assert asked == [0, 1]
    said = recorder.collected(tmp_path, asked, "collectives.step-8")
    kept = tmp_path / "logs" / "collectives.step-8"
    assert said == f"NCCL's last work of 2 ranks: torchfrtrace --allow-incomplete-ranks --prefix rank_ {kept}"
    details, _ = read_dir(Namespace(trace_dir=str(kept), prefix="rank_"))
    assert {each["rank"] for each in details.values()} == {0, 1}
    assert sorted(file.name for file in kept.iterdir()) == ["rank_0", "rank_1"] and not folder.exists()
    for rank in ranks:
        rank.join()


def test_a_place_of_the_users_own_is_asked_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PIPE, f"{tmp_path}/pipe_")
    monkeypatch.setenv(FILE_BEFORE, f"{tmp_path}/dump_")
    rank = play(1, f"{tmp_path}/pipe_", f"{tmp_path}/dump_")
    said = recorder.collected(tmp_path, recorder.ask(tmp_path, (0, 1)), "kept")
    assert said.startswith("NCCL's last work of rank 1: ") and said.endswith(f"--prefix dump_ {tmp_path}")
    rank.join()


def test_a_rank_that_does_not_answer_is_waited_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "WRITE_SECONDS", 0.3)
    assert recorder.collected(tmp_path, [0], "kept") == ""


def test_without_nccl_nothing_is_there_and_nobody_is_asked(tmp_path: Path) -> None:
    assert recorder.ask(tmp_path, range(8)) == [] and recorder.collected(tmp_path, [], "kept") == ""
    recorder.clear(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pipes_do_not_outlive_a_run(tmp_path: Path) -> None:
    recorder.record(tmp_path)
    os.mkfifo(recorder.folder_of(tmp_path) / "ask-0.pipe")
    recorder.clear(tmp_path)
    assert not recorder.folder_of(tmp_path).exists()
