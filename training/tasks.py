"""The tasks of a recipe, scored with the weights of the moment while a run trains."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from inference.decode.decoder import line_of
from inference.decode.stage import live_stage
from inference.export import load_tokeniser
from inference.tasks import harness
from inference.tasks.find import Asked, find
from inference.writers import RunWriter
from model.checkpoint.together import anywhere
from model.engine.engine import Engine
from model.parallel import Parallel
from recipes.recipe import Recipe
from run.directory import Run
from support.errors import UserError
from support.json_object import JsonObject
from training.log import Log
from training.stop import asked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NOW, FOR_EVER = 1, 2  # that there are no scores


def asked_of(recipe: Recipe) -> Asked:
    """What a recipe asks for, which names at least one task. Errors: `UserError`."""
    tasks = recipe.tasks
    return Asked(tasks.names, tasks.shots, tasks.limit, Path(tasks.folder) if tasks.folder else None)


def check(recipe: Recipe) -> None:
    """Errors: `UserError` where a task of a recipe cannot be run: known before there is any rank."""
    if recipe.tasks.names:
        find(asked_of(recipe))


class LiveModel:
    """The model that is trained, as one that writes: its tensor ranks and stages work together, and all others share.

    Ulysses ranks and the ranks of sequence parallelism hold whole slices of the weights: each reads whole texts.
    """

    def __init__(self, trainer: Engine, tokeniser: "PreTrainedTokenizerFast") -> None:
        self.trainer, self.tokeniser = trainer, tokeniser
        self.line = line_of(trainer.grid.layout)

    @contextmanager
    def writer(self, recipe: Recipe) -> Iterator[RunWriter]:
        """What writes with the weights of the moment; nothing may be trained meanwhile. Collective."""
        grid = self.trainer.grid
        with self.trainer.weights() as weights:
            stage = live_stage(recipe.model, Parallel(grid.tp), grid.layout.pp, grid.stage, weights)
            yield RunWriter(stage, self.tokeniser, self.line, grid.data)


class _EndedError(Exception):
    """No scores, for now or for ever, and why: the same on all ranks."""

    def __init__(self, how: int, why: str) -> None:
        super().__init__(why)
        self.how = how


class Scores:
    """The tasks of a run that trains. Collective, also where it is made.

    Errors: `UserError` where a task cannot be run, or one of its candidates does not fit into the context.
    """

    def __init__(self, run: Run, trainer: Engine, log: Log) -> None:
        from inference.tasks.model import Checked

        self.recipe, self.log, self.failed = run.recipe, log, False
        self.found = find(asked_of(run.recipe))
        self.live = LiveModel(trainer, load_tokeniser(run.path))
        with self.live.writer(run.recipe) as writer:
            harness.check(Checked(writer), self.found, run.recipe.tasks.limit)
        harness.keep_requests(self.found)

    def now(self) -> JsonObject:
        """The scores as a run's metrics have them, and the seconds that it took; none where the run is to stop.

        A task whose own code fails, on one rank or on all, ends them: the run is worth more.
        """
        if self.failed:
            return {}
        began = time.perf_counter()
        try:
            values = self._together(self._scores)
        except _EndedError as ended:
            self.failed = ended.how == FOR_EVER
            self.log.say(f"no {'more tasks' if self.failed else 'scores now'}: {ended}")
            return {}
        return {**harness.named(values), "task_seconds": time.perf_counter() - began}

    def _scores(self) -> JsonObject:
        from inference.tasks.model import TaskModel

        with self.live.writer(self.recipe) as writer:
            model = TaskModel(writer, look_up=self._look_up)
            return harness.scores(model, self.found, self.recipe.tasks.limit, errors=False)

    def _together(self, work: Callable[[], JsonObject]) -> JsonObject:
        """Work that all ranks do, or none: who cannot go on says so where the others look up next."""
        try:
            values = work()
        except _EndedError:
            raise
        except UserError as error:  # the weights of this moment
            self._look_up(NOW, str(error))
        except Exception as error:
            place = harness.where_failed(error)
            if isinstance(error, (RuntimeError, OSError)) and not place:
                raise  # of torch, in the middle of what ranks do together
            self._look_up(FOR_EVER, f"{place}{': ' if place else ''}{type(error).__name__}: {error}")
        self._look_up()
        return values

    def _look_up(self, how: int = 0, why: str = "") -> None:
        """Hear whether any rank cannot go on, or was asked to stop: the launcher soon ends such a run. Collective."""
        told = torch.tensor([how, int(asked() is not None)], device=self.live.trainer.device)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        how, stops = told.tolist()
        if how:
            raise _EndedError(how, anywhere(why))
        if stops:
            raise _EndedError(NOW, "the run was asked to stop")
