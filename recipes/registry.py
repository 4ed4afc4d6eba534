"""The recipes there are. A recipe is any file in this folder that assigns `RECIPE`; nothing else lists them."""

import importlib
import re
from pathlib import Path

from recipes.recipe import Recipe
from support.errors import UserError
from support.nearest import hint

ROOT = Path(__file__).resolve().parent.parent
DECLARED = re.compile(r"^RECIPE\b", re.MULTILINE)


def names() -> list[str]:
    """All recipes, smallest first."""
    return sorted(_stems(), key=lambda name: _read(name).model.num_parameters)


def short_name(name: str) -> str:
    """The recipe's name on a make command line: `gpt_1_3b` is `1.3b` there. The Makefile's SIZES does the same."""
    return name.removeprefix("gpt_").replace("_", ".")


def load(name: str) -> Recipe:
    """The recipe of that name or short name.

    Errors: `UserError` that names the nearest, or what is wrong with the recipe's file.
    """
    stem = name.removeprefix("recipes.").removesuffix(".py").replace(".", "_")
    known = _stems()
    short = (each for each in known if stem == short_name(each).replace(".", "_"))
    found = stem if stem in known else next(short, None)
    if found is None:
        whole = stem if stem.startswith("gpt_") else f"gpt_{stem}"
        raise UserError(f"there is no recipe {name!r}; {hint(whole, known)}")
    recipe = _read(found)
    if recipe.name != found:  # a copy would train under the name of what it was copied from
        raise UserError(
            f'recipes/{found}.py: the recipe\'s name is {recipe.name}; write name="{found}", as the file is called'
        )
    return recipe


def _stems() -> list[str]:
    files = (ROOT / "recipes").glob("*.py")
    return sorted(path.stem for path in files if DECLARED.search(path.read_text(encoding="utf-8", errors="replace")))


def _read(name: str) -> Recipe:
    try:
        recipe: Recipe = importlib.import_module(f"recipes.{name}").RECIPE
    except Exception as error:  # whoever edits a recipe can mistype anything
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"recipes/{name}.py: {said}") from error
    return recipe
