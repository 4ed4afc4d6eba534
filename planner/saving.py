"""How often a run saves, and what saves and failures cost it. Imports no torch.

A save costs its own time; a failure costs what was done since the last save, half an interval on average. With a save
of s seconds and a failure every M seconds the interval that loses least is sqrt(2 s M) (Young 1974, CACM 17(9), 530;
Daly 2006, FGCS 22(3), 303, whose corrections are small here: M is some hundred times s or more).
"""

import math
from dataclasses import dataclass

from model.config import GPTConfig
from planner.hardware import GIGA
from recipes.recipe import Intervals

CHECKPOINT_BYTES = 12  # of one parameter: fp32 weights and two moments
STORAGE_GB_S = 20.0  # that all ranks together write with: an assumption
# Hours that one GPU runs between two failures: 419 unexpected interruptions in 54 days of Llama 3's 16,384 H100
# (arXiv:2407.21783, section 3.3.4) are one in 50,700.
FAILURE_HOURS = 50_000.0


@dataclass(frozen=True)
class Saving:
    """Seconds of a save, between two saves (0: saves are counted in steps), and between two failures of the cluster."""

    save_seconds: float
    interval_seconds: float
    failure_seconds: float

    @property
    def save_share(self) -> float:
        """Part of the run's time that saves take."""
        return self.save_seconds / self.interval_seconds

    @property
    def lost_share(self) -> float:
        """Part of the run's work that is done again after failures. Restarts are not in it."""
        return self.interval_seconds / 2 / self.failure_seconds


def saving(
    model: GPTConfig, intervals: Intervals, gpus: int, step_seconds: float = 0.0, storage_gb_s: float = STORAGE_GB_S
) -> Saving:
    """The saves of a run on `gpus` ranks: by `intervals.save_every` or `save_minutes`, else by Young's formula."""
    save = CHECKPOINT_BYTES * model.num_parameters / storage_gb_s / GIGA
    failure = FAILURE_HOURS * 3600 / gpus
    if intervals.save_every:
        return Saving(save, intervals.save_every * step_seconds, failure)
    return Saving(save, 60 * intervals.save_minutes or math.sqrt(2 * save * failure), failure)
