"""The picture of a plan: a step's time by part, the pipeline's schedule, and each stage's memory by part."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from planner.hardware import GIGA
from planner.timing import Machine, pieces
from planner.values import MemoryPlan, Plan, TimePlan
from planner.work import Array, Work
from support.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_BARS = 100  # passes that can still be told apart: more are drawn as areas, and their ends beside it from near
NEAR_STAGES, NEAR_PASSES = 6, 7  # what is drawn from near: stages, and forward and backward passes of one
FORWARD, TURNS, BACKWARD, IDLE = "#4c78a8", "#9f8170", "#f58518", "#e9e9e9"
PART_COLOURS = (
    *("#4c78a8", "#f58518", "#54a24b", "#e45756", "#b279a2", "#eeca3b", "#72b7b2", "#9d755d", "#ff9da6", "#79706e"),
    *("#88d27a", "#d6a5c9"),
)
SMALL = 0.005  # share of the whole below which a part has no place in a legend


def schedule(forward: Array, backward: Array, micro_batches: int) -> tuple[Array, Array]:
    """When each stage begins each micro-batch, seconds: two arrays [stages, micro-batches].

    1F1B (Narayanan et al. 2021, arXiv:2104.04473, figure 4): stage i of p begins with min(p - i, micro-batches) forward
    passes, then goes back and forth by turns. `forward` and `backward` are a micro-batch's seconds on each stage.
    """
    stages = len(forward)
    begun = np.full((2, stages, micro_batches), np.nan)
    queues = []
    for stage in range(stages):
        warm = min(stages - stage, micro_batches)
        turns = [(0, number) for number in range(warm)]
        for number in range(micro_batches):
            turns.append((1, number))
            if warm + number < micro_batches:
                turns.append((0, warm + number))
        queues.append(turns)
    free, place = np.zeros(stages), [0] * stages
    moved = True
    while moved:
        moved = False
        for stage in range(stages):
            while place[stage] < len(queues[stage]):
                back, number = queues[stage][place[stage]]
                ready = _ready(begun, forward, backward, back, stage, number)
                if np.isnan(ready):
                    break
                begun[back, stage, number] = max(free[stage], ready)
                free[stage] = begun[back, stage, number] + (backward if back else forward)[stage]
                place[stage] += 1
                moved = True
    return begun[0], begun[1]


def _ready(begun: Array, forward: Array, backward: Array, back: int, stage: int, number: int) -> float:
    """When the input of a pass is there; not a number while that is not known."""
    last = begun.shape[1] - 1
    if not back:
        return 0.0 if stage == 0 else float(begun[0, stage - 1, number] + forward[stage - 1])
    if stage == last:
        return float(begun[0, stage, number] + forward[stage])
    return float(begun[1, stage + 1, number] + backward[stage + 1])


def stage_seconds(step: Work, machine: Machine) -> tuple[Array, Array]:
    """A micro-batch's forward and backward seconds on each stage; the head takes a third of its time forward."""
    piece, stages = pieces(step, machine), np.arange(float(step.pp))
    blocks, last = step.blocks(stages), stages == int(step.pp) - 1
    ends = last * piece.head + (stages == 0) * piece.embedding
    forward = blocks * piece.forward + ends / 3
    return np.asarray(forward), np.asarray(blocks * piece.block + ends - forward)


