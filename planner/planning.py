"""A plan: what a recipe's own layout needs on a cluster, in numbers. Imports no torch.

The formulas are in `planner/memory.py` and `planner/timing.py`; how good they are is in docs/planner.md.
"""

import dataclasses
from pathlib import Path

import numpy as np

from model.engine import config as engine_config
from planner.hardware import GIGA, GPU, TERA, find
from planner.memory import rank_bytes
from planner.resolve import data_degree, resolve_engine
from planner.saving import CHECKPOINT_BYTES, STORAGE_GB_S, saving
from planner.timing import Machine, step_time
from planner.values import MemoryPlan, Plan, SavingPlan, TimePlan
from planner.work import Work, step_of
from recipes.recipe import Batch, Cluster, Recipe, steps_for
from support.errors import UserError

SECONDS_PER_HOUR = 3600.0
USABLE_SHARE = 0.95  # of a GPU's memory; the driver takes some, and the formulas do not count everything


def cluster_machine(cluster: Cluster, network_gb_s: float | None = None) -> Machine | None:
    """The hardware of a cluster, nothing for CPUs. Errors: `UserError` for a GPU that the catalogue does not know."""
    if cluster.gpu == "cpu":
        return None
    gpu = find(cluster.gpu)
    network = (gpu.network_gb_s if network_gb_s is None else network_gb_s) * GIGA
    return Machine(gpu, cluster.gpus_per_node, network, gpu.link_gb_s * GIGA)


