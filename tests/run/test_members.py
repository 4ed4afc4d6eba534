"""Who belongs to a run, and who lives: on this machine for certain, on another one by the age of its file."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import pytest

from run import members
from run.members import Member
from support.errors import UserError
from support.files import is_locked, locked
from tests.patience import wait_until


def write(path: Path, name: str, pid: int, host: str, began: int, stop_seconds: float = 0.0) -> Path:
    file = members.file_of(path, name)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(asdict(Member(name, pid, host, began, stop_seconds))))
    return file


def test_a_process_says_who_it_is(tmp_path: Path) -> None:
    file = members.join(tmp_path, "3", 40.0)
    me = members.read(tmp_path, "3")
    assert me == Member("3", os.getpid(), socket.gethostname(), members.began_at(os.getpid()) or -1, 40.0) and me.here
    os.utime(file, (0, 0))
    members.beat(file)
    assert file.stat().st_mtime > 0
    assert members.others(tmp_path) == [] and members.read(tmp_path, "4") is None
    members.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_process_of_this_machine_lives_or_not(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        began = members.began_at(other.pid)
        assert began
        write(tmp_path, "0", other.pid, socket.gethostname(), began)
        write(tmp_path, "1", other.pid, socket.gethostname(), began - 1)  # its number was another's before
        (found,) = members.others(tmp_path)
        assert (found.name, found.pid) == ("0", other.pid)
        other.kill()
        wait_until(lambda: members.others(tmp_path) == [], other.pid)  # nobody has waited for it yet


def test_a_process_of_another_machine_lives_as_long_as_its_file_is_touched(tmp_path: Path) -> None:
    file = write(tmp_path, "0", 1, "elsewhere", 5)
    assert [each.host for each in members.others(tmp_path)] == ["elsewhere"]
    old = file.stat().st_mtime - members.SILENT_SECONDS - 1
    os.utime(file, (old, old))
    assert members.others(tmp_path) == []


def test_a_run_that_another_machine_commands_is_refused_at_once(tmp_path: Path) -> None:
    write(tmp_path, members.SUPERVISOR, 17, "elsewhere", 5)
    with pytest.raises(UserError, match=r"another process trains in .* \(pid 17 on elsewhere\); wait for its end"):
        members.wait_alone(tmp_path)


def test_ranks_without_a_command_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, "0", 17, "elsewhere", 5)
    monkeypatch.setattr(members, "WAIT_SECONDS", 0.3)
    with pytest.raises(UserError, match="another process trains"):
        members.wait_alone(tmp_path)
    monkeypatch.setattr(members.time, "sleep", lambda seconds: os.utime(file, (0, 0)))
    members.wait_alone(tmp_path)


def test_the_launcher_of_ranks_that_have_ended_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the lock for a moment more: who resumes would be told that another process trains."""
    os.utime(write(tmp_path, "0", 17, "elsewhere", 5), (0, 0))
    with ExitStack() as launcher:
        launcher.enter_context(locked(tmp_path / ".lock"))
        monkeypatch.setattr(members.time, "sleep", lambda seconds: launcher.close())
        members.wait_alone(tmp_path)
        assert not is_locked(tmp_path / ".lock")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"name": "0"}'])
def test_a_foreign_file_is_nobody(content: str, tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "0.json").write_text(content)
    assert members.others(tmp_path) == []


def test_a_group_lives_as_long_as_one_of_it_does() -> None:
    code = "import subprocess; subprocess.Popen(['sleep', '600'])"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True) as first:
        pass
    assert members.group_lives(first.pid)
    os.killpg(first.pid, 9)
    wait_until(lambda: not members.group_lives(first.pid))
