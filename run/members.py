"""The processes of a run, in their own words: a file each in `ranks/` of the run directory.

A file says who its process is (`pid`, `host`, and when that began in the kernel's ticks), and is touched as long as it
lives. So a process of the same machine is known for certain, and one of another machine by the age of its file: that
needs no locks of the storage, which not all storage has.
"""

import json
import os
import shutil
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from run.record import read_object
from support.errors import UserError
from support.files import is_locked

BEAT_SECONDS = 5.0  # between two touches
SILENT_SECONDS = 30.0  # after which a process of another machine counts as gone
SUPERVISOR = "supervisor"
WAIT_SECONDS = 30.0  # for the ranks of a start whose command was killed: they save and end
LAUNCHER_SECONDS = 10.0  # for their launcher: it has the lock too, and looks for its ranks once a second


@dataclass(frozen=True)
class Member:
    """A process of a run. `name` is its rank, or `SUPERVISOR`."""

    name: str
    pid: int
    host: str
    began: int
    stop_seconds: float = 0.0  # the supervisor's: what a stop on request may take

    @property
    def here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.host == socket.gethostname()


def stat_of(pid: int) -> list[str] | None:
    """The fields of `/proc/PID/stat` from the state on; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def began_at(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None where it has ended, whoever has yet to wait for it."""
    fields = stat_of(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def group_lives(group: int) -> bool:
    """Whether a process of a process group lives, whoever has yet to wait for those that have ended."""
    each = (stat_of(int(folder.name)) for folder in Path("/proc").glob("[0-9]*"))
    return any(fields[0] not in "ZX" and int(fields[2]) == group for fields in each if fields)


def file_of(path: Path, name: str) -> Path:
    """The file of a process of the run directory `path`."""
    return path / "ranks" / f"{name}.json"


def join(path: Path, name: str, stop_seconds: float = 0.0) -> Path:
    """Say that this process belongs to the run in `path`; returns its file. A disk without room loses it."""
    me = Member(name, os.getpid(), socket.gethostname(), began_at(os.getpid()) or 0, stop_seconds)
    file = file_of(path, name)
    with suppress(OSError):
        file.parent.mkdir(exist_ok=True)
        scratch = file.with_name(f".{file.name}.{me.host}-{me.pid}")
        scratch.write_text(json.dumps(asdict(me)))
        os.replace(scratch, file)
    return file


def beat(file: Path) -> bool:
    """Touch the file of a living process. False where it is gone, in a run directory that is there.

    Who finds it gone is not wanted any more: `forget` reaches processes of other machines, too.
    """
    try:
        os.utime(file)
    except FileNotFoundError:
        return not file.parent.parent.exists()
    except OSError:
        pass  # storage that does not answer says nothing
    return True


def read(path: Path, name: str) -> Member | None:
    """A process of a run by its name; None where it has not said who it is."""
    try:
        return Member(**read_object(file_of(path, name)))
    except TypeError:
        return None


def others(path: Path) -> list[Member]:
    """The living processes of a run, without this one."""
    named = [file.stem for file in (path / "ranks").glob("[!.]*.json")]
    return [each for name in named if (each := read(path, name)) and each.pid != os.getpid() and _lives(path, each)]


def _lives(path: Path, member: Member) -> bool:
    if member.here:
        return began_at(member.pid) == member.began
    probe = path / "ranks" / f".now.{socket.gethostname()}-{os.getpid()}"
    try:  # by the clock of the storage, which touched both
        probe.touch()
        age = probe.stat().st_mtime - file_of(path, member.name).stat().st_mtime
        probe.unlink()
    except OSError:
        return False
    return age < SILENT_SECONDS


def wait_alone(path: Path) -> None:
    """Wait for the ranks of a start whose command was killed, and for their launcher, which ends after them.

    Errors: `UserError` where the run goes on.
    """
    began, told = time.monotonic(), False
    left = any((path / "ranks").glob("[!.]*.json"))  # by a start that did not end by itself
    while found := others(path):
        commanded = any(each.name == SUPERVISOR for each in found)
        if commanded or time.monotonic() - began > max(WAIT_SECONDS, *(each.stop_seconds for each in found)):
            who = f"pid {found[0].pid} on {found[0].host}"
            raise UserError(f"another process trains in {path} ({who}); wait for its end, or give another --run-dir")
        if not told:
            print(f"waiting for {len(found)} processes of an earlier start in {path} to end", flush=True)
            told = True
        time.sleep(0.2)
    until = time.monotonic() + LAUNCHER_SECONDS
    while left and is_locked(path / ".lock") and time.monotonic() < until:
        time.sleep(0.2)


def forget(path: Path) -> None:
    """Remove what the processes of an earlier start said: they have ended."""
    shutil.rmtree(path / "ranks", ignore_errors=True)
