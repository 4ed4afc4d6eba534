"""Which clusters a recipe runs on as it is. Imports no torch."""

from pathlib import Path

from model.engine import config as engine_config
from model.engine.resolve import filled
from planner.planning import own_step
from planner.resolve import engine_values
from planner.timing import Machine
from recipes.recipe import Recipe
from support.errors import UserError


def check_ranks(recipe: Recipe, path: Path, world: int, machine: Machine | None, unit: int) -> None:
    """Refuse a cluster that the recipe's own layout and batch do not go with.

    `unit` is the ranks of a node, or 1 where ranks were asked for. Errors: `UserError` with the smallest cluster that
    does where this one is too small, else with the nearest ones.
    """
    layout, needed = recipe.layout, recipe.layout.ranks_per_replica
    cut = f"tp {layout.tp} x pp {layout.pp} x ulysses {layout.ulysses} = {needed}"
    if world < needed:
        more = f"give --world-size {needed} or more"
        if machine is not None:
            from planner.search import remedy

            more = remedy(recipe, path, world, machine)
        raise UserError(f"{recipe.name}'s layout {cut} needs at least {needed} ranks, here are {world}; {more}")
    try:
        own_step(recipe, path, world)
    except UserError as error:
        close = _nearest(recipe, path, world, unit)
        if not close:
            raise
        what = " or ".join(f"{size // unit:,}" for size in close)
        what += " ranks" if unit == 1 else f" nodes of {unit}"
        reason = str(error) if world % needed == 0 else f"layout {cut} does not divide {world} ranks"
        raise UserError(f"{reason}; the nearest clusters that go with layout and batch: {what}") from None


def _nearest(recipe: Recipe, path: Path, world: int, unit: int) -> list[int]:
    """The next smaller and the next larger number of ranks, in whole units, that the recipe runs on as it is."""
    batch = filled(engine_config.read(path), engine_values(recipe)).get("train_batch_size", "auto")
    batch = recipe.batch.global_batch if batch == "auto" else batch
    sizes = [recipe.layout.ranks_per_replica * degree for degree in range(1, batch + 1) if batch % degree == 0]

    def runs(size: int) -> bool:
        try:
            own_step(recipe, path, size)
        except UserError:
            return False
        return True

    whole = [size for size in sizes if size % unit == 0]
    below = next((size for size in reversed(whole) if size < world and runs(size)), None)
    above = next((size for size in whole if size > world and runs(size)), None)
    return [size for size in (below, above) if size is not None]
