"""The recipes by name."""

import importlib
from pathlib import Path

from recipes.recipe import Recipe
from support.errors import UserError
from support.nearest import hint

ROOT = Path(__file__).resolve().parent.parent


def names() -> list[str]:
    """All recipes, smallest first."""
    found = [path.stem for path in (ROOT / "recipes").glob("gpt_*.py")]
    return sorted(found, key=lambda name: load(name).model.num_parameters)


def load(name: str) -> Recipe:
    """The recipe of that name; `345m` is short for `gpt_345m`. Errors: `UserError` that names the nearest."""
    stem = name.removeprefix("recipes.").removesuffix(".py").replace(".", "_")
    stem = stem if stem.startswith("gpt_") else f"gpt_{stem}"
    if not (ROOT / "recipes" / f"{stem}.py").is_file():
        raise UserError(f"there is no recipe {name!r}; {hint(stem, names())}")
    recipe: Recipe = importlib.import_module(f"recipes.{stem}").RECIPE
    return recipe
