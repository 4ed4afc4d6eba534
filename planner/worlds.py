"""On how many ranks a run can go on: the data degree follows from them, and every step keeps its samples.

The micro-batch may become smaller, and the accumulation longer. The layout, the ZeRO stage and the global batch stay.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from model.engine.batch import GLOBAL, MICRO, STEPS
from planner.resolve import resolve_engine
from recipes.recipe import Recipe
from support.errors import UserError
from support.json_object import JsonObject


@dataclass(frozen=True)
class Worlds:
    """The numbers of ranks on which a recipe takes steps of `batch` sequences after `consumed` of them.

    `config` is the JSON as it was given, in the file `path`: a micro-batch or an accumulation that it gives stays.
    """

    recipe: Recipe
    config: JsonObject
    path: Path
    batch: int
    consumed: int = 0

    def fitted(self, world: int) -> Recipe | None:
        """The recipe with the largest micro-batch, up to its own, that goes with `world` ranks; None if none does."""
        degree, rest = divmod(world, self.recipe.layout.ranks_per_replica)
        micro = None if rest or degree < 1 else self._micro(degree)
        if micro is None:
            return None
        result = replace(self.recipe, batch=replace(self.recipe.batch, micro_batch=micro))
        try:
            resolved = resolve_engine(result, self.config, self.path, world, self.consumed)
        except UserError:  # the JSON cannot run in such a world
            return None
        return result if resolved.json[GLOBAL] == self.batch else None

    def largest(self, most: int) -> int | None:
        """The most ranks up to `most` that go; None where no number does."""
        each = self.recipe.layout.ranks_per_replica
        return self._first(range(min(most // each, self.batch), 0, -1))

    def nearest(self, world: int) -> list[int]:
        """The nearest numbers of ranks below and above `world` that go: two, one or none."""
        above = self._first(range(world // self.recipe.layout.ranks_per_replica + 1, self.batch + 1))
        return [size for size in (self.largest(world - 1), above) if size]

    def _first(self, degrees: Iterable[int]) -> int | None:
        worlds: Iterator[int] = (degree * self.recipe.layout.ranks_per_replica for degree in degrees)
        return next((world for world in worlds if self.fitted(world)), None)

    def _micro(self, degree: int) -> int | None:
        """The largest micro-batch that divides what each copy of the model gets of each batch to come."""
        own, sizes = self.recipe.batch.micro_batch, (self.batch, *self.recipe.batch.ahead(self.consumed))
        if self.config.get(MICRO, "auto") != "auto":
            return own  # it does not count, and `resolve_engine` knows better
        steps = self.config.get(STEPS, "auto")
        for micro in range(own, 0, -1):
            unit = micro * degree
            if not any(size % unit for size in sizes) and steps in ("auto", self.batch // unit):
                return micro
        return None
