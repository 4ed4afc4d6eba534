"""What the ranks agree on after a step: whether to stop, and whether to save."""

import time
from types import SimpleNamespace

import torch

from recipes.recipe import Intervals
from tests.distributed import run_ranks
from training.train import Loop, Position


def agreed(step: int, intervals: Intervals, since: tuple[int, ...], stopping: int = -1) -> tuple[bool, bool]:
    """What a rank is told where its last save is `since` seconds ago and 100 are between two saves."""
    rank = torch.distributed.get_rank()
    loop = Loop.__new__(Loop)
    loop.run = SimpleNamespace(recipe=SimpleNamespace(intervals=intervals))  # type: ignore[assignment]
    loop.trainer = SimpleNamespace(device="cpu")  # type: ignore[assignment]
    loop.rank, loop.world, loop.position, loop.stop_asked = rank, 2, Position(step), rank == stopping
    loop.save_seconds, loop.saved_at = 100.0, time.monotonic() - since[rank]
    stop, save, memory = loop._agreed()
    assert len(memory) == 2 and all(2**24 < used < 2**40 for used in memory)
    return stop, save


def several() -> list[tuple[bool, bool]]:
    clock, steps = Intervals(save_minutes=5), Intervals(save_every=3)
    return [
        agreed(7, clock, (5000, 0)),
        agreed(7, clock, (0, 5000)),
        agreed(7, clock, (0, 0), stopping=1),
        agreed(6, steps, (0, 0)),
        agreed(7, steps, (5000, 5000)),
    ]


def test_rank_0_s_clock_counts_for_all() -> None:
    """Rank 0's clock says when to save, nobody else's; any rank may ask to stop; steps need no clock."""
    expected = [(False, True), (False, False), (True, False), (False, True), (False, False)]
    assert run_ranks(2, several) == [expected, expected]
