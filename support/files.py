"""Files that are there whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, also after the machine lost its power."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with open(scratch, "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """The same for a value as JSON."""
    write_whole(path, json.dumps(value, indent=2) + "\n")
