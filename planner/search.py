"""What would be better? The planner's formulas time and weigh every layout of a recipe on a cluster at once."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.engine import config as engine_config
from model.engine.resolve import filled, resolve
from model.layout import Layout, stage_boundaries
from planner.hardware import GIGA, GPU, TERA
from planner.memory import peak_bytes, rank_bytes
from planner.planning import USABLE_SHARE, check_precision, own_step
from planner.resolve import engine_values
from planner.timing import Machine, StepTime, step_time
from planner.values import Candidate, Found, Own, Refused
from planner.work import Array, Number, Work, bucket_bytes, gradient_bytes, last_blocks, overlaps, step_of
from recipes.recipe import Recipe
from support.errors import UserError

TENSOR_DEGREES = (1, 2, 4, 8, 16)
MICRO_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # sequences
INTERVALS = (0, 1, 2, 3, 4)  # every n-th block is recomputed; 0: none

Ints = NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Space:
    """What all layouts of a recipe have in common.

    `gradients` [4, 4], a row for each ZeRO stage: bytes kept of a gradient, sent of it, in buckets; 1 where it is sent
    while the backward pass computes.
    """

    recipe: Recipe
    base: Work
    gradients: Ints


def space(recipe: Recipe, path: Path) -> Space:
    """The space of a recipe and its JSON, of which layout, micro-batch, recomputation and ZeRO stage are free."""
    values = {**engine_values(recipe), "train_micro_batch_size_per_gpu": 1}
    config = filled(engine_config.read(path), values)
    free = {**config, "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    resolved = resolve(free, values, 1, str(path)).json
    base = step_of(recipe, resolved, 1, Layout(ulysses=recipe.layout.ulysses))
    by_stage = [(*gradient_bytes(config, s), bucket_bytes(config, s), overlaps(config, s)) for s in range(4)]
    return Space(recipe, base, np.array(by_stage))


def candidates(space: Space, world: int) -> Work | None:
    """Every layout that this project can run on `world` ranks, as arrays; None where there is none."""
    stages = np.arange(1, min(space.recipe.model.num_layers, world) + 1)
    tp, pp, micro, every, zero = _grid(
        TENSOR_DEGREES, stages[world % stages == 0], MICRO_BATCHES, INTERVALS, range(1, 4)
    )
    cut = tp * pp * space.recipe.layout.ulysses
    whole = world % cut == 0
    dp = world // cut
    return _runnable(space, *(axis[whole] for axis in (tp, pp, dp, micro, every, zero)))


def _grid(*axes: Iterable[int]) -> list[Ints]:
    """Every combination of the axes' values, flat."""
    return [
        axis.ravel() for axis in np.meshgrid(*(np.array(list(axis), dtype=np.int64) for axis in axes), indexing="ij")
    ]


def _runnable(space: Space, tp: Ints, pp: Ints, dp: Ints, micro: Ints, every: Ints, zero: Ints) -> Work | None:
    """The layouts that this project can run; None where there is none.

    The limits are those of `Layout.check`, of `broken_by_layout` and of the batch arithmetic. A pipeline
    needs ZeRO stage 1 and no offload. hpZ needs tensor degree 1. Offload to files needs stage 3. The Ulysses degree is
    the recipe's.
    """
    recipe, base, model, ulysses = space.recipe, space.base, space.recipe.model, space.recipe.layout.ulysses
    good = (model.num_attention_heads % (tp * ulysses) == 0) & (model.ffn_hidden_size % tp == 0)
    good &= (model.padded_vocab_size % tp == 0) & (model.seq_length % (tp * ulysses) == 0)
    good &= base.global_batch % (dp * micro) == 0
    piped = not (base.offload_optimizer or base.offload_weights or recipe.model.objective == "prefix")
    good &= (pp == 1) | ((zero == 1) & piped)
    good &= (tp == 1) | (base.hpz <= 1)
    good &= (zero == 3) | (not (base.nvme or base.offload_weights))
    if not good.any():
        return None
    tp, pp, dp, micro, every, zero = (axis[good] for axis in (tp, pp, dp, micro, every, zero))
    last = {stages: last_blocks(stage_boundaries(model, stages)) for stages in set(pp.tolist())}
    varied = {
        "tp": tp,
        "pp": pp,
        "dp": dp,
        "sequence_parallel": tp > 1,
        "micro_batch": micro,
        "full": np.where(every > 0, np.ceil(model.num_layers / np.maximum(every, 1)) / model.num_layers, 0.0),
        "selective": 0.0,
        "zero_stage": zero,
        "last_blocks": np.array([last[stages] for stages in pp.tolist()]),
        "gradient_bytes": space.gradients[zero, 0],
        "reduce_bytes": space.gradients[zero, 1],
        "bucket_bytes": space.gradients[zero, 2],
        "reduction_hidden": space.gradients[zero, 3] > 0,
    }
    return stretch(dataclasses.replace(base, **varied), len(tp))


