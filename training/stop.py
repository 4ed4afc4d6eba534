"""Requests by signal, noted from a rank's first moment: the system's own answer to a signal would kill the rank.

It imports nothing heavy, so that a signal finds it also while torch is imported. The loop asks after every step.
"""

import signal
from types import FrameType

REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)  # the last is Slurm's warning
SAVE = signal.SIGUSR2

_received: list[signal.Signals] = []
_saves: list[signal.Signals] = []


def listen() -> None:
    """Note the signals that ask a run to stop or to save, instead of dying of them."""
    for number in REQUESTS:
        signal.signal(number, _note)
    signal.signal(SAVE, _note_save)


def asked() -> signal.Signals | None:
    """The first of the signals to stop that this rank got."""
    return _received[0] if _received else None


def save_asked() -> bool:
    """Whether this rank got the signal to save since the last call."""
    asked = bool(_saves)
    _saves.clear()
    return asked


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(signal.Signals(number))


def _note_save(number: int, frame: FrameType | None) -> None:
    _saves.append(signal.Signals(number))
