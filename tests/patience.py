"""Waiting that does not depend on how fast a machine is: a process that computes may go on, an idle one is hung."""

from collections.abc import Callable, Iterable
from time import monotonic, sleep

import psutil

from launch.progress import processor_seconds

IDLE_SECONDS = 120.0
BUSY_SECONDS = 3.0  # of CPU time within that: more than polling takes, less than a process gets on any loaded machine
MOST_SECONDS = 1800.0  # for what spins for ever
STEP_SECONDS = 0.02


class Patience:
    """How long to wait for processes: until they and their children idle for two minutes, 30 minutes at most."""

    def __init__(self, pids: Iterable[int]) -> None:
        self.pids = list(pids)
        self.began = self.looked = self.moved = monotonic()
        self.used = 0.0

    def check(self, what: str) -> None:
        """Call this while waiting, as often as you like. Errors: `AssertionError` when it is time to give up."""
        now = monotonic()
        if now < self.looked + 1:
            return
        self.looked, used = now, sum(map(processor_seconds, self.pids))
        if abs(used - self.used) >= BUSY_SECONDS:  # it falls where a process ends that nobody waits for
            self.moved, self.used = now, used
        assert now < self.moved + IDLE_SECONDS, f"{what}: no work was done for {IDLE_SECONDS:.0f} s"
        assert now < self.began + MOST_SECONDS, f"{what}: no end after {MOST_SECONDS:.0f} s"


def ended(pid: int) -> bool:
    """Whether a process has ended; nobody may have waited for it."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(holds: Callable[[], object], *pids: int, what: str = "waiting") -> None:
    """Wait until something holds, as long as these processes work."""
    patience = Patience(pids)
    while not holds():
        patience.check(what)
        sleep(STEP_SECONDS)
