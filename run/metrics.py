"""The metrics of a run: `metrics.jsonl`, one line a step."""

import json
from pathlib import Path

from support import files, json_lines
from support.json_object import JsonObject


def read_metrics(path: Path) -> list[JsonObject]:
    """The lines of a `metrics.jsonl`; a line that is none, as a crash tears the last one, is left out."""
    return [line for line in json_lines.read(path) if "step" in line]


def truncate_metrics(path: Path, step: int) -> None:
    """Forget the steps after a checkpoint: a resumed run takes them again."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    files.write(path, "".join(json.dumps(line) + "\n" for line in kept))
