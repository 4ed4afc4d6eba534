"""Proof of a plan: build every distinct rank and count. Needs torch and DeepSpeed, no GPU, and seconds.

A rank's part of the model is built by the code that training runs, through DeepSpeed's PipelineModule where there is a
pipeline, on torch's meta device and over a process group that is the full world's size and sends nothing.
"""

import time
from pathlib import Path

import numpy as np

from model.engine import config as engine_config
from planner.planning import own_step
from planner.resolve import resolve_engine
from planner.values import BuiltRank, Proof
from recipes.recipe import Recipe
from support.errors import UserError
from support.json_object import JsonObject


def verify(recipe: Recipe, path: Path, world: int) -> Proof:
    """Parameters and bytes of the weights of each distinct rank, beside the closed form's.

    Tensor and data ranks of a pipeline stage hold slices of the same shapes, so one of each stage is built. Errors:
    `UserError` that names the rank where the two differ.
    """
    resolved = resolve_engine(recipe, engine_config.read(path), path, world)
    layout, step = recipe.layout, own_step(recipe, path, world)
    per_stage = world // layout.pp
    began, ranks = time.perf_counter(), list[BuiltRank]()
    for stage in range(layout.pp):
        count, size = _build(recipe, resolved.json, world, stage * per_stage, resolved.dtype)
        expected = round(float(step.parameters(np.asarray(stage))))
        row: BuiltRank = {
            "rank": stage * per_stage,
            "identical_ranks": per_stage,
            "parameters": count,
            "planned_parameters": expected,
            "weight_bytes": size,
            "planned_weight_bytes": expected * int(step.weight_bytes),
        }
        if count != expected or size != row["planned_weight_bytes"]:
            raise UserError(
                f"rank {row['rank']} (pipeline stage {stage + 1}) holds {count:,} parameters in {size:,} bytes where "
                f"{expected:,} in {row['planned_weight_bytes']:,} were planned; planner/work.py has to be mended"
            )
        ranks.append(row)
    return {"world_size": world, "built": len(ranks), "seconds": time.perf_counter() - began, "ranks": ranks}


def _build(recipe: Recipe, engine: JsonObject, world: int, rank: int, dtype: str) -> tuple[int, int]:
    """Parameters of a rank's part of the model and their bytes."""
    from model.engine.build import quiet_deepspeed
    from model.engine.config import recomputed_blocks
    from model.engine.precision import DTYPES

    quiet_deepspeed()
    from model.pipeline import meta_model, pretended_world

    recompute = recomputed_blocks(engine.get("activation_checkpointing", {}), recipe.model.num_layers)
    with pretended_world(recipe.layout, world, rank) as grid:
        parameters = list(meta_model(recipe.model, grid, recompute, DTYPES[dtype]).parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)
