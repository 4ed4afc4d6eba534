"""A run on another number of ranks than before: which numbers go, and the run as it is there."""

import dataclasses
from contextlib import suppress
from pathlib import Path

from model.engine.batch import GLOBAL
from model.engine.resolve import Resolved
from planner.resolve import resolve_engine
from planner.worlds import Worlds
from run.directory import Run
from run.record import read_object
from support.errors import UserError
from support.files import write_json

SMALLER = "the micro-batch is"  # how the line begins that says so


def consumed(path: Path) -> int:
    """How many sequences were read before each of the checkpoints from which the run in `path` may go on."""
    from model.checkpoint.format import completed, manifest

    with suppress(UserError, KeyError, TypeError, ValueError, AttributeError):
        return min(int(manifest(each)["state"]["consumed_samples"]) for each in completed(path / "checkpoints"))
    return 0


def resolved_on(path: Path, worlds: Worlds, world: int) -> Resolved:
    """The JSON of the run in `path` on `world` ranks. Where the micro-batch follows from them, that is a deviation.

    Errors: `UserError` with the nearest numbers of ranks that go, or with all that is wrong where none does.
    """
    recipe = worlds.fitted(world)
    if recipe is None and (nearest := worlds.nearest(world)):
        raise UserError(
            f"{path} cannot go on with {world} ranks: {_why(worlds, world)}; give --processes "
            f"{' or '.join(map(str, nearest))}, or a hostfile with so many slots"
        )
    resolved = resolve_engine(recipe or worlds.recipe, worlds.config, worlds.path, world, worlds.consumed)
    own = worlds.recipe.batch.micro_batch
    if recipe is None or recipe.batch.micro_batch == own:
        return resolved
    line = f"{SMALLER} {recipe.batch.micro_batch} (recipe: {own}), so that {world} ranks take the same steps"
    return dataclasses.replace(resolved, deviations=(*resolved.deviations, line))


def _why(worlds: Worlds, world: int) -> str:
    """Why a world does not go, without a remedy."""
    layout = worlds.recipe.layout
    each = layout.ranks_per_replica
    if world % each:
        return f"its layout tp {layout.tp} x pp {layout.pp} x ulysses {layout.ulysses} takes a multiple of {each}"
    for size in (worlds.batch, *worlds.recipe.batch.ahead(worlds.consumed)):
        if size % (world // each):
            of_ramp = "" if size == worlds.batch else " of the ramp"
            return f"its global batch {size}{of_ramp} does not divide by the data degree {world // each}"
    try:
        resolve_engine(worlds.recipe, worlds.config, worlds.path, world, worlds.consumed)
    except UserError as error:
        return str(error).partition(";")[0]
    return f"its steps would not have {worlds.batch} sequences"


def on_at_most(run: Run, most: int) -> Run | None:
    """A run on the most ranks, up to `most`, that take the same steps; None where no number does. Writes nothing."""
    batch, json = run.engine.json[GLOBAL], run.path / "ds_config.json"
    worlds = Worlds(run.recipe, run.engine_json, json, batch, consumed(run.path))
    world = worlds.largest(most)
    if world is None:
        return None
    kept = [line for line in run.engine.deviations if not line.startswith(SMALLER)]
    engine = resolved_on(run.path, worlds, world)
    lines = dict.fromkeys((*kept, *engine.deviations))
    return dataclasses.replace(run, world_size=world, engine=dataclasses.replace(engine, deviations=tuple(lines)))


def write(run: Run) -> None:
    """Have the run directory say how many ranks the run has now, for the ranks that are launched next."""
    write_json(run.path / "ds_config.resolved.json", run.engine.json)
    start = read_object(run.path / "start.json")
    facts = {"world_size": run.world_size, "deviations": list(run.engine.deviations), "notes": list(run.engine.notes)}
    write_json(run.path / "start.json", {**start, **facts})
