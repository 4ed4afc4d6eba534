"""A rank that nobody looks after any more ends."""

import signal
import subprocess
import sys
from pathlib import Path

from recipes.registry import ROOT
from run import members, rank_logs
from tests.patience import ended, wait_until

RANK = """
import sys, time
from pathlib import Path
from run import members
from training import presence, stop
members.BEAT_SECONDS = 0.05
presence.ALONE_SECONDS = 0.5
stop.listen()
presence.enter(Path(sys.argv[1]), 3)
print("begun", flush=True)
time.sleep(600)
"""


def begin(path: Path, parent: str) -> "subprocess.Popen[bytes]":
    """A process that starts a rank, with its number in `rank`."""
    code = f"import subprocess, sys\nrank = subprocess.Popen([sys.executable, '-c', {RANK!r}, sys.argv[1]])\n{parent}"
    return subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, start_new_session=True)


def rank_of(path: Path, launcher: int) -> int:
    log = rank_logs.log_of(path, 3)
    wait_until(lambda: log.exists() and "begun" in log.read_text(), launcher)
    found = members.read(path, "3")
    assert found
    return found.pid


def test_a_rank_whose_launcher_is_killed_is_asked_and_then_ended(tmp_path: Path) -> None:
    launcher = begin(tmp_path, "rank.wait()")
    rank = rank_of(tmp_path, launcher.pid)
    launcher.kill()
    launcher.wait()
    wait_until(lambda: ended(rank), rank)


def test_a_rank_that_is_not_wanted_ends(tmp_path: Path) -> None:
    launcher = begin(tmp_path, "sys.exit(rank.wait() % 256)")
    rank_of(tmp_path, launcher.pid)
    members.forget(tmp_path)
    assert launcher.wait(60) == 256 - signal.SIGKILL


def test_a_rank_whose_launcher_has_ended_does_not_begin(tmp_path: Path) -> None:
    code = f"import os, sys\nif os.fork(): os._exit(0)\nos.setsid()\n{RANK}"
    launcher = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, start_new_session=True)
    launcher.wait()
    log = rank_logs.log_of(tmp_path, 3)
    wait_until(lambda: log.exists() and "this rank does not begin" in log.read_text())
    assert "begun" not in log.read_text()


def test_only_a_file_that_is_gone_says_so(tmp_path: Path) -> None:
    file = members.join(tmp_path, "0")
    assert members.beat(file)
    file.unlink()
    assert not members.beat(file)
    assert members.beat(tmp_path / "elsewhere" / "ranks" / "0.json")  # the storage is not there at all
