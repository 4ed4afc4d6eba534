"""A run's directory as its launcher and its rank 0 would have written it."""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from recipes.recipe import Intervals
from recipes.registry import ROOT, load
from support import json_lines
from support.json_object import JsonObject

BEGAN = 1_800_000_000.0  # seconds since 1970, of the start
INTERVALS = Intervals(log_every=10, evaluate_every=20, evaluate_samples=16, save_every=50)
SIZES = {"train_batch_size": 16, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 1}


def write_run(path: Path, ranks: int = 2, parts: int = 1, max_steps: int | None = 100) -> Path:
    """What `created` writes: `gpt_tiny` with 16 sequences of 64 tokens a step."""
    path.mkdir(parents=True, exist_ok=True)
    recipe = dataclasses.replace(load("tiny"), intervals=INTERVALS)
    given = json.loads((ROOT / "ds_configs" / "zero1_fp32.json").read_text())
    data = {
        "bytes_per_token": 3.0,
        "parts": [
            {"corpus": f"corpus-{n}", "share": 1, "train": {"tokens": 64_000}, "validation": {"tokens": 6_400}}
            for n in range(parts)
        ],
    }
    start = {"command": [], "world_size": ranks, "max_steps": max_steps, "resumed": False, "deviations": []}
    files = {"recipe.json": dataclasses.asdict(recipe), "ds_config.json": given, "data.json": data, "start.json": start}
    for name, value in {**files, "ds_config.resolved.json": given | SIZES}.items():
        (path / name).write_text(json.dumps(value))
    return path


def event(kind: str, after: float, **facts: Any) -> JsonObject:
    """An event so many seconds after the start."""
    return {"time": BEGAN + after, "event": kind, **facts}


def step(number: int, after: float, **more: Any) -> JsonObject:
    """A step of 16 sequences and 2 seconds that ends so many seconds after the start."""
    place = {"step": number, "consumed_samples": 16 * number, "tokens": 1024 * number, "time": BEGAN + after}
    learnt = {"loss": 8.0 - number / 50, "grad_norm": 1.25, "lr": 3e-3, "loss_scale": 1.0, "skipped": False}
    took = {"tokens_per_second": 512.0, "mfu": None, "seconds": 2.0, "memory_bytes": [10**9, 2 * 10**9]}
    return place | learnt | took | more


def started(last_step: int = 100, first: int = 0) -> list[JsonObject]:
    """The events of a start of ten seconds."""
    phases = {"data": 0.0, "imports": 1.0, "engine": 7.0, "load": 9.0}
    begun = [event("phase", after, phase=name) for name, after in phases.items()]
    return [event("start", 0.0), *begun, event("training", 10.0, step=first, last_step=last_step)]


def write(path: Path, happened: Iterable[JsonObject]) -> None:
    """Add what happened to the files of a run."""
    for each in happened:
        json_lines.add(path / ("events.jsonl" if "event" in each else "metrics.jsonl"), each)