def draw(step: Work, machine: Machine | None, values: Plan, title: str, path: Path) -> None:
    """Write the picture. Errors: `UserError` where matplotlib cannot write that kind of file, or no file there."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    known = plt.figure().canvas.get_supported_filetypes()
    plt.close("all")
    if path.suffix[1:] not in known:
        raise UserError(f"--plot {path}: the name must end in one of {', '.join('.' + kind for kind in sorted(known))}")
    stages = int(step.pp)
    rows = {"memory": max(2.4, 0.13 * stages + 1.4)}
    if machine is not None:
        near = {} if _few(step) else {"fill drain": 0.36 * min(stages, NEAR_STAGES) + 1.3}
        rows = {"time": 1.9, "schedule": max(1.9, 0.1 * stages + 1.2), **near, **rows}
    # Rows of two places each, so that two pictures may stand side by side.
    places: list[Any] = [name.split() * (1 if " " in name else 2) for name in rows]
    figure, axes = plt.subplot_mosaic(
        places, figsize=(13, sum(rows.values()) + 0.4), height_ratios=list(rows.values()), layout="constrained"
    )
    figure.suptitle(title)
    if machine is not None:
        _draw_time(axes["time"], values["time"])
        _draw_schedule(axes, step, machine)
    _draw_memory(axes["memory"], values["memory"], machine)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"--plot {path}: {error.strerror}; give a file in a folder that you can write to") from None
    finally:
        plt.close(figure)


def _few(step: Work) -> bool:
    return 2 * int(step.pp) * int(step.micro_batches) <= FEW_BARS


def _draw_time(axis: "Axes", time: TimePlan) -> None:
    """A bar of a step's parts."""
    left, whole = 0.0, time["step_seconds"]
    colours = iter(PART_COLOURS)
    for name, seconds in time["step_parts"].items():
        shown = seconds > SMALL * whole
        label = f"{name}  {seconds:,.3g} s, {seconds / whole:.1%}" if shown else None
        axis.barh(0, seconds, left=left, height=0.6, color=next(colours) if shown else "grey", label=label)
        left += seconds
    axis.set(yticks=[], ylim=(-0.5, 0.5), xlim=(0, left), xlabel="seconds")
    _legend(axis)
    axis.set_title(
        f"a step: {whole:,.3g} s, {time['tokens_per_second']:,.0f} tokens/s, MFU {time['mfu']:.1%}; "
        f"the run: {time['days']:,.3g} days",
        fontsize=10,
    )


def _legend(axis: "Axes", **more: Any) -> None:
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, frameon=False, **more)


def _draw_schedule(axes: "dict[str, Axes]", step: Work, machine: Machine) -> None:
    """The passes of a step; where they are many, as areas, and both ends of it from near."""
    from matplotlib.patches import Patch

    stages, micro = int(step.pp), int(step.micro_batches)
    forward, backward = stage_seconds(step, machine)
    begun, back = schedule(forward, backward, micro)
    end = float((back + backward[:, None]).max())
    idle = 1 - micro * float((forward + backward).sum()) / (stages * end)
    axis = axes["schedule"]
    if _few(step):
        _draw_passes(axis, (begun, back), (forward, backward), range(stages), (0.0, end))
        names = {FORWARD: "forward", BACKWARD: "backward"} | ({IDLE: "waiting"} if stages > 1 else {})
    else:
        _draw_areas(axis, (begun, back), (forward, backward), end)
        names = {
            FORWARD: "warm-up: forward only",
            TURNS: "steady: both by turns",
            BACKWARD: "cool-down: backward",
            IDLE: "waiting for other stages",
        }
        shown = min(stages, NEAR_STAGES)
        turn = float(forward[-1] + backward[-1])
        first, last = float(begun[stages - shown, 0]), float(back[shown - 1, -1] + backward[shown - 1])
        near = range(stages - shown, stages)
        _draw_passes(axes["fill"], (begun, back), (forward, backward), near, (first, first + NEAR_PASSES * turn))
        _draw_passes(axes["drain"], (begun, back), (forward, backward), range(shown), (last - NEAR_PASSES * turn, end))
        axes["fill"].set_title(f"from near: the last {shown} stages begin (numbers: micro-batches)", fontsize=10)
        axes["drain"].set_title(f"from near: the first {shown} stages end", fontsize=10)
    _stage_axis(axis, range(stages))
    axis.set(xlim=(0, end), xlabel="seconds of computation and of messages between stages")
    _legend(axis, handles=[Patch(facecolor=colour, label=name) for colour, name in names.items()])
    what = f"{micro} micro-batches on {stages} stages, which wait {idle:.1%} of the time on average"
    axis.set_title(f"the pipeline: {what}" if stages > 1 else f"{micro} micro-batches, no pipeline", fontsize=10)


