"""Files of JSON objects, one a line, that a process adds to while others read them."""

import json
from contextlib import suppress
from pathlib import Path

from support.json_object import JsonObject, finite


def read(path: Path) -> list[JsonObject]:
    """The objects of a file, none where there is no file; a line that is none, as a crash tears one, is left out."""
    lines = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict)]


def add(path: Path, value: JsonObject) -> None:
    """Add an object as a line, in one piece: lines of several processes do not mix. A number that is none is null."""
    with open(path, "ab", buffering=0) as stream:
        stream.write((json.dumps(finite(value)) + "\n").encode())
