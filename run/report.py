"""The report of a run, at any time: where it is, how good and how fast. At its end it stands in `report.json`."""

import json
import math
import time
from pathlib import Path

import numpy as np

from run import curve
from run.directory import Run, read_data, read_recipe, read_run
from run.metrics import ACCURACY, FINAL, Column, columns, loss_unit, read_tasks
from run.record import read_object
from run.state import state_of
from run.status import ENDS, RUNNING, status_of
from support import json_lines
from support.errors import DONE, UserError
from support.files import write_json
from support.json_object import JsonObject

MOST_SLOW = 8  # slow ranks that are shown: those of a machine
COLUMNS = ("step", "consumed_samples", "loss", "validation_loss", ACCURACY, "tokens_per_second", "mfu")


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """A loss in nats a token as bits a byte of the same text. Bits a byte compare across tokenisers."""
    return loss / bytes_per_token / math.log(2)


def perplexity(loss: float) -> float:
    """The exponential of a loss in nats a token."""
    return math.exp(loss) if loss < 700 else math.inf


def summary(path: Path) -> JsonObject:
    """What is known of a run that has finished a step, with the keys of docs/json.md; draws nothing.

    What only the end gives is None before it. Errors: `UserError` where `path` is no run, or has no step yet.
    """
    recipe, run = read_recipe(path), _run(path)
    found, final = columns(path / "metrics.jsonl", COLUMNS)
    if not found["step"].size:
        raise UserError(f"{path} has no finished step yet; wait for its first, or go on with --resume --run-dir {path}")
    step, samples = int(found["step"][-1]), int(found["consumed_samples"][-1])
    last_step = run.last_step_from(step, samples) if run else max(step, recipe.train_steps)
    status = status_of(path)
    loss = _final_loss(path, step, final, status)
    accuracy = found[ACCURACY][np.isfinite(found[ACCURACY])]
    going = state_of(path).value(time.time()) if status == RUNNING else {}
    speed, world = _median(found["tokens_per_second"]), run.world_size if run else None
    return {
        "recipe": recipe.name,
        "parameters": recipe.model.num_parameters,
        "status": status,
        "step": step,
        "last_step": last_step,
        "tokens": samples * recipe.model.seq_length,
        "loss": _number(found["loss"][-1]),
        **_validation(found),
        "validation_loss": loss,
        "perplexity": None if loss is None or recipe.dpo.beta else perplexity(loss),
        "bits_per_byte": None if recipe.dpo.beta else _bits(path, loss),
        ACCURACY: (final or {}).get(f"final_{ACCURACY}", float(accuracy[-1]) if accuracy.size else None),
        "tokens_per_second": speed,
        "model_flops_per_second": None if speed is None else speed * recipe.model.flops_per_token,
        "mfu": _median(found["mfu"]),
        "tasks": read_tasks(path / "metrics.jsonl"),
        "seconds_left": going.get("seconds_left"),
        "slow_ranks": going.get("slow_ranks", []),
        "world_size": world,
        "device": next((str(line["device"]) for line in _starts(path) if "device" in line), None),
    }


def _run(path: Path) -> Run | None:
    """What the last start was; None where a file of it is gone."""
    try:
        return read_run(path)
    except (UserError, KeyError):
        return None


def _starts(path: Path) -> list[JsonObject]:
    """The starts, the last one first."""
    return json_lines.read(path / "starts.jsonl")[::-1]


def _final_loss(path: Path, step: int, final: JsonObject | None, status: str) -> float | None:
    """The loss of the evaluation at the end. Earlier versions have it in the report alone."""
    if final is not None:
        return _number(final[FINAL])
    report = read_object(path / "report.json") if status == ENDS[DONE] else {}
    return report.get("validation_loss") if report.get("step") == step else None


def _validation(found: dict[str, Column]) -> JsonObject:
    """The last validation loss of the run and the lowest, with their steps."""
    steps, losses = (found[name][np.isfinite(found["validation_loss"])] for name in ("step", "validation_loss"))
    if not losses.size:
        return dict.fromkeys(("last_validation_loss", "last_validation_step", "best_validation_loss", "best_step"))
    best = losses.argmin()
    return {
        "last_validation_loss": float(losses[-1]),
        "last_validation_step": int(steps[-1]),
        "best_validation_loss": float(losses[best]),
        "best_step": int(steps[best]),
    }


