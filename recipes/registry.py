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
    """The recipe of that name or short name. Errors: `UserError` that names the nearest."""
    stem = name.removeprefix("recipes.").removesuffix(".py").replace(".", "_")
    known = _stems()
    found = next((each for each in known if stem in (each, short_name(each).replace(".", "_"))), None)
    if found is None:
        whole = stem if stem.startswith("gpt_") else f"gpt_{stem}"
        raise UserError(f"there is no recipe {name!r}; {hint(whole, names())}")
    return _read(found)


def _stems() -> list[str]:
    files = (ROOT / "recipes").glob("*.py")
    return [path.stem for path in files if DECLARED.search(path.read_text(encoding="utf-8"))]


def _read(name: str) -> Recipe:
    recipe: Recipe = importlib.import_module(f"recipes.{name}").RECIPE
    return recipe
