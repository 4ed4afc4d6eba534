"""Files of JSON objects, one a line, that a process adds to while others read them."""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from support.json_object import JsonObject, finite


def read(path: Path) -> list[JsonObject]:
    """The objects of a file, none where there is no file; a line that is none, as a crash tears one, is left out."""
    return parsed(path.read_text(errors="replace").splitlines() if path.exists() else [])


def read_end(path: Path, most_bytes: int = 2**15) -> list[JsonObject]:
    """As `read`, of the last lines of a file, however long it is: those in its last bytes, but at least one.

    What cannot be read has none.
    """
    try:
        with open(path, "rb") as stream:
            before = max(0, stream.seek(0, 2) - most_bytes)
            stream.seek(before)
            lines = stream.read().split(b"\n")
    except OSError:
        return []
    return parsed(lines[1:] if before else lines) or (read_end(path, 8 * most_bytes) if before else [])


def parsed(lines: Iterable[str | bytes]) -> list[JsonObject]:
    """The objects that stand in lines; a line that is none is left out."""
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(json.loads(line))
    return [each for each in found if isinstance(each, dict)]


def add(path: Path, value: JsonObject) -> None:
    """Add an object as a line, in one piece: lines of several processes do not mix. A number that is none is null."""
    with open(path, "ab", buffering=0) as stream:
        stream.write((json.dumps(finite(value)) + "\n").encode())
