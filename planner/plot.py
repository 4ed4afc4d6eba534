"""The picture of a plan: the pipeline's schedule over time, and each stage's memory by part."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from planner.hardware import GIGA
from planner.timing import Machine, pieces
from planner.values import MemoryPlan
from planner.work import Array, Work
from support.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_PER_STAGE = 3  # this many micro-batches for each stage are drawn at most
FORWARD_COLOUR, BACKWARD_COLOUR = "#4c78a8", "#f58518"


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


def draw(step: Work, machine: Machine | None, memory: MemoryPlan, title: str, path: Path) -> None:
    """Write the picture. Errors: `UserError` where matplotlib cannot write that kind of file, or no file there."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    known = plt.figure().canvas.get_supported_filetypes()
    plt.close("all")
    if path.suffix[1:] not in known:
        raise UserError(f"--plot {path}: the name must end in one of {', '.join('.' + kind for kind in sorted(known))}")
    rows = 1 if machine is None else 2
    height = max(3.0, 0.16 * int(step.pp) + 1.5)
    figure, axes = plt.subplots(rows, 1, figsize=(13, rows * height), squeeze=False, layout="constrained")
    figure.suptitle(title)
    if machine is not None:
        _draw_schedule(axes[0][0], step, machine)
    _draw_memory(axes[-1][0], memory)
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(f"--plot {path}: {error.strerror}; give a file in a folder that you can write to") from None
    finally:
        plt.close(figure)


def _draw_schedule(axis: "Axes", step: Work, machine: Machine) -> None:
    stages, micro = int(step.pp), int(step.micro_batches)
    shown = min(micro, max(SHOWN_PER_STAGE * stages, 8))
    forward, backward = stage_seconds(step, machine)
    begun, back = schedule(forward, backward, shown)
    edge = 0.0 if shown * stages > 500 else 0.5  # points; lines around so many bars would hide their colours
    for stage in range(stages):
        for starts, seconds, colour in (
            (begun, forward[stage], FORWARD_COLOUR),
            (back, backward[stage], BACKWARD_COLOUR),
        ):
            spans = [(float(at), float(seconds)) for at in starts[stage]]
            axis.broken_barh(spans, (stage + 0.6, 0.8), facecolor=colour, edgecolor="white", linewidth=edge)
    _stage_axis(axis, stages)
    axis.set_xlabel("seconds")
    axis.margins(x=0.01)
    few = f"the first {shown}" if shown < micro else f"all {shown}"
    axis.set_title(f"{few} of {micro} micro-batches of a step: forward blue, backward orange, idle white", fontsize=10)


def _draw_memory(axis: "Axes", memory: MemoryPlan) -> None:
    stages = memory["stages"]
    place, left = np.arange(1, len(stages) + 1), np.zeros(len(stages))
    for name in stages[0]["bytes"]:
        size = np.array([stage["bytes"][name] for stage in stages]) / GIGA
        if size.max() > 0.001 * memory["peak_bytes"] / GIGA:
            axis.barh(place, size, left=left, height=0.8, label=name)
        left += size
    if "usable_bytes" in memory:
        axis.axvline(memory["usable_bytes"] / GIGA, color="black", linestyle="--", label="usable")
    _stage_axis(axis, len(stages))
    axis.set_xlabel("GB on a rank")
    axis.figure.legend(loc="outside lower center", ncols=9, fontsize=9)
    axis.set_title("memory of a rank of each stage", fontsize=10)


def _stage_axis(axis: "Axes", stages: int) -> None:
    """Stages from top to bottom, numbered from 1."""
    axis.set_ylabel("pipeline stage")
    axis.set_yticks(sorted({1, *range(5, stages, 5), stages} if stages > 10 else range(1, stages + 1)))
    axis.set_ylim(stages + 0.6, 0.4)
