"""Find ranks that are slower than the others for long, while the run goes on.

All ranks of a step wait for the slowest, so the time of a step does not say which that is. So now and then each rank
times a small piece of work by itself, and how long it has waited for its data since the last time. The piece is too
short to meet a process that stands still for tens of milliseconds over and over: a thread looks out for that.
"""

import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from run import members
from training.log import Log

PROBE_SECONDS = 10.0  # between two probes, by rank 0's clock: with 5 ms a probe 0.05% of the time
PROBES = 6  # that have to agree before a rank is said to be slow, or as fast again
EXCEPTIONS = 1  # between them: a probe may be disturbed; with more, noise alone would name ranks on a busy processor
LONG_SECONDS = 60.0  # that they have to span at least: a page cache that is written out, or a hot minute, is no fault
COMPUTES = 1.5  # times the median rank's time for the same work: GPUs of one kind differ by a tenth
WAITS = 1.1  # times as long as without its waits for data a rank's steps take: data come ahead, so it should be 1
STANDS = 1.3  # times as long as without its standing still a rank's time is: a host or a limit that is shared unevenly
REST_SECONDS, TICKS, TICK_SECONDS = 9.0, 100, 0.01  # a second of short sleeps in ten
SWITCH_SECONDS = 0.005  # that Python may keep a thread waiting for another one
PIECES = 5  # of a probe, of which the median counts
TINY_OPERATIONS = 100  # of a piece: they show a slow processor or Python, the products a slow device
PRODUCTS = 2
SIDE = {"cpu": 256, "cuda": 2048}  # of the matrices: most of a millisecond a piece with the tiny operations
COMPUTING, DATA, STANDING = "computing", "waiting for data", "standing still"


@dataclass
class Streak:
    """By one measure of one rank: whether it counts as slow, and for how long it has been the opposite.

    `since` is when that began, in seconds of any clock, `times` what was measured since then.
    """

    slow: bool = False
    since: float = 0.0
    times: list[float] = field(default_factory=list)
    exceptions: int = 0

    def take(self, at: float, times: float, limit: float) -> bool:
        """Note a probe; returns whether the rank counts as the opposite from now on."""
        if (times > limit) == self.slow:
            self.exceptions += 1
            if self.exceptions > EXCEPTIONS:
                self.times.clear()
            return False
        if not self.times:
            self.since, self.exceptions = at, 0
        self.times.append(times)
        if len(self.times) < PROBES or at - self.since < LONG_SECONDS:
            return False
        self.slow = not self.slow
        return True


@dataclass(frozen=True)
class Change:
    """A rank counts as slow from now on, or does not any more.

    `times`: computing, its time as a multiple of the median rank's; else by how much its waits for data lengthen a
    step, or its standing still its time. It is the median since `since`, when this began.
    """

    rank: int
    what: str
    slow: bool
    times: float
    since: float


class Judge:
    """Says which of `world` ranks are slow. It has no clock of its own."""

    def __init__(self, world: int) -> None:
        self.streaks = [{what: Streak() for what in (COMPUTING, DATA, STANDING)} for _ in range(world)]

    def take(
        self, at: float, elapsed: float, computing: Sequence[float], waiting: Sequence[float], standing: Sequence[float]
    ) -> list[Change]:
        """Note a probe, of each rank: seconds of the same work, seconds of waiting for data within `elapsed`, and the
        share of its time that it stood still.

        Of an even number of ranks the faster half is the measure, so that a slow one of two is found.
        """
        usual, wait, still = map(statistics.median_low, (computing, waiting, standing))
        changes = []
        for rank, streaks in enumerate(self.streaks):
            more = min(max(0.0, waiting[rank] - wait), 0.99 * elapsed)
            stood = min(max(0.0, standing[rank] - still), 0.99)
            for what, times, limit in (
                (COMPUTING, computing[rank] / usual, COMPUTES),
                (DATA, elapsed / (elapsed - more), WAITS),
                (STANDING, 1 / (1 - stood), STANDS),
            ):
                if (streak := streaks[what]).take(at, times, limit):
                    middle = statistics.median(streak.times)
                    changes.append(Change(rank, what, streak.slow, middle, streak.since))
                    streak.times.clear()
        return changes


