"""Run directories written by hand: what commands find of runs that were trained elsewhere."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from model.checkpoint import format
from recipes.registry import ROOT, load
from recipes.settings import override
from run import record

COUNTS = ("global_steps", "global_samples", "skipped_steps")  # of the engine
NOON = 1_700_000_000.0  # seconds since 1970


def lines(path: Path, values: list[dict[str, Any]]) -> None:
    with open(path, "a") as stream:
        stream.writelines(json.dumps(value) + "\n" for value in values)


def metrics(steps: int, began: float = NOON, validation: dict[int, float] | None = None) -> list[dict[str, Any]]:
    """The lines of a run that takes a second a step."""
    found: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        line = {"step": step, "consumed_samples": 16 * step, "loss": 9 - step / 10, "tokens_per_second": 1000.0 + step}
        line |= {"mfu": None, "time": began + step}
        found.append(line | ({"validation_loss": validation[step]} if validation and step in validation else {}))
    return found


def run(root: Path, folder: str, steps: int = 3, began: float = NOON, status: int | None = 0, **more: Any) -> Path:
    """A run of gpt_tiny below `root` that was started once, at `began`, and took `steps` steps."""
    path = root / "gpt_tiny" / folder
    path.mkdir(parents=True)
    who = {"id": more.get("id", f"{abs(hash_of(folder)):016x}"), "name": more.get("name"), "created": began}
    (path / record.FILE).write_text(json.dumps({**who, "parent": more.get("parent")}))
    recipe = override(load("tiny"), more.get("settings", []))
    (path / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe)))
    (path / "ds_config.json").write_text((ROOT / recipe.engine).read_text())
    (path / "ds_config.resolved.json").write_text('{"train_batch_size": 16}')
    start(path, began, more.get("deviations"))
    lines(path / "metrics.jsonl", metrics(steps, began, more.get("validation")))
    if status is not None:
        (path / "status.json").write_text(json.dumps({"status": status, "reason": more.get("reason", "")}))
    return path


def checkpoint(path: Path, step: int, damaged: bool = False, size: int = 1000) -> Path:
    """A checkpoint of that step, whole but for what it holds, or one whose file was changed."""
    folder = format.folder_of(path / "checkpoints", step)
    folder.mkdir(parents=True)
    file, index = folder / "rank-00000.safetensors", folder / "index.json"
    file.write_bytes((size - 8).to_bytes(8, "little") + b"{}".ljust(size - 8))  # no tensors
    index.write_text('{"files": [], "parameters": {}}')
    known = record.read(path)
    format.write_manifest(
        folder,
        {
            "step": step,
            "tie": {"run": known.id if known else ""},
            "state": {"step": step, "consumed_samples": 16 * step},
            "engine": {"optimizer_step": step, "loss_scaler": {}, **dict.fromkeys(COUNTS, step)},
            "index": format.facts(index),
            "files": {file.name: format.facts(file)},
        },
    )
    if damaged:
        file.write_bytes(b"\1" + bytes(size - 1))
    return folder


def start(path: Path, when: float, deviations: list[str] | None = None) -> None:
    """What a start writes before its first step."""
    asked = {"world_size": 2, "max_steps": None, "resumed": False, "deviations": deviations or []}
    (path / "start.json").write_text(json.dumps(asked))
    (path / "status.json").unlink(missing_ok=True)
    lines(path / "events.jsonl", [{"time": when, "event": "start", "resumed": False}])
    local = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(when + 5))
    lines(path / "starts.jsonl", [{"time": local, **asked}])


def hash_of(text: str) -> int:
    """The same number for the same text in every process."""
    return int.from_bytes(text.encode()[-8:], "big")
