"""The metrics of a run: `metrics.jsonl`, one line a step, and one for the evaluation after the last.

docs/running.md has the keys. A step has a `loss`, the evaluation at the end has `final_validation_loss` and no `loss`.
Runs of earlier versions have fewer keys. A run may have a million steps, so nothing here keeps more than it must.
"""

import json
import math
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recipes.recipe import Recipe
from support import files, json_lines
from support.json_object import JsonObject, finite

EVALUATED = b'"validation_loss"'
FINAL = "final_validation_loss"
ACCURACY = "validation_accuracy"  # of pairs
TASK = "task/"  # begins the names of scores: task/NAME/METRIC
MEASURED = (
    *("time", "seconds", "data_seconds", "evaluate_seconds", "save_seconds", "task_seconds"),
    *("tokens_per_second", "mfu", "memory_bytes"),
)
PAIR = "a pair"
Column = NDArray[np.float64]


def loss_unit(recipe: Recipe) -> str:
    """What the loss of a recipe is a mean over."""
    return PAIR if recipe.dpo.beta else "an answer token" if recipe.data.tunes else "a token"


def each(path: Path) -> Iterator[JsonObject]:
    """The lines of a `metrics.jsonl`, none where there is none; what is no line, as a crash tears one, is left out."""
    with suppress(FileNotFoundError), open(path, errors="replace") as stream:
        for text in stream:
            with suppress(json.JSONDecodeError):
                line = json.loads(text)
                if isinstance(line, dict) and "step" in line:
                    yield line


def read_metrics(path: Path) -> list[JsonObject]:
    """All lines of a `metrics.jsonl`."""
    return list(each(path))


def read_steps(path: Path) -> list[JsonObject]:
    """The lines of a `metrics.jsonl` that are steps: those with a loss, which is None where it was not finite."""
    return [line for line in each(path) if "loss" in line]


def columns(path: Path, names: Sequence[str]) -> tuple[dict[str, Column], JsonObject | None]:
    """Numbers of the steps by name, NaN where a step has none, and the evaluation at the end, if there was one."""
    found = {name: array("d") for name in names}
    final = None
    for line in each(path):
        if "loss" not in line:
            final = line if FINAL in line else final
            continue
        for name, column in found.items():
            value = line.get(name)
            column.append(math.nan if value is None else value)
    return {name: np.array(column) for name, column in found.items()}, final


def read_evaluated(path: Path) -> list[JsonObject]:
    """The lines of a `metrics.jsonl` that have a `validation_loss`. Of a long file no other line is parsed.

    What cannot be read has none.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return []
    lines, at = [], content.find(EVALUATED)
    while at >= 0:
        end = content.find(b"\n", at) % (len(content) + 1)  # -1, of a last line without an end, is the file's
        lines.append(content[content.rfind(b"\n", 0, at) + 1 : end])
        at = content.find(EVALUATED, end)
    return [line for line in json_lines.objects(lines) if "step" in line]


def read_tasks(path: Path) -> JsonObject:
    """The last scores of each task by `NAME/METRIC`, with the step that they are of. Of a long file no other line is
    parsed."""
    found: JsonObject = {}
    try:
        lines = [line for line in path.read_bytes().split(b"\n") if f'"{TASK}'.encode() in line]
    except OSError:
        return found
    for line in json_lines.objects(lines):
        for key, score in line.items():
            if key.startswith(TASK) and "step" in line:
                found[key.removeprefix(TASK)] = {"step": line["step"], "score": score}
    return found


def add_to_step(path: Path, step: int, numbers: JsonObject) -> bool:
    """Add numbers to the line of a step, all others stay as they are; whether there is such a line.

    Nobody else may write the file meanwhile.
    """
    found = False
    with open(path, "rb") as before, files.whole_file(path) as stream:
        for text in before:
            with suppress(json.JSONDecodeError):
                line = json.loads(text.decode(errors="replace"))
                if isinstance(line, dict) and line.get("step") == step and "loss" in line:
                    text, found = (json.dumps(finite({**line, **numbers})) + "\n").encode(), True
            stream.write(text)
    return found


def reproducible(lines: list[JsonObject]) -> list[JsonObject]:
    """Lines without what a machine's speed and memory decide: the rest is a function of the run."""
    return [{key: value for key, value in line.items() if key not in MEASURED} for line in lines]


def truncate_metrics(path: Path, step: int) -> None:
    """Forget the steps after a checkpoint: a resumed run takes them again. It also evaluates again at its end."""
    with files.whole_file(path, "w") as stream:
        for line in each(path):
            if line["step"] <= step and FINAL not in line:
                stream.write(json.dumps(line) + "\n")