def stretch(step: Work, length: int) -> Work:
    """The same with an array of that length in every field."""
    return _each(step, lambda value: np.broadcast_to(np.asarray(value, dtype=np.float64), length))


def pick(step: Work, index: int | Ints) -> Work:
    """Some of the candidates, or one. Every field of `step` is an array, see `stretch`."""
    return _each(step, lambda value: np.asarray(value)[index])


def _each(step: Work, change: Callable[[Number], Number]) -> Work:
    """The step with every field changed but `variant`, which is this project's and the same in all candidates."""
    names = [field.name for field in dataclasses.fields(Work) if field.name != "variant"]
    return Work(variant=step.variant, **{name: change(getattr(step, name)) for name in names})


@dataclasses.dataclass(frozen=True)
class Judged:
    """Candidates with their times and their fullest ranks."""

    step: Work
    timed: StepTime
    seconds: Array
    peak: Array  # bytes of the fullest rank
    usable: float  # bytes

    @property
    def fits(self) -> NDArray[np.bool_]:
        return self.peak <= self.usable


def judge(step: Work, machine: Machine) -> Judged:
    """Time and weigh candidates."""
    timed = step_time(step, machine)
    return Judged(step, timed, np.asarray(timed.seconds), np.asarray(peak_bytes(step)), usable_bytes(machine.gpu))


def usable_bytes(gpu: GPU) -> float:
    """What a run may take of a GPU's memory."""
    return USABLE_SHARE * gpu.memory_gb * GIGA


def search(recipe: Recipe, path: Path, world: int, machine: Machine) -> Judged:
    """All candidates of a cluster, fastest first. Errors: `UserError` where none divides the cluster, or none fits."""
    config = filled(engine_config.read(path), engine_values(recipe))
    check_precision(machine.gpu, engine_config.precision(config))
    step = candidates(space(recipe, path), world)
    if step is None:
        raise UserError(
            f"no layout of {recipe.name} divides {world} ranks and the global batch {recipe.batch.global_batch}; "
            "change --nodes or batch.global_batch"
        )
    judged = judge(step, machine)
    if not judged.fits.any():
        raise UserError(remedy(recipe, path, world, machine))
    order = np.argsort(judged.seconds, kind="stable")
    return judge(pick(step, order), machine)


def remedy(recipe: Recipe, path: Path, world: int, machine: Machine) -> str:
    """One line for a layout that does not fit, or a cluster that is too small.

    It says whether another layout fits here, else what takes most memory; and the smallest cluster where one fits.
    """
    step, nodes = candidates(space(recipe, path), world), smallest(recipe, path, machine)
    per_node, name = int(machine.gpus_per_node), machine.gpu.name
    tail = f"the smallest cluster of {name} where a layout of {recipe.name} fits is {nodes} node{'s' * (nodes > 1)} of "
    tail = f"{tail}{per_node}" if nodes else f"no cluster of {name} holds {recipe.name} with its global batch"
    if step is None:
        return f"no layout of {recipe.name} divides {world:,} ranks and its global batch; {tail}"
    peak, usable = np.asarray(peak_bytes(step)), usable_bytes(machine.gpu)
    if (peak <= usable).any():
        return f"other layouts fit these {world:,} {name}, --search says which; {tail}"
    least = pick(step, int(np.argmin(peak)))
    worst = max((0, int(least.pp) - 1), key=lambda stage: float(sum(rank_bytes(least, stage).values())))
    parts = {part: float(size) for part, size in rank_bytes(least, worst).items()}
    binds = max(parts, key=lambda part: parts[part])
    return (
        f"{recipe.name} fits on no layout of {world:,} {name}: the leanest (tensor {least.tp:g} x pipeline "
        f"{least.pp:g} x data {least.dp:g}) takes {float(np.min(peak)) / GIGA:,.1f} GB a rank of "
        f"{usable / GIGA:,.1f} GB usable, {parts[binds] / GIGA:,.1f} GB of it {binds}; {tail}"
    )


