"""Recipe and JSON together: the numbers of one in the other, for a world size. Imports no torch."""

import math
from pathlib import Path

from model.engine import config as engine_config
from model.engine.normal import Normal
from model.engine.resolve import Resolved, resolve
from recipes.recipe import Recipe, steps_for
from recipes.registry import ROOT, short_name
from support.errors import UserError
from support.json_object import JsonObject


def resolve_engine(
    recipe: Recipe, config: JsonObject, path: Path, world_size: int, consumed_samples: int = 0
) -> Resolved:
    """Check a JSON and put the recipe's numbers into it, for a world size.

    After `consumed_samples` the batches of the ramp that lie behind need not divide any more. Errors: `UserError` with
    all that is wrong in the JSON, and where the two do not go together.
    """
    degree = data_degree(recipe, world_size)
    ramp = recipe.batch.ahead(consumed_samples)
    return resolve(config, engine_values(recipe), degree, str(path), ramp, recipe.layout)


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
        **_from_own_json(recipe),
        f"{zero}.reduce_bucket_size": width * width,
        f"{zero}.stage3_prefetch_bucket_size": 9 * width * width // 10,
        f"{zero}.stage3_param_persistence_threshold": 10 * width,
        f"{scheduler}.warmup_num_steps": max(1, min(warmup, steps)),
        f"{scheduler}.total_num_steps": steps,
        f"{scheduler}.cos_min_ratio": recipe.schedule.min_lr_ratio,
    }


def own_json(recipe: Recipe) -> Path:
    """The JSON that a recipe names: from the working directory, else from the project."""
    return Path(recipe.engine) if Path(recipe.engine).exists() else ROOT / recipe.engine


def _from_own_json(recipe: Recipe) -> JsonObject:
    """What the recipe's own JSON says plainly; nothing where it is not there any more."""
    try:
        own = Normal(engine_config.parse(own_json(recipe))).json
    except UserError:
        return {}
    values: JsonObject = {"precision": engine_config.precision(own)}
    clipping = own.get("gradient_clipping", "auto")
    return values if clipping == "auto" else {**values, "gradient_clipping": clipping}


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
