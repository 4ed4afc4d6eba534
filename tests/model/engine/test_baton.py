"""Builds of kernels take turns, and one that was killed holds nobody up."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.file_baton import FileBaton

from model.engine.baton import Baton
from tests.interpreter import context
from tests.patience import wait_until


def hold(lock: str, kind: type[FileBaton], up: str) -> None:
    """Build until somebody ends this process."""
    assert kind(lock).try_acquire()
    Path(up).touch()
    time.sleep(600)


def count(lock: str, counter: str) -> None:
    """Build twenty times: read a number, and write down the next one."""
    for _ in range(20):
        baton = Baton(lock)
        assert baton.try_acquire()
        number = int(Path(counter).read_text())
        time.sleep(0.001)
        Path(counter).write_text(str(number + 1))
        baton.release()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "lock"


@pytest.fixture(params=[Baton, FileBaton], ids=["of this project", "of another program"])
def builder(request: pytest.FixtureRequest, lock: Path) -> Iterator[Any]:
    """A process that builds."""
    up = lock.with_name("up")
    process = context.Process(target=hold, args=(str(lock), request.param, str(up)))
    process.start()
    wait_until(up.exists, process.pid)
    yield process
    process.kill()
    process.join()


def test_who_waits_for_a_build_that_is_killed_builds(builder: Any, lock: Path) -> None:
    baton, began = Baton(str(lock)), threading.Event()
    thread = threading.Thread(target=lambda: (began.set(), baton.try_acquire()), daemon=True)
    thread.start()
    began.wait()
    thread.join(0.7)
    assert thread.is_alive() and lock.exists()  # it waits as long as that builds
    builder.kill()
    wait_until(lambda: not thread.is_alive(), os.getpid())
    assert lock.exists()  # other programs see that it builds now
    baton.release()
    assert not lock.exists()


def test_what_a_killed_build_left_is_taken_away(lock: Path) -> None:
    lock.touch()
    baton = Baton(str(lock))
    assert baton.try_acquire()
    assert FileBaton(str(lock)).try_acquire() is False
    baton.release()
    assert not lock.exists()


def test_builds_take_turns(lock: Path) -> None:
    """A number that two read at once would be counted once."""
    counter = lock.with_name("counter")
    counter.write_text("0")
    processes = [context.Process(target=count, args=(str(lock), str(counter))) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert counter.read_text() == "60"


def test_storage_without_locks_is_left_to_torch(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be that of another machine, whose build nobody here can see."""

    def flock(descriptor: int, operation: int) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr("model.engine.baton.fcntl.flock", flock)
    lock.touch()
    assert Baton(str(lock)).try_acquire() is False and lock.exists()