def ramp_steps(recipe: Recipe, batch: Batch) -> list[tuple[int, int]]:
    """(global batch, steps with it) in the order of the run, the ramp's smaller ones first."""
    result, before = [], 0
    for number, size in enumerate(batch.ramp):
        end = min(recipe.train_samples, -(-batch.ramp_samples * (number + 1) // len(batch.ramp)))
        after = steps_for(end, batch)
        result.append((size, after - before))
        before = after
    return [*result, (batch.global_batch, steps_for(recipe.train_samples, batch) - before)]


def plan_memory(step: Work, gpu: GPU | None) -> MemoryPlan:
    """Bytes by part of a rank of every pipeline stage; which stage holds most, and whether it fits."""
    stages = np.arange(float(step.pp))
    parts = {name: np.broadcast_to(size, stages.shape) for name, size in rank_bytes(step, stages).items()}
    totals = np.sum(list(parts.values()), axis=0)
    worst = int(np.argmax(totals))
    largest = max(parts, key=lambda name: float(parts[name][worst]))
    parameters = np.broadcast_to(step.parameters(stages), stages.shape)
    blocks = np.broadcast_to(step.blocks(stages), stages.shape)
    result: MemoryPlan = {
        "stages": [
            {
                "blocks": int(blocks[stage]),
                "parameters": int(parameters[stage]),
                "bytes": {name: float(size[stage]) for name, size in parts.items()},
                "total_bytes": float(totals[stage]),
            }
            for stage in range(len(stages))
        ],
        "worst_stage": worst,
        "peak_bytes": float(totals[worst]),
        "largest_part": largest,
    }
    if gpu is not None:
        result["usable_bytes"] = USABLE_SHARE * gpu.memory_gb * GIGA
        result["headroom_bytes"] = result["usable_bytes"] - result["peak_bytes"]
        result["fits"] = result["headroom_bytes"] >= 0
    return result


def plan_time(recipe: Recipe, step: Work, machine: Machine) -> TimePlan:
    """Seconds of a step by part, and what follows for all tokens of the recipe. The ramp's smaller steps count too."""
    timed, gpu = step_time(step, machine), machine.gpu
    seconds, gpus = float(timed.seconds), int(step.gpus)
    model, hardware = float(step.model_flops), float(step.hardware_flops)
    batch = dataclasses.replace(recipe.batch, global_batch=int(step.global_batch))
    sizes, counts = np.array(ramp_steps(recipe, batch), dtype=float).T
    run_seconds = float(np.sum(step_time(dataclasses.replace(step, global_batch=sizes), machine).seconds * counts))
    return {
        "step_seconds": seconds,
        "step_parts": {name: float(value) for name, value in timed.parts.items()},
        "tokens_per_second": float(step.global_batch * step.seq_length) / seconds,
        "model_tflops_per_gpu": model / seconds / gpus / TERA,
        "hardware_tflops_per_gpu": hardware / seconds / gpus / TERA,
        "mfu": model / seconds / gpus / gpu.half_tflops / TERA,
        "run_seconds": run_seconds,
        "days": run_seconds / SECONDS_PER_HOUR / 24,
        "gpu_hours": run_seconds / SECONDS_PER_HOUR * gpus,
        "megawatt_hours": run_seconds / SECONDS_PER_HOUR * gpus * gpu.node_watts / gpu.gpus_per_node / 1e6,
    }


def saves(recipe: Recipe, world_size: int, step_seconds: float, storage_gb_s: float = STORAGE_GB_S) -> SavingPlan:
    """How often a run saves, and what saves and failures cost. Without a step's time (0) what follows from it is left
    out."""
    planned = saving(recipe, world_size, step_seconds, storage_gb_s)
    result: SavingPlan = {
        "storage_gb_s": storage_gb_s,
        "write_seconds": planned.write_seconds,
        "pause_seconds": planned.pause_seconds,
        "hours_between_failures": planned.failure_seconds / SECONDS_PER_HOUR,
    }
    if planned.interval_seconds:
        result["save_minutes"] = planned.interval_seconds / 60
        result["save_share"], result["lost_share"] = planned.save_share, planned.lost_share
    if step_seconds:
        result["save_steps"] = planned.interval_seconds / step_seconds
    return result


def check_precision(gpu: GPU, dtype: str) -> None:
    """Refuse a GPU that cannot compute in that precision. Errors: `UserError` with the remedy."""
    if dtype == "bf16" and not gpu.bf16:
        raise UserError(f"a {gpu.name} has no bf16; give an fp16 JSON with --deepspeed_config")


def own_step(recipe: Recipe, config_path: Path, world_size: int) -> Work:
    """The step of the recipe's own layout. Errors: `UserError` where it does not go with the world size."""
    resolved = resolve_engine(recipe, engine_config.read(config_path), config_path, world_size)
    return step_of(recipe, resolved.json, data_degree(recipe, world_size))


def plan(
    recipe: Recipe,
    config_path: Path,
    world_size: int,
    machine: Machine | None = None,
    storage_gb_s: float = STORAGE_GB_S,
    price: float | None = None,
) -> Plan:
    """A recipe at a world size; with a machine also its memory's limit and its time, and its cost by the GPU-hour.

    Errors: `UserError` where recipe, JSON and world size do not go together.
    """
    config = engine_config.read(config_path)
    resolved = resolve_engine(recipe, config, config_path, world_size)
    degree = data_degree(recipe, world_size)
    step = step_of(recipe, resolved.json, degree)
    values: Plan = {
        "recipe": recipe.name,
        "status": recipe.status,
        "parameters": recipe.model.num_parameters,
        "flops_per_token": recipe.model.flops_per_token,
        "tokens_per_step": resolved.json["train_batch_size"] * recipe.model.seq_length,
        "steps": recipe.train_steps,
        "train_tokens": recipe.schedule.train_tokens,
        "train_flops": recipe.train_flops,
        "world_size": world_size,
        "global_batch": resolved.json["train_batch_size"],
        "micro_batch": resolved.json["train_micro_batch_size_per_gpu"],
        "gradient_accumulation": resolved.json["gradient_accumulation_steps"],
        "precision": resolved.dtype,
        "zero_stage": engine_config.zero_stage(resolved.json),
        "layout": dataclasses.asdict(recipe.layout),
        "data_degree": degree,
        "memory": plan_memory(step, machine.gpu if machine else None),
        "checkpoint_bytes": CHECKPOINT_BYTES * recipe.trained_parameters,
        "deviations": list(resolved.deviations),
    }
    if machine is not None:
        check_precision(machine.gpu, resolved.dtype)
        values["gpu"] = machine.gpu.name
        values["time"] = plan_time(recipe, step, machine)
        if price is not None:
            values |= {"price": price, "cost": price * values["time"]["gpu_hours"]}
    step_seconds = values["time"]["step_seconds"] if machine is not None else 0.0
    values["saving"] = saves(recipe, world_size, step_seconds, storage_gb_s)
    return values