class Work:
    """The small piece of work, on a rank's device. It draws nothing at random and leaves training's numbers alone."""

    def __init__(self, device: torch.device) -> None:
        side = SIDE["cuda" if device.type == "cuda" else "cpu"]
        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.cuda = device.type == "cuda"
        self.matrix = torch.full((side, side), 1 / side, dtype=dtype, device=device)
        self.product = torch.empty_like(self.matrix)
        self.tiny: Tensor = torch.zeros(16, device=device)

    def seconds(self) -> float:
        """How long a piece takes, the median of a few."""
        took = []
        with torch.no_grad():
            for _ in range(1 + PIECES):
                began = time.perf_counter()
                for _ in range(PRODUCTS):
                    torch.mm(self.matrix, self.matrix, out=self.product)
                for _ in range(TINY_OPERATIONS):
                    self.tiny.add_(1.0)
                if self.cuda:
                    torch.cuda.synchronize()
                took.append(time.perf_counter() - began)
        return statistics.median(took[1:])  # the first one waits for what training left in the queue


class Lookout:
    """Looks out, in a thread, for times in which this process stands still: stopped, throttled, or without a processor.

    It wakes late from a short sleep then. `share` is the part of the last second of such sleeps that it was late.
    """

    def __init__(self) -> None:
        self.share = 0.0
        threading.Thread(target=self._look, name="pace", daemon=True).start()

    def _look(self) -> None:
        while True:
            time.sleep(REST_SECONDS)
            began = now = time.monotonic()
            late = 0.0
            for _ in range(TICKS):
                slept = now
                time.sleep(TICK_SECONDS)
                now = time.monotonic()
                over = now - slept - TICK_SECONDS
                late += over if over > SWITCH_SECONDS else 0.0
            self.share = late / (now - began)


class Pace:
    """A rank's part in it. What it has to tell travels in an all-reduce of the loop, so nothing waits for it.

    `told` gives what this rank adds, `take` gets the sum over all ranks. With one rank there is nothing to compare.
    """

    def __init__(self, device: torch.device, rank: int, world: int, log: Log) -> None:
        self.device, self.rank, self.world, self.log = device, rank, world, log
        self.judge = Judge(world)
        self.work, self.lookout = (Work(device) if world > 1 else None), (Lookout() if world > 1 else None)
        self.probed_at = time.monotonic()
        self.waited = 0.0  # seconds for data since the last probe
        # Of the last probe: nanoseconds elapsed, computing and waiting, and billionths of standing still.
        self.mine: tuple[int, ...] | None = None

    def told(self) -> list[int]:
        """Whether a probe is due, and after a probe three numbers for each rank, and rank 0's time between probes."""
        due = self.work is not None and self.rank == 0 and time.monotonic() - self.probed_at >= PROBE_SECONDS
        if self.mine is None:
            return [due]
        elapsed, *mine = self.mine
        numbers = [0] * (3 * self.world)
        numbers[3 * self.rank : 3 * self.rank + 3] = mine
        return [due, elapsed if self.rank == 0 else 0, *numbers]

    def take(self, told: list[int]) -> None:
        """Act upon what all ranks told: judge the last probe, and make the next one where it is due."""
        due, *numbers = told
        if numbers and self.rank == 0:
            elapsed, *rest = (number / 1e9 for number in numbers)
            for change in self.judge.take(self.probed_at, elapsed, rest[::3], rest[1::3], rest[2::3]):
                self._note(change)
        self.mine = None
        if due and self.work and self.lookout:
            computing, now = self.work.seconds(), time.monotonic()
            measured = (now - self.probed_at, computing, self.waited, self.lookout.share)
            self.mine = tuple(int(each * 1e9) for each in measured)
            self.probed_at, self.waited = now, 0.0

    def _note(self, change: Change) -> None:
        path: Path = self.log.run.path
        member = members.read(path, str(change.rank))
        self.log.note(
            "slow",
            rank=change.rank,
            host=member.host if member else None,
            what=change.what,
            times=change.times if change.slow else None,
            since=time.time() - (time.monotonic() - change.since),
        )
