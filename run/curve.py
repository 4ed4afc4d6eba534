"""The curve of a run in `loss.png`: loss, learning rate and gradient norm over tokens and steps."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recipes.recipe import Recipe
from run.metrics import FINAL, Column, columns, loss_unit
from support import files
from support.json_object import JsonObject

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("step", "tokens", "consumed_samples", "loss", "validation_loss", "lr", "grad_norm", "skipped")
BUCKETS = 1000  # of a thinned line: two points each, more than a page has columns of ink
SMOOTH = 50  # the smooth line is a mean over this part of all steps
NEAR = 0.25  # of its budget: a run that has come less far has its planned end outside the picture
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # told apart in print and by the colour-blind
STYLE: JsonObject = {
    "font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8, "axes.linewidth": 0.6, "axes.spines.right": False,
    "axes.spines.top": False, "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.4,
    "legend.framealpha": 1.0, "legend.edgecolor": "none",
}  # fmt: skip
UNITS = ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands"), (1.0, ""))


def draw(path: Path, recipe: Recipe, last_step: int) -> None:
    """Draw the metrics of the run in `path` into its `loss.png`. It needs at least one step."""
    from matplotlib import style
    from matplotlib.figure import Figure

    found, final = columns(path / "metrics.jsonl", COLUMNS)
    tokens = found["consumed_samples"] * recipe.model.seq_length
    planned = tokens[-1] + max(0.0, last_step - found["step"][-1]) * recipe.tokens_per_step
    planned = max(tokens[-1], min(planned, recipe.train_samples * recipe.model.seq_length))
    # A branch begins where its parent was.
    before = 0.0 if found["step"][0] == 1 else max(0.0, tokens[0] - recipe.tokens_per_step)
    near = bool(tokens[-1] - before >= NEAR * (planned - before))
    unit, name = next((unit, name) for unit, name in UNITS if (planned if near else tokens[-1]) >= unit or unit == 1)
    x = tokens / unit
    with style.context(STYLE):
        figure = Figure(figsize=(6.5, 6.0), layout="constrained")
        loss, rate, norm = figure.subplots(3, 1, sharex=True, height_ratios=(3, 1, 1))
        _draw_loss(loss, x, found, final)
        loss.set_ylabel(f"loss (nats {loss_unit(recipe)})")
        _line(rate, x, found["lr"], BLUE, 1.0)
        _line(norm, x, found["grad_norm"], BLUE, 0.6)
        _limit(norm, found["grad_norm"], 0.0)
        if (skipped := np.flatnonzero(found["skipped"] == 1)).size:
            where, _ = _thinned(x[skipped], np.zeros(skipped.size))
            norm.plot(where, np.zeros(where.size), "|", color=ORANGE, ms=6, label="skipped step", clip_on=False)
            norm.legend(loc="upper right")
        rate.set_ylabel("learning rate")
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
        norm.set(ylabel="gradient norm", xlabel=f"tokens ({name})" if name else "tokens")
        _count_steps(loss, x, found["step"], planned / unit, last_step)
        if near:
            _mark_end((loss, rate, norm), x[-1], planned / unit)
        else:
            text = f"planned end at step {last_step:,} \N{RIGHTWARDS ARROW}"
            loss.text(0.99, 0.02, text, transform=loss.transAxes, ha="right", color=GREY, fontsize=8)
        shown = np.array([before, planned if near else tokens[-1]]) / unit
        loss.set_xlim(shown[0], shown[1] + 0.02 * (shown[1] - shown[0]))
        title = f"{recipe.name}: {recipe.model.num_parameters / 1e6:,.1f}M parameters on {recipe.data.described}"
        figure.suptitle(title, fontsize=9)
        figure.align_ylabels()
        with files.whole_file(path / "loss.png") as stream:
            figure.savefig(stream, format="png", dpi=200)


def _draw_loss(axes: "Axes", x: Column, found: dict[str, Column], final: JsonObject | None) -> None:
    width, top = len(x) // SMOOTH, _top(found["loss"])
    if width > 1:
        _line(axes, x, found["loss"], BLUE, 0.4, alpha=0.4, label="training")
        mean = _mean(np.minimum(found["loss"], top), width)  # or a spike would stand there as often as it is averaged
        _line(axes, x, mean, BLUE, 1.3, label=f"training, mean of {width:,} steps")
    else:
        _line(axes, x, found["loss"], BLUE, 1.0, label="training")
    at = np.flatnonzero(np.isfinite(found["validation_loss"]))
    held_out = found["validation_loss"][at]
    if at.size:
        ours, theirs = _thinned(x[at], held_out)
        axes.plot(ours, theirs, "-o" if at.size < 50 else "-", color=ORANGE, ms=3, lw=1.0, label="validation")
    last = final[FINAL] if final else None
    if last is not None:
        label = f"final validation: {last:.4f}"
        axes.plot(x[-1:], [last], "*", color=ORANGE, ms=9, mec="black", mew=0.5, zorder=5, clip_on=False, label=label)
    _limit(axes, np.concatenate((found["loss"], held_out, [np.nan if last is None else last])))
    axes.legend(loc="upper right")


def _line(axes: "Axes", x: Column, y: Column, color: str, width: float, **options: Any) -> None:
    """A line with gaps where a number is not finite; points where there are few, or it would not be seen."""
    few = np.isfinite(y).sum() < 20
    axes.plot(*_thinned(x, y), "-o" if few else "-", color=color, lw=width, ms=2.5, **options)


def _thinned(x: Column, y: Column) -> tuple[Column, Column]:
    """At most two points a bucket, its least and its greatest: a spike of one step among a million stays."""
    size = -(-len(x) // BUCKETS)
    if size <= 2:
        return x, y
    chosen: list[NDArray[np.intp]] = []
    for first in range(0, len(x), size):
        part = y[first : first + size]
        finite = np.flatnonzero(np.isfinite(part))
        ends = {0} if not finite.size else {finite[part[finite].argmin()], finite[part[finite].argmax()]}
        chosen.append(first + np.array(sorted(ends), np.intp))
    places = np.concatenate(chosen)
    return x[places], y[places]


def _mean(y: Column, width: int) -> Column:
    """The mean of the finite numbers among `width` around each place; NaN where there are none."""
    finite = np.isfinite(y)
    sums = np.concatenate(([0.0], np.cumsum(np.where(finite, y, 0.0))))
    counts = np.concatenate(([0], np.cumsum(finite)))
    places = np.arange(len(y))
    low, high = np.maximum(places - width // 2, 0), np.minimum(places + width // 2 + 1, len(y))
    with np.errstate(invalid="ignore"):
        return (sums[high] - sums[low]) / (counts[high] - counts[low])


def _top(y: Column) -> float:
    """The top of a panel: all but the highest half percent is below it, for one spike would press the rest flat."""
    y = y[np.isfinite(y)]
    return float(np.quantile(y, 0.995)) if y.size else 1.0


def _limit(axes: "Axes", y: Column, low: float | None = None) -> None:
    """Show what is from `low`, or from the least number, to the top."""
    top = _top(y)
    bottom = low if low is not None else min(np.min(y, initial=top, where=np.isfinite(y)), top)
    room = 0.06 * (top - bottom) or 0.1 * abs(top) or 1.0
    axes.set_ylim(bottom - (room if low is None else 0.0), top + room)


def _mark_end(panels: "tuple[Axes, ...]", now: float, planned: float) -> None:
    """A line where the run is to end. One that has ended needs none."""
    if now < planned:
        for axes in panels:
            axes.axvline(planned, color=GREY, lw=0.8, ls="--", label="planned end")
        panels[0].legend(loc="upper right")


def _count_steps(axes: "Axes", x: Column, steps: Column, planned: float, last_step: int) -> None:
    """Steps above the loss. With a batch-size ramp they are no multiple of the tokens."""
    from matplotlib.ticker import MaxNLocator

    known = np.unique(np.linspace(0, len(x) - 1, BUCKETS).astype(int))
    at, count = np.concatenate(([0.0], x[known])), np.concatenate(([0.0], steps[known]))
    if planned > at[-1] and last_step > count[-1]:
        at, count = np.append(at, planned), np.append(count, last_step)
    at, count = np.append(at, 2 * at[-1]), np.append(count, 2 * count[-1])  # the margin on the right

    def steps_of(tokens: ArrayLike) -> ArrayLike:
        return np.interp(np.asarray(tokens, np.float64), at, count)

    def tokens_of(steps: ArrayLike) -> ArrayLike:
        return np.interp(np.asarray(steps, np.float64), count, at)

    above = axes.secondary_xaxis("top", functions=(steps_of, tokens_of))
    above.set_xlabel("steps")
    above.xaxis.set_major_locator(MaxNLocator(integer=True))
    above.xaxis.set_major_formatter("{x:,.0f}")
