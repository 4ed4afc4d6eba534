"""Files of JSON objects, one a line, that a process adds to while others read them."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from support.json_object import JsonObject, finite


def read(path: Path) -> list[JsonObject]:
    """The objects of a file, none where there is no file; a line that is none, as a crash tears one, is left out."""
    return objects(path.read_bytes().splitlines()) if path.exists() else []


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
    return objects(lines[1:] if before else lines) or (read_end(path, 8 * most_bytes) if before else [])


def add(path: Path, value: JsonObject) -> None:
    """Add an object as a line, in one piece: lines of several processes do not mix. A number that is none is null."""
    with open(path, "ab", buffering=0) as stream:
        stream.write((json.dumps(finite(value)) + "\n").encode())


class Follower:
    """Reads what is added to a file, and nothing twice. Where another file takes the name, it reads that from its
    first line on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stream: BinaryIO | None = None

    def new(self) -> list[JsonObject]:
        """The objects since the last call. A line that is not finished yet belongs to a later call."""
        try:
            now = self.path.stat()
            if self.stream is None or not os.path.samestat(now, os.fstat(self.stream.fileno())):
                self.close()
                self.stream = open(self.path, "rb")  # noqa: SIM115  # it stays open between two calls
            elif now.st_size < self.stream.tell():
                self.stream.seek(0)
            lines = []
            while (line := self.stream.readline()).endswith(b"\n"):
                lines.append(line)
            self.stream.seek(-len(line), os.SEEK_CUR)
        except OSError:  # it is not there yet, or its storage does not answer
            return []
        return objects(lines)

    def close(self) -> None:
        """Let go of the file."""
        if self.stream:
            self.stream.close()


def objects(lines: list[bytes]) -> list[JsonObject]:
    """The objects that stand in lines; a line that is none is left out."""
    found = []
    for line in lines:
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line.decode(errors="replace")))
    return [value for value in found if isinstance(value, dict)]
