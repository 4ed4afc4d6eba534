"""Several values for the fields of a recipe: the points of a search.

`optimizer.lr=1e-4,3e-4` has two values. In a field that holds commas itself (a blend, betas, stages) a comma belongs to
the value; such a field is given once for each value. So may every other. `optimizer.lr=1e-4..1e-2` is a range to draw
from.
"""

import itertools
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from recipes.recipe import Recipe
from support.errors import UserError

MOST = 1000  # points of a grid: more are a mistake, or a case for draws
RANGE = re.compile(r"([^.\s]\S*?)\.\.(\S+)")


@dataclass(frozen=True)
class Axis:
    """A field and its values, as `--set` takes them, or the bounds to draw from."""

    field: str
    values: tuple[str, ...]
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True)
class Point:
    """What one run of a search is given: settings, and a DeepSpeed JSON where it is not the recipe's."""

    settings: tuple[str, ...]
    deepspeed_config: str | None = None


def axes(recipe: Recipe, settings: Sequence[str]) -> list[Axis]:
    """The fields that settings name, in their order. Errors: `UserError` for what is no setting, and for bad bounds."""
    found: dict[str, Axis] = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        field = field.strip()
        if not equals:
            raise UserError(
                f"--set {setting}: write section.field=value,value, for example --set optimizer.lr=1e-3,3e-3"
            )
        old = _value(recipe, field)
        if isinstance(old, float) and (pair := RANGE.fullmatch(text.strip())):
            if field in found:
                raise UserError(f"--set {setting}: {field} is given twice; give a range alone")
            found[field] = Axis(field, (text.strip(),), _bounds(setting, pair))
            continue
        if field in found and found[field].bounds:
            raise UserError(f"--set {setting}: {field} is given twice; give a range alone")
        whole = field == "data.corpus" or isinstance(old, tuple)
        values = [text] if whole else text.split(",")
        before = found[field].values if field in found else ()
        found[field] = Axis(field, tuple(dict.fromkeys([*before, *(value.strip() for value in values)])))
    return list(found.values())


def _value(recipe: Recipe, field: str) -> object:
    """What a field holds in the recipe; nothing where there is none of that name: `override` says so."""
    section, _, key = field.rpartition(".")
    return getattr(getattr(recipe, section, None) if section else recipe, key, None)


def _bounds(setting: str, pair: re.Match[str]) -> tuple[float, float]:
    try:
        low, high = float(pair[1]), float(pair[2])
    except ValueError:
        low = high = math.nan
    if not 0 < low < high < math.inf:
        raise UserError(f"--set {setting}: write a range as low..high, both above 0, for example 1e-4..1e-2")
    return low, high


def grid(fields: Sequence[Axis], configs: Sequence[str]) -> list[Point]:
    """Every combination, for each JSON, the last field changing fastest.

    Errors: `UserError` for too many, and for a range.
    """
    for axis in fields:
        if axis.bounds:
            raise UserError(f"--set {axis.field}={axis.values[0]}: a range is drawn from; add --random N")
    if (count := _count(fields, configs)) > MOST:
        raise UserError(f"the grid has {count:,} points; give fewer values, or draw some with --random N")
    combined = list(itertools.product(*(axis.values for axis in fields)))
    engines: list[str | None] = [*configs] or [None]
    return [_point(fields, values, engine) for engine in engines for values in combined]


def draws(fields: Sequence[Axis], configs: Sequence[str], count: int, seed: int) -> list[Point]:
    """`count` different points, or all where there are no more: the first ones are the same for every `count`.

    Values are drawn evenly, and from a range so that their logarithms are even, to three digits.
    Errors: `UserError` for a count that cannot be.
    """
    if not 1 <= count <= MOST:
        raise UserError(f"--random is {count}; it must be from 1 to {MOST:,}")
    drawn = _drawn(fields, configs, random.Random(seed))
    if not any(axis.bounds for axis in fields):
        count = min(count, _count(fields, configs))
    found: dict[Point, None] = {}
    for point in itertools.islice(drawn, 100 * MOST):  # narrow bounds have few numbers of three digits
        found[point] = None
        if len(found) == count:
            break
    return list(found)


def _drawn(fields: Sequence[Axis], configs: Sequence[str], source: random.Random) -> Iterator[Point]:
    while True:
        values = [_one(axis, source.random()) for axis in fields]
        config = configs[int(source.random() * len(configs))] if configs else None
        yield _point(fields, values, config)


def _one(axis: Axis, place: float) -> str:
    """A value of an axis at a place from 0 to 1."""
    if axis.bounds is None:
        return axis.values[int(place * len(axis.values))]
    low, high = axis.bounds
    return f"{low * (high / low) ** place:.3g}"


def _count(fields: Sequence[Axis], configs: Sequence[str]) -> int:
    return math.prod(len(axis.values) for axis in fields) * max(1, len(configs))


def _point(fields: Sequence[Axis], values: Sequence[str], config: str | None) -> Point:
    return Point(tuple(f"{axis.field}={value}" for axis, value in zip(fields, values, strict=True)), config)
