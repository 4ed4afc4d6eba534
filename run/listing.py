"""All runs at a glance. Whatever lies in their directories, foreign or half-written, leaves gaps and no error."""

import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from recipes import registry, settings
from recipes.recipe import Part
from run import record, select
from run.directory import read_recipe
from run.metrics import read_evaluated
from run.record import read_object
from run.status import status_of
from support import json_lines
from support.errors import UserError
from support.json_object import JsonObject, differences

RECENT = 20  # steps that the speed is the median of
UNCOMPARED = ("name", "source", "status", "cluster")  # of the recipe
SHOWN = 4  # of the differences from the recipe, in the table


def summaries(recipe: str | None = None) -> list[JsonObject]:
    """What `stagecraft runs --json` prints, of all runs or of a recipe's; the one that was started last comes first."""
    declared = {}
    for name in {path.parent.name for path in select.runs(recipe)}:
        with suppress(UserError):
            declared[name] = settings.plain(registry.load(name), UNCOMPARED)
    return sorted((_summary(path, declared) for path in select.runs(recipe)), key=lambda run: -run["started"])


def summary(path: Path) -> JsonObject:
    """As `summaries`, of one run."""
    try:
        declared = {path.parent.name: settings.plain(registry.load(path.parent.name), UNCOMPARED)}
    except UserError:
        declared = {}
    return _summary(path, declared)


def _summary(path: Path, declared: dict[str, JsonObject]) -> JsonObject:
    who, ended, noted = record.read(path), read_object(path / "status.json"), select.read_events(path)
    steps = [line for line in json_lines.read_end(path / "metrics.jsonl") if "step" in line and "loss" in line]
    evaluated = [(loss, line["step"]) for line in read_evaluated(path / "metrics.jsonl") if (loss := _loss(line))]
    best = min(evaluated, default=(None, None))
    parent = who.parent if who else None
    return {
        "run": str(path),
        "id": who.id if who else None,
        "name": who.name if who else None,
        "recipe": path.parent.name,
        "status": status_of(path),
        "reason": str(ended.get("reason", "")),
        "step": _number(steps[-1]["step"]) if steps else None,
        "last_step": _last_step(path, noted),
        "validation_loss": evaluated[-1][0] if evaluated else None,
        "best_validation_loss": best[0],
        "best_step": best[1],
        "tokens_per_second": _median(line.get("tokens_per_second") for line in steps[-RECENT:]),
        "mfu": _median(line.get("mfu") for line in steps[-RECENT:]),
        "started": select.last_started(path),
        "bytes": size_of(path),
        "deviations": _deviations(path, declared.get(path.parent.name)),
        "parent": f"{parent.path}@{parent.step}" if parent else None,
        "changes": list(parent.changes) if parent else [],
        "note": next((str(line.get("text")) for line in reversed(noted) if line["event"] == "note"), None),
    }


def size_of(path: Path) -> int:
    """The bytes of a file, or of all files in a folder."""
    total = 0
    with suppress(OSError):  # a run that goes on removes some
        if not path.is_dir():
            return path.lstat().st_size
        for entry in os.scandir(path):
            with suppress(OSError):
                inside = entry.is_dir(follow_symlinks=False)
                total += size_of(Path(entry.path)) if inside else entry.stat(follow_symlinks=False).st_size
    return total


def _deviations(path: Path, declared: JsonObject | None) -> list[str]:
    """What differs from the recipe, `section.field=value`, and the lines in which the JSON differs."""
    stored = read_object(path / "start.json").get("recipe") or read_object(path / "recipe.json")
    found = []
    if declared and isinstance(stored.get("data"), dict):
        data = {**stored["data"], "corpus": _spelled(stored["data"].get("corpus"))}
        kept = {key: _filled({**stored, "data": data}.get(key), value) for key, value in declared.items()}
        found = [f"{name}={new}" for name, old, new in differences(declared, kept) if not _alike(old, new)]
    named = {line.partition("=")[0] for line in found}
    noted = read_object(path / "start.json").get("deviations")
    return found + [
        str(line) for line in (noted if isinstance(noted, list) else ()) if str(line).split(" ")[0] not in named
    ]


def _filled(kept: object, declared: object) -> object:
    """A section of a stored recipe; fields that there were not when it was stored are as they are declared now."""
    if isinstance(kept, dict) and isinstance(declared, dict):
        return {**declared, **kept}
    return declared if kept is None else kept


def _alike(old: object, new: object) -> bool:
    """JSON knows no tuples."""
    return isinstance(old, tuple) and list(old) == new


def _spelled(corpus: object) -> object:
    with suppress(TypeError):
        return settings.spelled(tuple(Part(**part) for part in corpus)) if isinstance(corpus, list) else corpus
    return corpus


def _last_step(path: Path, noted: list[JsonObject]) -> int | None:
    """The step at which a run ends: as its last start said, else that of its whole budget."""
    for line in reversed(noted):
        if line["event"] == "training" and isinstance(line.get("last_step"), int):
            return int(line["last_step"])
    with suppress(UserError):
        most, budget = read_object(path / "start.json").get("max_steps"), read_recipe(path).train_steps
        return min(budget, most) if isinstance(most, int) else budget
    return None


def _loss(line: JsonObject) -> float | None:
    return _number(line.get("validation_loss"))


def _number(value: object) -> float | None:
    return value if isinstance(value, (int, float)) and math.isfinite(value) else None


def _median(values: Iterable[object]) -> float | None:
    return statistics.median(found) if (found := [n for n in map(_number, values) if n is not None]) else None


def show(runs: list[JsonObject]) -> None:
    """Print the runs as a table."""
    from rich.markup import escape
    from rich.table import Table

    from support.terminal import print_table

    table = Table(box=None, pad_edge=False)
    for title in (
        "run",
        "status",
        "step",
        "loss",
        "best",
        "tokens/s",
        "MFU",
        "started",
        "size",
        "differs from the recipe",
    ):
        table.add_column(title, justify="left" if title in ("run", "status", "differs from the recipe") else "right",
            no_wrap=title in ("run", "step", "started"), overflow="fold")  # fmt: skip
    shared = Counter(line for run in runs for line in run["deviations"])
    for run in runs:
        losses = [run["validation_loss"], run["best_validation_loss"]]
        table.add_row(
            escape(run["name"] or f"{run['recipe']}/{Path(run['run']).name}"),
            run["status"],
            f"{_or_dash(run['step'], ',')}/{_or_dash(run['last_step'], ',')}",
            *(_or_dash(loss, ".4f") for loss in losses),
            _or_dash(run["tokens_per_second"], ",.0f"),
            _or_dash(run["mfu"], ".1%"),
            _ago(time.time() - run["started"]) if run["started"] else "-",
            shown_size(run["bytes"]),
            escape(_differs(run, shared)),
        )
    print_table(table)


def _differs(run: JsonObject, shared: Counter[str]) -> str:
    """What sets a run apart: first what it shares with the fewest of the others."""
    path, _, step = (run["parent"] or "").rpartition("@")
    lines = [*([f"from {record.label(Path(path))}@{step}"] if path else []), *run["changes"]]
    changed = {line.split(" ")[0] for line in run["changes"]}
    deviations = [line for line in run["deviations"] if line.partition("=")[0] not in changed]
    lines += sorted(deviations, key=lambda line: shared[line])
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return ", ".join(lines[:SHOWN] + more)


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _ago(seconds: float) -> str:
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name} ago"
    return f"{max(0, seconds):.0f} s ago"


def shown_size(count: float) -> str:
    """Bytes in a few characters."""
    for name in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {name}"
        count /= 1000
    return f"{count:,.4g} TB"
