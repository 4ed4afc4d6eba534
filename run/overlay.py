"""Curves of several runs: losses over tokens and over the time of training, read at any place, in one picture."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from run import record
from run.curve import STYLE
from run.metrics import read_metrics
from support.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
COLOURS = (  # Okabe and Ito's: the colour-blind tell them apart
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#000000", "#B8A800"),
)
WINDOW = 1 / 50  # of the tokens that are shown: over these a training loss is averaged


@dataclass(frozen=True)
class Curve:
    """The steps of one run. A loss is in nats a token, NaN where it was not finite.

    `seconds` is the time that the steps took up to each one's end: without start, evaluation and saving, and without
    steps that a crash lost. `evaluations` are the numbers of the steps after which held-out samples were read.
    """

    tokens: Array  # [steps]
    seconds: Array  # [steps]
    losses: Array  # [steps]
    speeds: Array  # [steps], tokens a second of all ranks
    evaluations: NDArray[np.int64]  # [evaluations]
    held_out: Array  # [evaluations]

    def smoothed(self, window: float) -> Array:
        """For each step the mean training loss of the last `window` tokens up to it."""
        finite = np.isfinite(self.losses)
        sums = np.concatenate([[0.0], np.cumsum(np.where(finite, self.losses, 0.0))])
        counts = np.concatenate([[0], np.cumsum(finite)])
        first = np.searchsorted(self.tokens, self.tokens - window, side="right")
        taken = counts[1:] - counts[first]
        return np.where(taken > 0, (sums[1:] - sums[first]) / np.maximum(taken, 1), np.nan)

    def along(self, axis: str) -> Array:
        """The positions of the steps on an axis, `tokens` or `seconds`."""
        positions: Array = getattr(self, axis)
        return positions


def curve(path: Path, seq_length: int) -> Curve:
    """The curve of a run directory. A branch goes on where it left its parent.

    A run of before `seconds` were noted has them by way of its samples and its speed.
    """
    lines = [line for line in read_metrics(path / "metrics.jsonl") if "loss" in line]
    known = record.read(path)
    parent = known.parent if known else None
    samples = np.array([line["consumed_samples"] for line in lines], dtype=np.float64)
    each = zip(lines, np.diff(samples, prepend=parent.consumed_samples if parent else 0) * seq_length, strict=True)
    seconds = [line.get("seconds") or count / line["tokens_per_second"] for line, count in each]
    evaluated = [row for row, line in enumerate(lines) if line.get("validation_loss") is not None]
    return Curve(
        samples * seq_length,
        np.cumsum(seconds, dtype=np.float64) + (_seconds_before(parent, seq_length) if parent else 0.0),
        np.array([math.nan if line["loss"] is None else line["loss"] for line in lines], dtype=np.float64),
        np.array([line["tokens_per_second"] for line in lines], dtype=np.float64),
        np.array(evaluated, dtype=np.int64),
        np.array([lines[row]["validation_loss"] for row in evaluated], dtype=np.float64),
    )


def _seconds_before(parent: record.Parent, seq_length: int) -> float:
    """What a parent's steps took up to the branch; nothing where the parent is gone."""
    before = curve(Path(parent.path), seq_length)
    taken = before.seconds[before.tokens <= parent.consumed_samples * seq_length]
    return float(taken[-1]) if len(taken) else 0.0


@dataclass(frozen=True)
class Drawn:
    """A curve with its label, what its losses are multiplied by, and where it left its parent, in tokens."""

    label: str
    curve: Curve
    scale: float = 1.0
    branched_at: float | None = None


def draw(axes: "Axes", axis: str, drawn: Sequence[Drawn]) -> None:
    """Draw runs over `tokens` or `seconds`, each in its colour: training smoothed and thin, validation as points.

    A branch has a dotted line where it left its parent.
    """
    shown = [each for each in drawn if len(each.curve.tokens)]
    window = WINDOW * max((float(each.curve.tokens[-1]) for each in shown), default=0.0)
    unit, name = _unit(axis, max((float(each.curve.along(axis)[-1]) for each in shown), default=0.0))
    first, all_losses = [], []
    for number, each in enumerate(drawn):
        curve, colour = each.curve, COLOURS[number % len(COLOURS)]
        places, losses = curve.along(axis) / unit, curve.smoothed(window) * each.scale
        axes.plot(places, losses, color=colour, linewidth=0.9, alpha=0.8, label=each.label)
        marks, held_out = places[curve.evaluations], curve.held_out * each.scale
        axes.plot(marks, held_out, color=colour, marker="o", markersize=4, linestyle="none")
        first += losses[:1].tolist()
        all_losses += [*losses.tolist(), *held_out.tolist()]
        if axis == "tokens" and each.branched_at is not None:
            axes.axvline(each.branched_at / unit, color=colour, linestyle=":", linewidth=1)
    lowest, highest = min(filter(math.isfinite, all_losses), default=0), max(filter(math.isfinite, first), default=0)
    if lowest < highest:  # a run that diverges leaves the picture, and the others keep their room
        axes.set_ylim(lowest - 0.05 * (highest - lowest), highest + 0.05 * (highest - lowest))
    axes.set_xlabel(name)


def _unit(axis: str, most: float) -> tuple[float, str]:
    """What to divide by, so that an axis has short numbers, and how to call it then."""
    units = {
        "tokens": [
            (1e9, "tokens (billions)"),
            (1e6, "tokens (millions)"),
            (1e3, "tokens (thousands)"),
            (1.0, "tokens"),
        ],
        "seconds": [(3600.0, "hours of training"), (60.0, "minutes of training"), (1.0, "seconds of training")],
    }[axis]
    return next((unit for unit in units if most >= unit[0]), units[-1])


@contextmanager
def picture(out: Path, panels: int, height: float = 3.8) -> Iterator[list["Axes"]]:
    """A picture with panels side by side, written to `out` when the block ends.

    Errors: `UserError` where it cannot be written.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(STYLE):
        figure = Figure(figsize=(5 * panels, height), layout="constrained")
        yield list(figure.subplots(1, panels, squeeze=False)[0])
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(out, dpi=150)
        except (OSError, ValueError) as error:  # ValueError: an ending that matplotlib does not know
            raise UserError(f"the picture cannot be written to {out}: {error}; give another place") from None
