"""The end of a run: a summary in `report.json` and on the terminal, and the curve in `loss.png`."""

import json
import math
import statistics
from pathlib import Path

from run.directory import Run, read_data, read_recipe
from run.metrics import read_steps
from support.errors import UserError
from support.files import write_json
from support.json_object import JsonObject


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """A loss in nats a token as bits a byte of the same text. Bits a byte compare across tokenisers."""
    return loss / bytes_per_token / math.log(2)


def perplexity(loss: float) -> float:
    """The exponential of a loss in nats a token."""
    return math.exp(loss) if loss < 700 else math.inf


def write(run: Run, step: int, consumed_samples: int, validation_loss: float, device: str) -> None:
    """Write `report.json` and `loss.png`."""
    recipe = run.recipe
    bytes_per_token = read_data(run.path)["bytes_per_token"]
    # The median: the first steps of a process are slow, because they warm up its caches.
    speed = statistics.median(line["tokens_per_second"] for line in read_steps(run.metrics))
    values = {
        "recipe": recipe.name,
        "parameters": recipe.model.num_parameters,
        "step": step,
        "tokens": consumed_samples * recipe.model.seq_length,
        "validation_loss": validation_loss,
        "perplexity": perplexity(validation_loss),
        "bits_per_byte": bits_per_byte(validation_loss, bytes_per_token),
        "tokens_per_second": speed,
        "model_flops_per_second": speed * recipe.model.flops_per_token,
        "world_size": run.world_size,
        "device": device,
    }
    plot(run.path)
    write_json(run.path / "report.json", values)


def plot(path: Path) -> None:
    """Draw training and validation loss over tokens."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines, recipe = read_steps(path / "metrics.jsonl"), read_recipe(path)
    tokens = [line["consumed_samples"] * recipe.model.seq_length / 1e6 for line in lines]
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(
        tokens,
        [math.nan if line["loss"] is None else line["loss"] for line in lines],
        color="tab:blue",
        alpha=0.6,
        linewidth=0.8,
        label="training",
    )
    held_out = [
        (t, line["validation_loss"]) for t, line in zip(tokens, lines, strict=True) if "validation_loss" in line
    ]
    axes.plot(*zip(*held_out, strict=True), color="tab:orange", marker="o", markersize=4, label="validation")
    axes.set(xlabel="tokens (millions)", ylabel="loss (nats per token)")
    axes.set_title(f"{recipe.name}: {recipe.model.num_parameters / 1e6:,.1f}M parameters on {recipe.data.described}")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path / "loss.png", dpi=120)
    pyplot.close(figure)


def read(path: Path) -> JsonObject:
    """The report of a run. Errors: `UserError` where it has none."""
    file = path / "report.json"
    if not file.exists():
        read_recipe(path)
        raise UserError(f"{path} has no report: it did not finish; go on with --resume --run-dir {path}")
    values: JsonObject = json.loads(file.read_text())
    return values


def show(path: Path) -> None:
    """Print the report as a table."""
    from rich.console import Console
    from rich.table import Table

    values = read(path)
    table = Table(title=f"{values['recipe']} after {values['step']:,} steps", show_header=False)
    rows = {
        "validation loss": f"{values['validation_loss']:.4f} nats a token",
        "perplexity": f"{values['perplexity']:.2f}",
        "bits per byte": f"{values['bits_per_byte']:.4f}",
        "trained on": f"{values['tokens']:,} tokens",
        "speed": f"{values['tokens_per_second']:,.0f} tokens/s",
        "model FLOP/s": f"{values['model_flops_per_second'] / 1e12:.3f} TFLOP/s",
        "on": f"{values['world_size']} x {values['device']}",
        "curve": str(path / "loss.png"),
        "metrics": str(path / "metrics.jsonl"),
        "checkpoints": str(path / "checkpoints"),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    Console(soft_wrap=True).print(table)
