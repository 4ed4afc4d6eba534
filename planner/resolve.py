"""Recipe and JSON together: the numbers of one in the other, for a world size. Imports no torch."""

from pathlib import Path

from model.engine import config as engine_config
from model.engine.resolve import Resolved, resolve
from recipes.recipe import Recipe
from recipes.registry import short_name
from support.errors import UserError
from support.json_object import JsonObject


def resolve_engine(recipe: Recipe, config: JsonObject, path: Path, world_size: int) -> Resolved:
    """The recipe's numbers in a JSON, for a world size. Errors: `UserError` where the two do not go together."""
    engine_config.check_layout(config, recipe.layout, str(path))
    return resolve(config, recipe.engine_values(), data_degree(recipe, world_size), str(path), recipe.batch.ramp)


def data_degree(recipe: Recipe, world_size: int) -> int:
    """Copies of the model in a world. Errors: `UserError` with what to do where the world is too small."""
    needed = recipe.layout.ranks_per_replica
    if world_size < needed:
        layout = recipe.layout
        raise UserError(
            f"{recipe.name} needs at least {needed} ranks (tp {layout.tp} x pp {layout.pp} x ulysses {layout.ulysses}) "
            f"and was planned for {recipe.cluster.world_size}; here are {world_size}: see what it needs with make "
            f"plan-{short_name(recipe.name)}, or rehearse it here with make rehearse-{short_name(recipe.name)}"
        )
    return recipe.layout.data_degree(world_size)