def _bits(path: Path, loss: float | None) -> float | None:
    try:
        return None if loss is None else bits_per_byte(loss, read_data(path)["bytes_per_token"])
    except (UserError, KeyError):
        return None


def _number(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else float(value)


def _median(values: Column) -> float | None:
    """The median: the first steps of a process are slow, because they warm up its caches."""
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else None


def write(path: Path) -> JsonObject:
    """Write `report.json` and `loss.png` of a run that has just ended; returns the report. Errors: as `summary`."""
    values = {**summary(path), "status": ENDS[DONE], "seconds_left": None, "slow_ranks": []}  # its lock is still held
    plot(path, values)
    write_json(path / "report.json", values)
    return values


def plot(path: Path, values: JsonObject) -> None:
    """Draw `loss.png` of the run whose summary has these values."""
    curve.draw(path, read_recipe(path), values["last_step"])


def read(path: Path) -> JsonObject:
    """The report of a run that finished. Errors: `UserError` where it has none."""
    file = path / "report.json"
    if not file.exists():
        read_recipe(path)
        raise UserError(f"{path} has no report: it did not finish; go on with --resume --run-dir {path}")
    values: JsonObject = json.loads(file.read_text())
    return values


def show(path: Path, values: JsonObject | None = None) -> None:
    """Print the report of a run, or these values of it, as a table."""
    from rich.console import Console
    from rich.table import Table

    values = summary(path) if values is None else values
    over = values["validation_loss"] is not None
    place = f"{values['step']:,} steps" if over else f"step {values['step']:,} of {values['last_step']:,}"
    table = Table(title=f"{values['recipe']} after {place}", show_header=False)
    right = values.get(ACCURACY)
    preferred = {"preferred": None if right is None else f"{right:.1%} of pairs, more than by the reference"}
    quality = _quality(values) if over else _progress(values)
    rows = {**quality, **preferred, **_scores(values), **_speed(path, values)}
    of = loss_unit(read_recipe(path))
    rows = {name: value and value.replace("nats a token", f"nats {of}") for name, value in rows.items()}
    for name, value in rows.items():
        if value is not None:
            table.add_row(name, value)
    Console(soft_wrap=True).print(table)


def _quality(values: JsonObject) -> dict[str, str | None]:
    bits, power = values["bits_per_byte"], values["perplexity"]
    return {
        "validation loss": f"{values['validation_loss']:.4f} nats a token",
        "perplexity": None if power is None else f"{power:.2f}",
        "bits per byte": None if bits is None else f"{bits:.4f}",
    }


def _scores(values: JsonObject) -> dict[str, str | None]:
    lines = [
        f"{name} {each['score']:.4g}, step {each['step']:,}"
        for name, each in values.get("tasks", {}).items()
        if each["score"] is not None
    ]
    return {"tasks": "\n".join(lines) or None}


def _progress(values: JsonObject) -> dict[str, str | None]:
    loss, last, best, left = (
        values[name] for name in ("loss", "last_validation_loss", "best_validation_loss", "seconds_left")
    )
    return {
        "status": values["status"],
        "training loss": "not finite" if loss is None else f"{loss:.4f} nats a token",
        "validation loss": None
        if last is None
        else f"{last:.4f} nats a token, step {values['last_validation_step']:,}",
        "best": None if best is None else f"{best:.4f} nats a token, step {values['best_step']:,}",
        "slow": "\n".join(line.removeprefix("slow: ") for line in values["slow_ranks"][:MOST_SLOW]) or None,
        "time left": None if left is None else f"{int(left // 3600)} h {int(left % 3600 // 60)} min {int(left % 60)} s",
    }


def _speed(path: Path, values: JsonObject) -> dict[str, str | None]:
    speed, share, ranks = values["tokens_per_second"], values["mfu"], values["world_size"]
    flops = None if speed is None else f"{values['model_flops_per_second'] / 1e12:.3f} TFLOP/s"
    return {
        "trained on": f"{values['tokens']:,} tokens",
        "speed": None if speed is None else f"{speed:,.0f} tokens/s",
        "model FLOP/s": f"{flops}, {share:.1%} of the peak" if flops and share else flops,
        "on": f"{ranks or '?'} x {values['device'] or '?'}",
        "curve": str(path / "loss.png"),
        "metrics": str(path / "metrics.jsonl"),
        "checkpoints": str(path / "checkpoints"),
    }
