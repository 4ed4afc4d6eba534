"""How often a run saves, and what saves and failures cost it. Imports no torch.

A checkpoint is written while the run trains on. So a save costs training a pause: the proof's forward pass, and the
copy of the state into the machines' memory. A failure costs what was done since the last whole checkpoint was begun:
half an interval on average, and the time of a write, because what is being written is lost too. With a pause of p
seconds and a failure every M seconds the interval that loses least is sqrt(2 p M) (Young 1974, CACM 17(9), 530; Daly
2006, FGCS 22(3), 303, whose corrections are small here: M is some hundred times p or more). It is never shorter than
two writes: the storage shall rest half of the time at least.
"""

import math
from dataclasses import dataclass

from planner.hardware import GIGA, TERA
from recipes.recipe import Recipe

CHECKPOINT_BYTES = 12  # of one parameter: fp32 weights and two moments
STORAGE_GB_S = 20.0  # that all ranks together write with: an assumption
COPY_GB_S = 5.0  # that each rank copies with from its GPU into memory that is not pinned: an assumption
PROOF_TFLOPS = 100.0  # that a GPU computes with in the proof's forward pass: an assumption
STOP_SECONDS = 30.0  # that a stop on request may take, at least
STOP_WRITES = 4  # of checkpoints that it may take: what is written in that moment, one more, and as much again
WRITES_APART = 2  # an interval has at least the time of so many writes
# Hours that one GPU runs between two failures: 419 unexpected interruptions in 54 days of Llama 3's 16,384 H100
# (arXiv:2407.21783, section 3.3.4) are one in 50,700.
FAILURE_HOURS = 50_000.0


@dataclass(frozen=True)
class Saving:
    """Seconds that training waits at a save, of its write, between the beginnings of two saves (0: they are counted in
    steps, and a step's time is not known), and between two failures of the cluster.
    """

    pause_seconds: float
    write_seconds: float
    interval_seconds: float
    failure_seconds: float

    @property
    def stop_seconds(self) -> float:
        """Seconds that ranks have to save and to end when they are asked to."""
        return max(STOP_SECONDS, STOP_WRITES * self.write_seconds)

    @property
    def save_share(self) -> float:
        """Part of the run's time that training waits for saves."""
        return self.pause_seconds / self.interval_seconds

    @property
    def lost_share(self) -> float:
        """Part of the run's work that is done again after failures. Restarts are not in it."""
        return (self.interval_seconds / 2 + self.write_seconds) / self.failure_seconds

    def new_share(self, restart_seconds: float) -> float:
        """Part of the time that goes into new steps, where a restart takes so long."""
        return 1 - self.save_share - self.lost_share - restart_seconds / self.failure_seconds


def saving(recipe: Recipe, gpus: int, step_seconds: float = 0.0, storage_gb_s: float = STORAGE_GB_S) -> Saving:
    """The saves of a run on `gpus` ranks: by `intervals.save_every` or `save_minutes`, else by Young's formula."""
    size, intervals = CHECKPOINT_BYTES * recipe.trained_parameters, recipe.intervals
    write = size / storage_gb_s / GIGA
    pause = size / gpus / COPY_GB_S / GIGA + _proof_seconds(recipe)
    failure = FAILURE_HOURS * 3600 / gpus
    interval = max(math.sqrt(2 * pause * failure), WRITES_APART * write)
    if intervals.save_every:
        interval = intervals.save_every * step_seconds
    elif intervals.save_minutes:
        interval = 60 * intervals.save_minutes
    return Saving(pause, write, interval, failure)


def _proof_seconds(recipe: Recipe) -> float:
    """A micro-batch of each data rank goes forward through all pipeline stages: a third of the FLOPs to train on it."""
    tokens = recipe.batch.micro_batch * recipe.model.seq_length
    flops = recipe.model.flops_per_token / 3 * tokens
    return flops / (recipe.layout.tp * recipe.layout.ulysses) / PROOF_TFLOPS / TERA
