"""Two recipes side by side: what their fields, and their JSONs as DeepSpeed gets them, do not share."""

import dataclasses
from typing import Any

from model.engine import config as engine_config
from planner.resolve import resolve_engine
from recipes.recipe import Recipe
from recipes.registry import ROOT
from recipes.settings import spelled
from support.json_object import JsonObject


def compare(a: Recipe, b: Recipe) -> JsonObject:
    """The fields in which two recipes differ, and the keys in which their resolved JSONs do.

    A JSON is resolved for the recipe's reference cluster. What only one of the two has is None in the other.
    """
    return {
        "a": a.name,
        "b": b.name,
        "recipe": _different(_fields(a), _fields(b)),
        "json": _different(_resolved(a), _resolved(b)),
    }


def _fields(recipe: Recipe) -> JsonObject:
    values = dataclasses.asdict(recipe)
    values["data"]["corpus"] = spelled(recipe.data.corpus)  # as --set takes it
    return {path: value for path, value in _flat(values).items() if path != "name"}


def _resolved(recipe: Recipe) -> JsonObject:
    path = ROOT / recipe.engine
    return _flat(resolve_engine(recipe, engine_config.read(path), path, recipe.cluster.world_size).json)


def _flat(values: JsonObject, above: str = "") -> JsonObject:
    """Leaves by their path; a list is a leaf."""
    found: JsonObject = {}
    for key, value in values.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}": value}
    return found


def _different(a: JsonObject, b: JsonObject) -> list[JsonObject]:
    def plain(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    rows = [{"field": path, "a": plain(a.get(path)), "b": plain(b.get(path))} for path in dict.fromkeys([*a, *b])]
    return [row for row in rows if row["a"] != row["b"]]
