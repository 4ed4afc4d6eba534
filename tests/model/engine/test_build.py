"""DeepSpeed reads a JSON before there is any rank, as it will among all of them."""

import copy
from typing import Any

import pytest

from model.engine import config as engine_config
from model.engine.build import check_json
from model.layout import Layout
from planner.resolve import resolve_engine
from recipes.recipe import Recipe
from recipes.registry import ROOT, load, names
from recipes.settings import override


def resolved(recipe: Recipe, world_size: int) -> dict[str, Any]:
    path = ROOT / recipe.engine
    return resolve_engine(recipe, engine_config.read(path), path, world_size).json


def test_every_recipe_is_accepted_on_its_cluster() -> None:
    for recipe in map(load, names()):
        check_json(resolved(recipe, recipe.cluster.world_size), recipe.layout, recipe.cluster.world_size)


@pytest.mark.parametrize("settings", [["layout.ulysses=2"], ["layout.tp=2", "layout.ulysses=2"], ["layout.tp=4"]])
def test_the_pretended_world_is_split_as_the_real_one(settings: list[str]) -> None:
    """DeepSpeed holds its batch against its count of data ranks, to which the Ulysses ranks belong."""
    recipe = override(load("345m"), settings)
    check_json(resolved(recipe, 8), recipe.layout, 8)
    with pytest.raises(ValueError, match="Check batch related parameters"):
        check_json(resolved(recipe, 8), recipe.layout, 16)


@pytest.mark.parametrize(("wrong", "words"), [
    ({"bf16": {"enabled": True, "bf16_optimizer_states": True}}, "requires bf16_master_weights_and_grads"),
    ({"zero_optimization": {"stage": 7}}, "Input should be 0, 1, 2, 3 or 3"),
    ({"checkpoint": 3}, "AttributeError: 'int' object has no attribute 'get'"),
    ({"comms_logger": 3}, "TypeError: .* must be a mapping"),
])  # fmt: skip
def test_what_deepspeed_refuses_is_known_before_there_are_ranks(wrong: dict[str, Any], words: str) -> None:
    ds_config = resolved(load("345m"), 8)
    before = copy.deepcopy(ds_config)
    with pytest.raises(ValueError, match=f"(?s)DeepSpeed refuses this JSON: .*{words}"):
        check_json(ds_config | wrong, Layout(), 8)
    assert ds_config == before
