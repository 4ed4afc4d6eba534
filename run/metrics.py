"""The metrics of a run: `metrics.jsonl`, one line a step, and one for the evaluation after the last.

docs/running.md has the keys. A step has a `loss`, the evaluation at the end has `final_validation_loss` and no `loss`.
"""

import json
from pathlib import Path

from support import files, json_lines
from support.json_object import JsonObject

FINAL = "final_validation_loss"
MEASURED = (
    *("time", "seconds", "data_seconds", "evaluate_seconds", "save_seconds"),
    *("tokens_per_second", "mfu", "memory_bytes"),
)


def read_metrics(path: Path) -> list[JsonObject]:
    """The lines of a `metrics.jsonl`; a line that is none, as a crash tears the last one, is left out."""
    return [line for line in json_lines.read(path) if "step" in line]


def read_steps(path: Path) -> list[JsonObject]:
    """The lines of a `metrics.jsonl` that are steps: those with a loss, which is None where it was not finite."""
    return [line for line in read_metrics(path) if "loss" in line]


def reproducible(lines: list[JsonObject]) -> list[JsonObject]:
    """Lines without what a machine's speed and memory decide: the rest is a function of the run."""
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def truncate_metrics(path: Path, step: int) -> None:
    """Forget the steps after a checkpoint: a resumed run takes them again. It also evaluates again at its end."""
    kept = [line for line in read_metrics(path) if line["step"] <= step and FINAL not in line]
    files.write(path, "".join(json.dumps(line) + "\n" for line in kept))
