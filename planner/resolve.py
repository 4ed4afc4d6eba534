"""Recipe and JSON together: the numbers of one in the other, for a world size. Imports no torch."""

import math
from pathlib import Path
from typing import TypedDict

from model.engine import config as engine_config
from model.engine.problems import JsonError
from model.engine.resolve import Resolved, resolve
from recipes.recipe import Recipe, steps_for
from recipes.registry import ROOT, short_name
from support.errors import UserError
from support.json_object import JsonObject


def resolve_engine(recipe: Recipe, config: JsonObject, path: Path, world_size: int) -> Resolved:
    """Check a JSON and put the recipe's numbers into it, for a world size.

    Errors: `UserError` with all that is wrong in the JSON, and where the two do not go together.
    """
    degree = data_degree(recipe, world_size)
    return resolve(config, engine_values(recipe), degree, str(path), recipe.batch.ramp, recipe.layout)


def engine_values(recipe: Recipe) -> JsonObject:
    """What the recipe fills into the JSON's "auto": its own numbers, and what follows from them.

    Sizes that follow from the model's width are those of the Hugging Face integration. The precision and the clipping
    are those of the recipe's own JSON.
    """
    width, steps = recipe.model.hidden_size, recipe.train_steps
    warmup = steps_for(math.ceil(recipe.schedule.warmup_tokens / recipe.model.seq_length), recipe.batch)
    zero, scheduler = "zero_optimization", "scheduler.params"
    return {
        **recipe.engine_values(),
        **_own_json(recipe),
        f"{zero}.reduce_bucket_size": width * width,
        f"{zero}.stage3_prefetch_bucket_size": 9 * width * width // 10,
        f"{zero}.stage3_param_persistence_threshold": 10 * width,
        f"{scheduler}.warmup_num_steps": max(1, min(warmup, steps)),
        f"{scheduler}.total_num_steps": steps,
        f"{scheduler}.cos_min_ratio": recipe.schedule.min_lr_ratio,
    }


def _own_json(recipe: Recipe) -> JsonObject:
    """What the recipe's own JSON says plainly; nothing where it is not there any more."""
    try:
        own = engine_config.parse(ROOT / recipe.engine)
        values: JsonObject = {"precision": engine_config.precision(own)}
        clipping = own.get("gradient_clipping")
        return values | ({"gradient_clipping": clipping} if type(clipping) in (int, float) else {})
    except (UserError, AttributeError):
        return {}


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


class Wrong(TypedDict):
    """A problem of a JSON; `line` is null where its key does not stand in the file."""

    file: str
    line: int | None
    key: str
    what: str
    remedy: str


class Checked(TypedDict):
    """What `stagecraft check` says. Either there are problems, or `resolved` is what DeepSpeed would get."""

    file: str
    recipe: str
    world_size: int
    problems: list[Wrong]
    deviations: list[str]
    notes: list[str]
    resolved: JsonObject


def checked(recipe: Recipe, path: Path, world_size: int) -> Checked:
    """All that is wrong with a JSON for a recipe and a number of ranks, or what it resolves to.

    Errors: `UserError` where the file is no JSON, or the world does not hold the recipe.
    """
    values: Checked = {
        "file": str(path),
        "recipe": recipe.name,
        "world_size": world_size,
        "problems": [],
        "deviations": [],
        "notes": [],
        "resolved": {},
    }
    try:
        resolved = resolve_engine(recipe, engine_config.parse(path), path, world_size)
    except JsonError as error:
        each = (
            Wrong(file=each.file, line=each.line, key=each.key, what=each.what, remedy=each.remedy)
            for each in error.problems
        )
        return {**values, "problems": list(each)}
    return {
        **values,
        "deviations": list(resolved.deviations),
        "notes": list(resolved.notes),
        "resolved": resolved.json,
    }
