"""What the ranks agree on after a step: whether to stop, and whether to save."""

import os
import signal
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from model.checkpoint.write import Pending
from recipes.recipe import Intervals
from run import save_request
from tests.distributed import run_ranks
from training import stop
from training.device import kernels
from training.loop import Loop
from training.pace import Pace
from training.rollback import Position
from training.saves import Saves

Signals = tuple[tuple[int, signal.Signals], ...]
NONE: Signals = ()


def agreed(
    step: int,
    intervals: Intervals,
    since: tuple[int, ...],
    path: Path,
    signals: Signals = NONE,
    skipped: int = 0,
    pending: Pending | None = None,
) -> tuple[bool, bool]:
    """What a rank is told where its last save is `since` seconds ago and 100 are between two saves.

    `signals` are sent to ranks.
    """
    rank = torch.distributed.get_rank()
    loop = Loop.__new__(Loop)
    loop.run = SimpleNamespace(recipe=SimpleNamespace(intervals=intervals), path=path)  # type: ignore[assignment]
    loop.trainer = SimpleNamespace(device="cpu", seeks_loss_scale=lambda: False)  # type: ignore[assignment]
    loop.skipped_in_a_row = skipped
    loop.rank, loop.world, loop.position = rank, 2, Position(step)
    loop.pace = Pace(torch.device("cpu"), rank, 2, None)  # type: ignore[arg-type]
    stop.listen()
    stop._received.clear()
    for number in [number for to, number in signals if to == rank]:
        os.kill(os.getpid(), number)
    loop.save_seconds, loop.saved_at = 100.0, time.monotonic() - since[rank]
    loop.saves = Saves.__new__(Saves)
    loop.saves.run, loop.saves.rank, loop.saves.pending = loop.run, rank, pending
    stops, save, memory = loop._agreed()
    assert loop.writing == (2 if pending else 0)
    assert len(memory) == 2 and all(2**24 < used < 2**40 for used in memory)
    return stops, save


def several(path: Path) -> list[tuple[bool, bool]]:
    unfinished = Pending(path, path, {}, Future())
    clock, steps = Intervals(save_minutes=5), Intervals(save_every=3)
    found = [
        agreed(7, clock, (5000, 0), path),
        agreed(7, clock, (0, 5000), path),
        agreed(6, steps, (0, 0), path),
        agreed(7, steps, (5000, 5000), path),
        agreed(7, clock, (0, 0), path, ((1, signal.SIGTERM),)),
        agreed(7, steps, (0, 0), path, ((1, signal.SIGUSR1),)),
        agreed(7, steps, (0, 0), path, ((1, signal.SIGUSR2),)),
        agreed(7, steps, (0, 0), path),
        agreed(6, steps, (0, 0), path, skipped=1),
        agreed(7, clock, (5000, 0), path, ((0, signal.SIGUSR2),), skipped=1),
        agreed(7, clock, (5000, 0), path, pending=unfinished),
        agreed(6, steps, (0, 0), path, ((1, signal.SIGTERM),), pending=unfinished),
    ]
    torch.distributed.barrier()
    (path / save_request.FILE).touch()
    torch.distributed.barrier()
    return [*found, agreed(7, steps, (0, 0), path, pending=unfinished), agreed(7, steps, (0, 0), path)]


def test_what_all_ranks_do_after_a_step(tmp_path: Path) -> None:
    """Rank 0's clock says when to save, nobody else's; steps need no clock. Any rank may get a signal: SIGTERM and
    SIGUSR1 stop, SIGUSR2 saves once. Whoever writes a file into the run directory has it saved too. While steps are
    skipped nothing is saved but what was asked for. While a checkpoint is written, the clock and the file wait."""
    by_clock = [(False, True), (False, False), (False, True), (False, False)]
    by_signal = [(True, False), (True, False), (False, True), (False, False)]
    beside = [(False, False), (True, True)]
    expected = [*by_clock, *by_signal, (False, False), (False, True), *beside, (False, False), (False, True)]
    assert run_ranks(2, several, tmp_path) == [expected, expected]


def test_a_cpu_of_the_same_name_may_compute_by_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = kernels()
    assert mine == kernels()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert kernels() != mine
    monkeypatch.undo()
    monkeypatch.setattr(Path, "read_text", lambda path: "model name\t: AMD EPYC\nflags\t\t: fpu\n\nflags\t\t: x")
    assert kernels() != mine
