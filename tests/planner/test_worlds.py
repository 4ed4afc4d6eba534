"""On how many ranks a run can go on, for all recipes and for JSONs that say more than a recipe does."""

from pathlib import Path
from typing import Any

import pytest

from model.engine import config as engine_config
from planner.resolve import resolve_engine
from planner.worlds import Worlds
from recipes.recipe import Recipe
from recipes.registry import ROOT, load, names
from recipes.settings import override


def worlds(recipe: Recipe, consumed: int = 0, **config: Any) -> Worlds:
    path = ROOT / recipe.engine
    batch = recipe.batch.global_batch
    return Worlds(
        recipe, {**engine_config.parse(path), **config}, path, config.get("train_batch_size", batch), consumed
    )


def after_the_ramp(recipe: Recipe) -> int:
    return recipe.batch.ramp_samples


@pytest.mark.parametrize("name", names())
def test_every_recipe_loses_ranks(name: str) -> None:
    """By arithmetic alone: the data degree divides the global batch, and what is left of the ramp."""
    recipe = load(name)
    each, full = recipe.layout.ranks_per_replica, recipe.cluster.world_size
    for consumed, ramp in ((0, recipe.batch.ramp), (after_the_ramp(recipe), ())):
        subject = worlds(recipe, consumed)
        degrees = [d for d in range(1, full // each + 1) if not any(b % d for b in (recipe.batch.global_batch, *ramp))]
        for most in {full, full - 1, max(1, full - 8), each, each - 1}:
            assert subject.largest(most) == max((d * each for d in degrees if d * each <= most), default=None)
        world = subject.largest(full - 1) or full
        fitted = subject.fitted(world)
        assert fitted
        resolved = resolve_engine(fitted, subject.config, subject.path, world, consumed).json
        sizes = [resolved[f"train_{key}"] for key in ("batch_size", "micro_batch_size_per_gpu")]
        assert sizes[0] == recipe.batch.global_batch and sizes[1] <= recipe.batch.micro_batch
        assert sizes[0] == sizes[1] * resolved["gradient_accumulation_steps"] * (world // each)


def test_530b_after_a_board_a_node_and_a_replica() -> None:
    """Its ramp begins with 32 sequences, so then a data degree of 6 does not go; afterwards 1,920 / 6 = 320 does."""
    recipe = load("gpt_530b")
    begins, grown = worlds(recipe), worlds(recipe, after_the_ramp(recipe))
    assert [begins.largest(most) for most in (2240, 2239, 2232, 1119, 279)] == [2240, 1120, 1120, 560, None]
    assert [grown.largest(most) for most in (2240, 2239, 2232, 1679, 279)] == [2240, 1680, 1680, 1400, None]
    assert grown.nearest(2239) == [1680, 2240] and grown.nearest(100) == [280]


def test_the_micro_batch_follows_and_grows_no_larger() -> None:
    recipe = override(load("tiny"), ["batch.global_batch=12", "batch.micro_batch=4"])
    micros = {world: fitted and fitted.batch.micro_batch for world in range(1, 13)
              if (fitted := worlds(recipe).fitted(world))}  # fmt: skip
    assert micros == {1: 4, 2: 3, 3: 4, 4: 3, 6: 2, 12: 1}
    assert worlds(recipe).nearest(5) == [4, 6] and worlds(recipe).nearest(13) == [12]


def test_what_the_json_gives_stays() -> None:
    recipe = override(load("tiny"), ["batch.global_batch=12", "batch.micro_batch=4"])
    micro = worlds(recipe, train_micro_batch_size_per_gpu=4)
    assert [world for world in range(1, 13) if micro.fitted(world)] == [1, 3]
    steps = worlds(recipe, gradient_accumulation_steps=2)
    assert [world for world in range(1, 13) if steps.fitted(world)] == [2, 3, 6]
    both = worlds(recipe, gradient_accumulation_steps=2, train_micro_batch_size_per_gpu=2)
    assert [world for world in range(1, 13) if both.fitted(world)] == [3]
    batch = worlds(recipe, train_batch_size=10)
    assert [world for world in range(1, 13) if batch.fitted(world)] == [1, 2, 5, 10]
    hpz = override(recipe, ["engine=ds_configs/zero3_hpz_bf16.json"])
    parts = engine_config.parse(ROOT / hpz.engine)["zero_optimization"] | {"zero_hpz_partition_size": 2}
    assert [w for w in range(1, 13) if worlds(hpz, zero_optimization=parts).fitted(w)] == [1, 2, 4, 6, 12]


def test_a_json_that_runs_nowhere_has_no_world(tmp_path: Path) -> None:
    broken = worlds(load("tiny"), zero_optimization={"stage": 9})
    assert broken.largest(4) is None and broken.nearest(4) == []