def smallest(recipe: Recipe, path: Path, machine: Machine) -> int:
    """Nodes of the smallest cluster on which some layout fits, 0 where there is none.

    A cluster that is larger may divide worse, so all are weighed; they are not too many, because a data degree divides
    the global batch. The micro-batch is 1: a larger one never takes less memory.
    """
    free = space(recipe, path)
    batch, blocks = int(free.base.global_batch), recipe.model.num_layers
    degrees = [degree for degree in range(1, batch + 1) if batch % degree == 0]
    tp, pp, dp, every, zero = _grid(TENSOR_DEGREES, range(1, blocks + 1), degrees, INTERVALS, range(1, 4))
    whole = tp * pp * dp * recipe.layout.ulysses % int(machine.gpus_per_node) == 0
    step = _runnable(free, *(axis[whole] for axis in (tp, pp, dp, np.ones_like(tp), every, zero)))
    if step is None:
        return 0
    fitting = np.asarray(step.gpus)[peak_bytes(step) <= usable_bytes(machine.gpu)]
    return int(fitting.min()) // int(machine.gpus_per_node) if len(fitting) else 0


def describe(judged: Judged, index: int) -> Candidate:
    """One candidate as plain values."""
    step, seconds = pick(judged.step, index), float(judged.seconds[index])
    blocks = int(step.num_layers)
    recomputed = round(float(step.full) * blocks)
    # Several intervals may recompute equally many: every third of 5 blocks is 2 of them, and so is every fourth.
    every = next((n for n in range(1, blocks + 1) if -(-blocks // n) == recomputed), 0)
    return {
        "tp": int(step.tp),
        "pp": int(step.pp),
        "dp": int(step.dp),
        "micro_batch": int(step.micro_batch),
        "zero_stage": int(step.zero_stage),
        "recompute_every": every,
        "step_seconds": seconds,
        "model_tflops_per_gpu": float(step.model_flops) / seconds / float(step.gpus) / TERA,
        "peak_bytes": float(judged.peak[index]),
        "fits": bool(judged.fits[index]),
    }


def comparison(recipe: Recipe, path: Path, world: int, machine: Machine, judged: Judged) -> Own | Refused:
    """Where the recipe's own layout stands, and which parts of its step cost more than the best one's."""
    try:
        own = judge(stretch(own_step(recipe, path, world), 1), machine)
    except UserError as error:
        return {"runs": False, "reason": str(error)}
    fitting = np.flatnonzero(judged.fits)
    best = {name: float(np.asarray(value)[fitting[0]]) for name, value in judged.timed.parts.items()}
    more = {name: float(np.asarray(value)[0]) - best[name] for name, value in own.timed.parts.items()}
    return {
        "runs": True,
        **describe(own, 0),
        "faster_layouts": int((judged.seconds[fitting] < own.seconds[0]).sum()),
        "slower_than_best": float(own.seconds[0] / judged.seconds[fitting[0]] - 1),
        "parts_more_than_best": more,
    }


def best(recipe: Recipe, path: Path, world: int, machine: Machine | None, top: int) -> Found:
    """The `top` fastest layouts that fit, beside the recipe's own. Errors: `UserError` where none fits."""
    if machine is None:
        raise UserError(f"{recipe.name} is planned for no GPU of the catalogue; give --gpu")
    began = time.perf_counter()
    judged = search(recipe, path, world, machine)
    took = time.perf_counter() - began
    return {
        "recipe": recipe.name,
        "gpu": machine.gpu.name,
        "world_size": world,
        "candidates": len(judged.seconds),
        "fitting": int(judged.fits.sum()),
        "seconds": took,
        "layouts": [describe(judged, int(index)) for index in np.flatnonzero(judged.fits)[:top]],
        "own": comparison(recipe, path, world, machine, judged),
    }
