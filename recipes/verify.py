"""Proof of a plan: build every distinct rank and count. Needs torch and DeepSpeed, no GPU, and seconds.

A rank's part of the model is built by the code that training runs, through DeepSpeed's PipelineModule where there is a
pipeline, on torch's meta device and over a process group that is the full world's size and sends nothing.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np

from model import engine_config
from model.work import work
from recipes.recipe import Recipe
from recipes.run import resolve_engine


def verify(recipe: Recipe, path: Path, world: int) -> dict[str, Any]:
    """Parameters and bytes of the weights of each distinct rank, beside the closed form's.

    Tensor and data ranks of a pipeline stage hold slices of the same shapes, so one of each stage is built. Errors:
    `ValueError` that names the rank where the two differ.
    """
    resolved = resolve_engine(recipe, engine_config.read(path), path, world)
    layout, degree = recipe.layout, recipe.layout.data_degree(world)
    step = work(recipe.model, layout, resolved.json, degree)
    per_stage = world // layout.pp
    began, stages = time.perf_counter(), []
    for stage in range(layout.pp):
        count, size = _build(recipe, resolved.json, world, stage * per_stage, resolved.dtype)
        expected = round(float(step.parameters(np.asarray(stage))))
        row = {
            "rank": stage * per_stage,
            "identical_ranks": per_stage,
            "parameters": count,
            "planned_parameters": expected,
            "weight_bytes": size,
            "planned_weight_bytes": expected * step.weight_bytes,
        }
        if count != expected or size != row["planned_weight_bytes"]:
            raise ValueError(
                f"rank {row['rank']} (pipeline stage {stage + 1}) holds {count:,} parameters in {size:,} bytes where "
                f"{expected:,} in {row['planned_weight_bytes']:,} were planned; the closed form in model/work.py is wrong"
            )
        stages.append(row)
    return {"world_size": world, "built": len(stages), "seconds": time.perf_counter() - began, "ranks": stages}


def _build(recipe: Recipe, engine: dict[str, Any], world: int, rank: int, dtype: str) -> tuple[int, int]:
    """Parameters of a rank's part of the model and their bytes."""
    import torch
    import torch.distributed as dist

    from model.engine import on_meta

    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    try:
        module = on_meta(recipe.model, recipe.layout, engine, world, rank, kind)
        parameters = list(module.parameters())
        return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)
    finally:
        dist.destroy_process_group()


def show(verified: dict[str, Any]) -> None:
    """Print what was built."""
    ranks = verified["ranks"]
    total = sum(row["parameters"] for row in ranks)
    print(
        f"  verified                  {verified['built']} distinct ranks of {verified['world_size']:,} built in "
        f"{verified['seconds']:.1f} s: each has exactly the planned parameters ({total:,} in all of one tensor rank) and "
        f"bytes"
    )
