"""Files of JSON objects, one a line, that a process adds to while others read them."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from support.json_object import JsonObject, finite


def read(path: Path) -> list[JsonObject]:
    """The objects of a file, none where there is no file; a line that is none, as a crash tears one, is left out."""
    return _objects(path.read_bytes().splitlines()) if path.exists() else []


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
        return _objects(lines)

    def close(self) -> None:
        """Let go of the file."""
        if self.stream:
            self.stream.close()


def _objects(lines: list[bytes]) -> list[JsonObject]:
    found = []
    for line in lines:
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line.decode(errors="replace")))
    return [value for value in found if isinstance(value, dict)]
