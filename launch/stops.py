"""Requests to stop that this process gets while it sees a run through."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from training.stop import REQUESTS, SAVE

IMPATIENT_SECONDS = 5.0  # after which another Ctrl-C ends the run at once


@dataclass
class Stops:
    """The signals that came, with the time of each (monotonic)."""

    came: list[tuple[float, signal.Signals]] = field(default_factory=list)
    wakes: int | None = None  # a descriptor from which something can be read when one came

    @property
    def first(self) -> signal.Signals | None:
        """What asked first."""
        return self.came[0][1] if self.came else None

    @property
    def at_once(self) -> bool:
        """Whether Ctrl-C came again, and not by the same press."""
        return any(number == signal.SIGINT and time - self.came[0][0] > IMPATIENT_SECONDS for time, number in self.came)


@contextmanager
def listening(save: Callable[[], None] = lambda: None) -> Iterator[Stops]:
    """Note requests to stop, instead of ending. The handler does nothing else: it may come twice, at any moment.

    What asks a rank to save asks `save` here.
    """
    stops = Stops()

    def note(number: int, frame: FrameType | None) -> None:
        stops.came.append((time.monotonic(), signal.Signals(number)))

    stops.wakes, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    other = signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    before = {number: signal.signal(number, note) for number in REQUESTS}
    before[SAVE] = signal.signal(SAVE, lambda number, frame: save())
    try:
        yield stops
    finally:
        signal.set_wakeup_fd(other)
        os.close(stops.wakes)
        os.close(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
