"""Files and folders that are there whole or not at all, and locks that keep processes apart.

What is written gets a scratch name first, beside its place, and its own name when it is finished and on the disk. So
whoever finds the name finds all of it, whenever a process was killed or a machine lost its power.
"""

import errno
import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from support.errors import CRASHED, UserError

PARTIAL = ".partial"  # the end of the name of what is not finished
MOMENTS = (0.02, 0.2, 0.0)  # seconds: who asks whether a lock is held (`is_held`) holds it for less
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoRoomError(UserError):
    """The disk is full. That is nobody's wrong input: the same command may do the next time."""

    status = CRASHED


def scratch_beside(path: Path) -> Path:
    """The scratch name of a file: no other process has it, on this machine or on one that shares the storage.

    It is hidden, because a process that is killed leaves it behind and readers of a folder pass over hidden files.
    """
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")


def sync(path: Path) -> None:
    """Wait until the content of a file, or the list of names in a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def give_name(scratch: Path, path: Path) -> None:
    """Give a finished file or folder its name. It takes the place of what had that name before.

    The files inside a folder are the caller's to sync.
    """
    sync(scratch)
    if path.is_dir():
        shutil.rmtree(path)  # a rename replaces a file, but no folder that holds anything
    os.replace(scratch, path)
    sync(path.parent)


@contextmanager
def whole_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file for writing. It gets its name when the block ends; an error in the block leaves nothing behind."""
    scratch = scratch_beside(path)
    try:
        with open(scratch, mode, encoding=None if "b" in mode else "utf-8") as stream:
            yield stream
        give_name(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write(path: Path, content: bytes | str) -> None:
    """Write a file that is there whole or not at all."""
    with whole_file(path) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON that people can read, whole or not at all."""
    write(path, json.dumps(value, indent=2) + "\n")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A scratch folder to fill. It takes the place of `path` when the block ends; an error leaves nothing behind.

    One process at a time: the scratch folder has the same name for all, so that the next call removes what a killed
    one has left.
    """
    scratch = path.with_name(path.name + PARTIAL)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        yield scratch
        for inside in scratch.rglob("*"):
            sync(inside)
        give_name(scratch, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def locked(path: Path, busy: str = "") -> Iterator[int]:
    """Hold a lock, as one process at a time: of this machine, and of others where their file system's locks reach.

    It waits for another process to end or to leave the block. Errors: `UserError` with the message `busy`, where there
    is one, instead of waiting. The system frees the lock of a process that is killed; the empty file stays. A process
    that inherits the descriptor, which the block gets, holds the lock too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as lock:  # not "w": whoever waits must not empty what the holder may have written
        for again_in in MOMENTS:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
                break
            except BlockingIOError:
                if not again_in:
                    raise UserError(busy) from None
                time.sleep(again_in)
        yield lock.fileno()


def is_locked(path: Path) -> bool:
    """Whether some process holds a lock. Asking takes it for a moment, in common."""
    try:
        with open(path) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


@contextmanager
def enough_room(place: Path) -> Iterator[None]:
    """Say in one line that the disk is full. Errors: `NoRoomError` where the block finds no room to write `place`."""
    try:
        yield
    except UserError:
        raise  # it says more
    except Exception as error:  # libraries in Rust raise a bare one, with the number in its words
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if number not in NO_ROOM:
            raise
        raise NoRoomError(
            f"no room left to write {place}: {os.strerror(number)}; free some and run the same command again, what is "
            "finished is kept"
        ) from None
