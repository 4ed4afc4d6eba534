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
from model.work import Number, Work, work
from recipes.plan import USABLE, own_step
from recipes.recipe import Recipe
from recipes.timing import Machine, StepTime, step_time

TENSOR = (1, 2, 4, 8, 16)
MICRO = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
EVERY = (0, 1, 2, 3, 4)  # every n-th block is recomputed; 0: none
LARGEST_CLUSTER = 1 << 16  # nodes: where the search for a cluster that fits gives up


def candidates(base: Work, recipe: Recipe, world: Number) -> Work | None:
    """Every layout that this project can run on `world` ranks: arrays; `base` says the rest.

    The limits are those of `Layout.check`, `engine_config.check_layout` and the batch arithmetic; a pipeline goes with
    ZeRO stage 1. Ulysses stays as the recipe has it.
    """
    model, ulysses = recipe.model, recipe.layout.ulysses
    tp, pp, micro, every, zero = (
        axis.ravel()
        for axis in np.meshgrid(
            np.array(TENSOR), np.arange(1, model.num_layers + 1), np.array(MICRO), np.array(EVERY), np.arange(1, 4),
            indexing="ij", copy=False,
        )
    )  # fmt: skip
    cut = tp * pp * ulysses
    good = (world % cut == 0) & (model.num_attention_heads % (tp * ulysses) == 0) & (model.ffn_hidden_size % tp == 0)
    good &= (model.padded_vocab_size % tp == 0) & (model.seq_length % (tp * ulysses) == 0)
    good &= ((zero == 1) | (pp == 1)) & (base.global_batch % (np.maximum(world // cut, 1) * micro) == 0)
    if not good.any():
        return None
    tp, pp, micro, every, zero = tp[good], pp[good], micro[good], every[good], zero[good]
    last = {stages: _last_blocks(recipe, stages) for stages in set(pp.tolist())}
    share = np.where(every > 0, np.ceil(model.num_layers / np.maximum(every, 1)) / model.num_layers, 0.0)
    varied = {
        "tp": tp,
        "pp": pp,
        "dp": world // (tp * pp * ulysses),
        "sequence_parallel": tp > 1,
        "micro_batch": micro,
        "full": share,
        "selective": np.zeros(len(tp)),
        "zero_stage": zero,
        "last_blocks": np.array([last[stages] for stages in pp.tolist()]),
        # Only stage 1 adds bf16 gradients up in fp32 beside them; stages 2 and 3 keep one copy.
        "gradient_bytes": np.where(zero == 1, base.gradient_bytes, np.minimum(base.gradient_bytes, 4)),
    }
    return stretch(dataclasses.replace(base, **varied), len(tp))


def stretch(step: Work, length: int) -> Work:
    """The same with an array of that length in every field."""
    return Work(**{f.name: np.broadcast_to(getattr(step, f.name), length) for f in dataclasses.fields(Work)})


def pick(step: Work, index: Any) -> Work:
    """Some of the candidates, or one."""
    return Work(**{f.name: getattr(step, f.name)[index] for f in dataclasses.fields(Work)})


def _last_blocks(recipe: Recipe, stages: int) -> int:
    cuts = stage_boundaries(recipe.model, stages)
    return cuts[-1] - cuts[-2] - (4 if stages == 1 else 2)


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


def _base(recipe: Recipe, path: Path) -> Work:
    """What all candidates share. Taken from the smallest world that the JSON can be resolved for."""
    plain = dataclasses.replace(recipe, layout=Layout(ulysses=recipe.layout.ulysses))
    config = engine_config.read(path)
    values = {**recipe.engine_values(), "train_micro_batch_size_per_gpu": 1}
    single = {**config, "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
    resolved = engine_config.resolve(single, values, 1, str(path))
    return work(recipe.model, plain.layout, resolved.json, 1)


def search(recipe: Recipe, path: Path, world: int, machine: Machine) -> Judged:
    """All candidates of a cluster, fastest first. Errors: `ValueError` where none divides the cluster, or none fits."""
    step = candidates(_base(recipe, path), recipe, world)
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
        return f"{where} {tail}; --search lists the layouts that fit this one"
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
    base, per_node, usable = _base(recipe, path), int(machine.gpus_per_node), usable_bytes(machine.gpu)

    def fits(nodes: int) -> bool:
        step = candidates(base, recipe, nodes * per_node)
        return step is not None and bool((peak_bytes(step) <= usable).any())

    high = 1
    while high <= LARGEST_CLUSTER and not fits(high):
        high *= 2
    if high > LARGEST_CLUSTER:
        return 0
    return next(nodes for nodes in range(high // 2 + 1, high + 1) if fits(nodes))


def describe(judged: Judged, index: int, machine: Machine) -> dict[str, Any]:
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
        **describe(own, 0, machine),
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
    rows = [describe(judged, int(index), machine) for index in np.flatnonzero(judged.fits)[:top]]
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
