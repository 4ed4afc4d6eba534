"""A request to stop, noted from a rank's first moment: the system's own answer to the signal would kill the rank.

It imports nothing heavy, so that a signal finds it also while torch is imported. The loop asks after every step.
"""

import signal
from types import FrameType

REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)  # the last is Slurm's warning

_received: list[signal.Signals] = []


def listen() -> None:
    """Note the signals that ask a run to stop, instead of dying of them."""
    for number in REQUESTS:
        signal.signal(number, _note)


def asked() -> signal.Signals | None:
    """The first of them that this rank got."""
    return _received[0] if _received else None


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number))
