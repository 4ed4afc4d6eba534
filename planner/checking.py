"""What `stagecraft check` says of a JSON: all that is wrong, or what it resolves to for a recipe. Imports no torch."""

from pathlib import Path
from typing import TypedDict

from model.engine import config as engine_config
from model.engine.problems import JsonError
from model.engine.table import ROWS
from planner.resolve import own_json, resolve_engine
from recipes.recipe import Recipe
from support.errors import UserError
from support.json_object import JsonObject


class Wrong(TypedDict):
    """A problem of a JSON; `line` is null where nothing of its key stands in the file."""

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
    differences: list[str]
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
        "differences": [],
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
        "differences": _differences(recipe, resolved.json, world_size),
        "resolved": resolved.json,
    }


def _differences(recipe: Recipe, resolved: JsonObject, world_size: int) -> list[str]:
    """A line for each key in which a resolved JSON differs from the recipe's own, where that one resolves.

    A key that does not stand in one of them has its default there.
    """
    path = own_json(recipe)
    try:
        own = _flat(resolve_engine(recipe, engine_config.parse(path), path, world_size).json)
    except UserError:
        return []
    mine = _flat(resolved)
    usual = {key: "unset" if ROWS[key].default is None else ROWS[key].default for key in {**mine, **own}}
    pairs = {key: (mine.get(key, default), own.get(key, default)) for key, default in usual.items()}
    return [f"{key} is {here} (there: {there})" for key, (here, there) in pairs.items() if here != there]


def _flat(config: JsonObject, prefix: str = "") -> JsonObject:
    result: JsonObject = {}
    for key, value in config.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result
