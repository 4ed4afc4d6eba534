"""What would be better? Every layout of a recipe on a cluster, timed and weighed at once by the planner's formulas."""

import dataclasses
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from launch.hardware import GIGA, GPU
from model import engine_config
from model.layout import Layout, stage_boundaries
from model.memory import peak_bytes, rank_bytes
from model.work import Work, gradient_bytes, last_blocks, work
from recipes.plan import USABLE, own_step
from recipes.recipe import Recipe
from recipes.timing import Machine, StepTime, step_time

TENSOR = (1, 2, 4, 8, 16)
MICRO = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
EVERY = (0, 1, 2, 3, 4)  # every n-th block is recomputed; 0: none
LARGEST_CLUSTER = 1 << 16  # nodes: where the search for a cluster that fits gives up


@dataclasses.dataclass(frozen=True)
class Space:
    """What all layouts of a recipe have in common. `gradients` are the bytes kept and sent of one, by ZeRO stage."""

    recipe: Recipe
    base: Work
    gradients: Any


def space(recipe: Recipe, path: Path) -> Space:
    """The space of a recipe and its JSON, of which layout, micro-batch, recomputation and ZeRO stage are free."""
    config = engine_config.read(path)
    free = {**config, "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    values = {**recipe.engine_values(), "train_micro_batch_size_per_gpu": 1}
    resolved = engine_config.resolve(free, values, 1, str(path)).json
    base = work(recipe.model, Layout(ulysses=recipe.layout.ulysses), resolved, 1)
    return Space(recipe, base, np.array([gradient_bytes(resolved, stage) for stage in range(4)]))


def candidates(space: Space, world: int) -> Work | None:
    """Every layout that this project can run on `world` ranks, as arrays; nothing where there is none.

    The limits are those of `Layout.check`, `engine_config.check_layout` and the batch arithmetic; a pipeline goes with
    ZeRO stage 1 and without offload. Ulysses stays as the recipe has it.
    """
    recipe, base, model, ulysses = space.recipe, space.base, space.recipe.model, space.recipe.layout.ulysses
    stages = np.arange(1, min(model.num_layers, world) + 1)
    axes = (TENSOR, stages[world % stages == 0], MICRO, EVERY, range(1, 4))
    tp, pp, micro, every, zero = (axis.ravel() for axis in np.meshgrid(*map(np.array, axes), indexing="ij"))
    cut = tp * pp * ulysses
    good = (world % cut == 0) & (model.num_attention_heads % (tp * ulysses) == 0) & (model.ffn_hidden_size % tp == 0)
    good &= (model.padded_vocab_size % tp == 0) & (model.seq_length % (tp * ulysses) == 0)
    good &= base.global_batch % (np.maximum(world // cut, 1) * micro) == 0
    piped = not (base.offload_optimizer or base.offload_weights or recipe.model.objective == "prefix")
    good &= (pp == 1) | ((zero == 1) & piped)
    if not good.any():
        return None
    tp, pp, micro, every, zero = tp[good], pp[good], micro[good], every[good], zero[good]
    last = {stages: last_blocks(stage_boundaries(model, stages)) for stages in set(pp.tolist())}
    varied = {
        "tp": tp,
        "pp": pp,
        "dp": world // (tp * pp * ulysses),
        "sequence_parallel": tp > 1,
        "micro_batch": micro,
        "full": np.where(every > 0, np.ceil(model.num_layers / np.maximum(every, 1)) / model.num_layers, 0.0),
        "selective": 0.0,
        "zero_stage": zero,
        "last_blocks": np.array([last[stages] for stages in pp.tolist()]),
        "gradient_bytes": space.gradients[zero, 0],
        "reduce_bytes": space.gradients[zero, 1],
    }
    return stretch(dataclasses.replace(base, **varied), len(tp))


def stretch(step: Work, length: int) -> Work:
    """The same with an array of that length in every field."""
    return Work(**{f.name: np.broadcast_to(getattr(step, f.name), length) for f in dataclasses.fields(Work)})


def pick(step: Work, index: Any) -> Work:
    """Some of the candidates, or one."""
    return Work(**{f.name: getattr(step, f.name)[index] for f in dataclasses.fields(Work)})


@dataclasses.dataclass(frozen=True)
class Judged:
    """Candidates with their times and their fullest ranks."""

    step: Work
    timed: StepTime
    seconds: Any
    peak: Any
    usable: float

    @property
    def fits(self) -> Any:
        return self.peak <= self.usable


def judge(step: Work, machine: Machine) -> Judged:
    """Time and weigh candidates."""
    timed = step_time(step, machine)
    return Judged(step, timed, timed.seconds, peak_bytes(step), usable_bytes(machine.gpu))


def usable_bytes(gpu: GPU) -> float:
    """What a run may take of a GPU's memory."""
    return USABLE * gpu.memory_gb * GIGA


def search(recipe: Recipe, path: Path, world: int, machine: Machine) -> Judged:
    """All candidates of a cluster, fastest first. Errors: `ValueError` where none divides the cluster, or none fits."""
    step = candidates(space(recipe, path), world)
    if step is None:
        raise ValueError(
            f"no layout of {recipe.name} divides {world} ranks and the global batch {recipe.batch.global_batch}; "
            "change --nodes or batch.global_batch"
        )
    judged = judge(step, machine)
    if not judged.fits.any():
        raise ValueError(remedy(recipe, path, machine, judged))
    order = np.argsort(judged.seconds, kind="stable")
    return judge(pick(step, order), machine)


def remedy(recipe: Recipe, path: Path, machine: Machine, judged: Judged | None = None) -> str:
    """One line for a layout or a cluster that does not fit: the smallest cluster where some layout does, what binds."""
    nodes = _smallest(recipe, path, machine)
    per_node, name = int(machine.gpus_per_node), machine.gpu.name
    where = f"the smallest cluster of {name} where a layout of {recipe.name} fits"
    tail = f"is {nodes} node{'s' * (nodes > 1)} of {per_node}" if nodes else f"has over {LARGEST_CLUSTER} nodes"
    if judged is None:
        return f"{where} {tail}; --search says which layouts fit here, if any"
    least = pick(judged.step, int(np.argmin(judged.peak)))
    parts = {part: float(size) for part, size in rank_bytes(least, 0).items()}
    binds = max(parts, key=lambda part: parts[part])
    return (
        f"{recipe.name} fits on no layout of {int(least.gpus):,} {name}: the leanest (tensor {least.tp} x pipeline "
        f"{least.pp} x data {least.dp}) takes {float(np.min(judged.peak)) / GIGA:,.1f} GB a rank of "
        f"{judged.usable / GIGA:,.1f} GB usable, {parts[binds] / GIGA:,.1f} GB of it {binds}; {where} {tail}"
    )


def _smallest(recipe: Recipe, path: Path, machine: Machine) -> int:
    """Nodes of the smallest cluster on which some layout fits, 0 where none is found."""
    free, per_node, usable = space(recipe, path), int(machine.gpus_per_node), usable_bytes(machine.gpu)

    def fits(nodes: int) -> bool:
        step = candidates(free, nodes * per_node)
        return step is not None and bool((peak_bytes(step) <= usable).any())

    high = 1
    while high <= LARGEST_CLUSTER and not fits(high):
        high *= 2
    if high > LARGEST_CLUSTER:
        return 0
    return next(nodes for nodes in range(high // 2 + 1, high + 1) if fits(nodes))


def describe(judged: Judged, index: int) -> dict[str, Any]:
    """One candidate as plain values."""
    step, seconds = pick(judged.step, index), float(judged.seconds[index])
    every = round(1 / float(step.full)) if step.full else 0
    return {
        "tp": int(step.tp),
        "pp": int(step.pp),
        "dp": int(step.dp),
        "micro_batch": int(step.micro_batch),
        "zero_stage": int(step.zero_stage),
        "recompute_every": every,
        "step_seconds": seconds,
        "model_tflops_per_gpu": float(step.model_flops) / seconds / float(step.gpus) / 1e12,
        "peak_bytes": float(judged.peak[index]),
        "fits": bool(judged.fits[index]),
    }


def comparison(recipe: Recipe, path: Path, world: int, machine: Machine, judged: Judged) -> dict[str, Any]:
    """Where the recipe's own layout stands, and which parts of its step cost more than the best one's."""
    try:
        own = judge(stretch(own_step(recipe, path, world), 1), machine)
    except ValueError as error:
        return {"runs": False, "reason": str(error)}
    fitting = np.flatnonzero(judged.fits)
    best = {name: float(value[fitting[0]]) for name, value in judged.timed.parts.items()}
    more = {name: float(value[0]) - best[name] for name, value in own.timed.parts.items()}
    return {
        "runs": True,
        **describe(own, 0),
        "faster_layouts": int((judged.seconds[fitting] < own.seconds[0]).sum()),
        "slower_than_best": float(own.seconds[0] / judged.seconds[fitting[0]] - 1),
        "parts_more_than_best": more,
    }


def _words(row: dict[str, Any]) -> str:
    every = row["recompute_every"]
    recompute = "none" if not every else "all" if every == 1 else f"1 of {every}"
    return (
        f"{row['tp']:6d} {row['pp']:8d} {row['dp']:5d} {row['micro_batch']:11d} {recompute:>9s} {row['zero_stage']:5d} "
        f"{row['step_seconds']:9.3f} {row['model_tflops_per_gpu']:11.1f} {row['peak_bytes'] / GIGA:10.1f}"
    )


def run(recipe: Recipe, path: Path, world: int, machine: Machine | None, top: int, as_json: bool) -> None:
    """Search and print."""
    if machine is None:
        raise ValueError(f"{recipe.name} is planned for no GPU of the catalogue; give --gpu")
    began = time.perf_counter()
    judged = search(recipe, path, world, machine)
    took = time.perf_counter() - began
    own = comparison(recipe, path, world, machine, judged)
    rows = [describe(judged, int(index)) for index in np.flatnonzero(judged.fits)[:top]]
    counts = {"candidates": len(judged.seconds), "fitting": int(judged.fits.sum()), "seconds": took}
    if as_json:
        print(json.dumps({"recipe": recipe.name, "world_size": world, **counts, "layouts": rows, "own": own}))
        return
    print(
        f"{recipe.name} on {world:,} {machine.gpu.name}: {counts['candidates']:,} layouts, {counts['fitting']:,} fit, "
        f"{took:.2f} s"
    )
    print("tensor pipeline  data micro-batch recompute  ZeRO    step s TFLOP/s/GPU    GB/rank")
    for row in rows:
        print(_words(row))
    for line in _why(own):
        print(line)


def _why(own: dict[str, Any]) -> Iterable[str]:
    if not own["runs"]:
        yield f"the recipe's own layout does not run here: {own['reason']}"
        return
    yield _words(own) + "  the recipe's own" + ("" if own["fits"] else ", which does not fit")
    ahead = own["faster_layouts"]
    if not ahead:
        yield "no layout that fits is faster than the recipe's own"
        return
    parts = sorted(own["parts_more_than_best"].items(), key=lambda item: -abs(item[1]))[:3]
    told = ", ".join(f"{name} {seconds:+.2f} s" for name, seconds in parts)
    yield (
        f"{ahead:,} layouts that fit are predicted faster; against the best the recipe's own takes "
        f"{100 * own['slower_than_best']:.1f}% longer: {told}"
    )
