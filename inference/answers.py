"""The file that finished rows are added to: whole lines, of one call's prompts and settings, and none twice."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from support import json_lines
from support.errors import UserError
from support.files import enough_room, locked
from support.json_object import JsonObject, finite

OURS = b'{"line": '  # how each of our lines begins


@contextmanager
def taken(out: Path, settings: str, texts: Mapping[int, str]) -> Iterator[set[int]]:
    """Take `out` for this process: the lines of the prompts that are done, of those in `texts`.

    Errors: `UserError` where it is another call's, something else, or cannot be written.
    """
    _refuse_others(out, settings, texts)
    with locked(out, f"--out {out} is being written by another process; wait, or give another"), enough_room(out):
        _cut_torn_end(out)
        yield _kept(out, settings, texts)


def add(out: Path, row: JsonObject) -> None:
    """Add a row, whole or not at all: a full disk leaves no half of it."""
    line = (json.dumps(finite(row)) + "\n").encode()
    with open(out, "ab", buffering=0) as stream:
        before = stream.seek(0, os.SEEK_END)
        try:
            left = memoryview(line)
            while left:
                left = left[stream.write(left) :]
        except OSError:
            stream.truncate(before)
            raise


def _refuse_others(out: Path, settings: str, texts: Mapping[int, str]) -> None:
    """Refuse a file that is none of ours before a lock makes it ours. Errors: `UserError`."""
    if out.exists() and not out.is_file():
        raise UserError(f"--out {out} is {'a directory' if out.is_dir() else 'no file'}; give a file")
    above = next(each for each in (out, *out.absolute().parents) if each.exists())
    if not os.access(above, os.W_OK) or (above != out and not above.is_dir()):
        wrong = "cannot be written" if above.is_dir() or above == out else "is a file"
        raise UserError(f"--out {out}: {above} {wrong}; give another place")
    if out.exists():
        _kept(out, settings, texts)


def _kept(out: Path, settings: str, texts: Mapping[int, str]) -> set[int]:
    """The lines of the prompts that are done. Errors: `UserError` where `out` is another call's, or something else."""
    *lines, torn = out.read_bytes().split(b"\n")
    found = json_lines.objects(lines)
    good = len(found) == len(lines) and torn.startswith(OURS[: len(torn)])
    for value in found:
        good = good and value.get("settings") == settings and texts.get(value.get("line", 0)) == value.get("prompt")
    if not good:
        raise UserError(f"--out {out} holds something else than rows of these prompts and settings; give another")
    return {value["line"] for value in found}


def _cut_torn_end(out: Path) -> None:
    """Remove a line that a killed process has not finished."""
    content = out.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with open(out, "r+b") as stream:
            stream.truncate(whole)