def _draw_areas(axis: "Axes", begun: tuple[Array, Array], seconds: tuple[Array, Array], end: float) -> None:
    """Each stage's row: its first forward passes, both by turns, its last backward passes; idle in between."""
    for stage in range(len(seconds[0])):
        starts, backs = begun[0][stage], begun[1][stage]
        forward, backward = float(seconds[0][stage]), float(seconds[1][stage])
        warm = float(starts[starts < backs[0]].max()) + forward
        turned = max(float(starts[-1]) + forward, warm)
        spans = {
            IDLE: (0.0, end),
            FORWARD: (float(starts[0]), warm),
            TURNS: (float(backs[0]), turned),
            BACKWARD: (max(turned, float(backs[0])), float(backs[-1]) + backward),
        }
        for colour, (left, right) in spans.items():
            axis.barh(stage + 1, max(0.0, right - left), left=left, height=0.86, color=colour)


def _draw_passes(
    axis: "Axes", begun: tuple[Array, Array], seconds: tuple[Array, Array], stages: range, window: tuple[float, float]
) -> None:
    """Single passes of some stages in a window of time, with the numbers of their micro-batches."""
    left, right = window
    for stage in stages:
        axis.barh(stage + 1, right - left, left=left, height=0.86, color=IDLE)
        for starts, length, colour in zip(begun, seconds, (FORWARD, BACKWARD), strict=True):
            width = float(length[stage])
            for number, start in enumerate(starts[stage].tolist(), start=1):
                if start >= right or start + width <= left:
                    continue
                axis.barh(stage + 1, width, left=start, height=0.86, color=colour, edgecolor="white", linewidth=0.7)
                middle = start + width / 2
                if left + 0.3 * width < middle < right - 0.3 * width and width > 0.012 * (right - left):
                    axis.text(middle, stage + 1, f"{number}", ha="center", va="center", fontsize=7, color="white")
    _stage_axis(axis, stages)
    axis.set(xlim=window, xlabel="seconds")


def _draw_memory(axis: "Axes", memory: MemoryPlan, machine: Machine | None) -> None:
    """Each stage's memory by part; the legend has the parts of the fullest."""
    stages, worst = memory["stages"], memory["worst_stage"]
    place, left = np.arange(1, len(stages) + 1), np.zeros(len(stages))
    colours = iter(PART_COLOURS)
    for name in stages[0]["bytes"]:
        size = np.array([stage["bytes"][name] for stage in stages]) / GIGA
        shown = size.max() > SMALL * memory["peak_bytes"] / GIGA
        label = f"{name}  {size[worst]:,.2f} GB" if shown else None
        axis.barh(place, size, left=left, height=0.86, color=next(colours) if shown else "grey", label=label)
        left += size
    told = (
        range(len(stages)) if len(stages) <= 16 else sorted({0, worst, *range(4, len(stages) - 2, 5), len(stages) - 1})
    )
    for stage in told:
        bold = "bold" if stage == worst else "normal"
        axis.text(left[stage], stage + 1, f" {left[stage]:,.1f}", va="center", fontsize=8, fontweight=bold)
    verdict = f"the fullest rank is of stage {worst + 1}: {memory['peak_bytes'] / GIGA:,.1f} GB"
    if machine is not None:
        usable, whole = memory["usable_bytes"] / GIGA, machine.gpu.memory_gb
        axis.axvline(usable, color="black", linestyle="--", label=f"usable  {usable:,.1f} GB")
        axis.axvline(whole, color="black", label=f"{machine.gpu.name}  {whole:,.0f} GB")
        axis.set_xlim(0, max(whole, float(left.max())) * 1.03)
        verdict += f" of {usable:,.1f} GB usable, {'fits' if memory['fits'] else 'DOES NOT FIT'}"
    _stage_axis(axis, range(len(stages)))
    axis.set_xlabel("GB on a rank of the stage")
    _legend(axis, title=f"rank of stage {worst + 1}")
    axis.set_title(f"memory of a rank: {verdict}", fontsize=10)


def _stage_axis(axis: "Axes", stages: range) -> None:
    """Stages from top to bottom, numbered from 1."""
    first, last = stages.start + 1, stages.stop
    few = range(first, last + 1) if len(stages) <= 16 else sorted({1, *range(5, last - 1, 5), last})
    axis.set_ylabel("stage")
    axis.set_yticks(few)
    axis.set_ylim(last + 0.6, first - 0.6)
