"""The checkpoints that a run writes while it trains on, one at a time."""

import time
from dataclasses import asdict
from functools import partial

import torch

from model.checkpoint.format import Tie
from model.checkpoint.write import Pending, begin
from model.engine.engine import Engine
from run import save_request
from run.checkpoints import spared
from run.directory import Run
from training.log import Log
from training.rollback import Position


class Saves:
    """Begins checkpoints and finishes them. All ranks do both after the same steps."""

    def __init__(self, run: Run, trainer: Engine, log: Log, tie: Tie) -> None:
        self.run, self.trainer, self.log, self.tie = run, trainer, log, tie
        self.rank = torch.distributed.get_rank()
        self.pending: Pending | None = None
        self.step, self.began, self.waited = 0, 0.0, 0.0  # of the pending one; seconds that training waited for it
        self.answers: int | None = None  # the request that it answers
        self.took = 0.0  # seconds that training waited for what was finished since the last line of metrics
        self.waits = self.told = False  # whether files were written before training went on; whether that was said

    @property
    def writes(self) -> bool:
        """Whether this rank still writes."""
        return self.pending is not None and not self.pending.written

    def is_asked(self) -> bool:
        """Whether somebody asks for a save by the file. Rank 0 looks."""
        return self.rank == 0 and save_request.asked(self.run.path) is not None

    def begin(self, position: Position, since: float | None = None) -> None:
        """Begin a checkpoint of this moment; `since` is when training stopped for it. One is pending at most."""
        assert self.pending is None, "finish what is pending first"
        self.step, self.began = position.step, since or time.perf_counter()
        self.answers = save_request.asked(self.run.path) if self.rank == 0 else None
        self.waits, where, state = False, self.run.checkpoints, asdict(position)
        self.pending = begin(self.trainer, where, position.step, state, self.tie, self._has_to_wait)
        self.waited = time.perf_counter() - self.began
        if self.waits:
            self.finish(wait=False)

    def finish(self, wait: bool = True) -> None:
        """Finish the pending checkpoint, if there is one. Without `wait` all ranks are known to have written theirs."""
        if self.pending is None:
            return
        since, keep = time.perf_counter(), self.run.recipe.intervals.keep_checkpoints
        if wait:
            self.log.note("saving", step=self.step)
        path = self.pending.finish(keep, partial(spared, self.run))
        self.pending, now = None, time.perf_counter()
        self.waited += now - since
        self.took += self.waited
        self.log.saved(self.step, path, now - self.began, self.waited)
        if self.rank == 0:
            save_request.answer(self.run.path, self.answers)

    def seconds(self) -> float:
        """Seconds that training waited for what was finished since this was asked last."""
        took, self.took = self.took, 0.0
        return took

    def _has_to_wait(self, reason: str) -> None:
        if not self.told:
            self.log.say(f"training waits while a checkpoint is written: {reason}")
        self.waits = self.told = True
        self.log.note("saving", step=self.step)
