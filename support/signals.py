"""Requests to stop a command: by SIGTERM, by SIGUSR1 (Slurm's warning), or by Ctrl-C."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ASK = (signal.SIGTERM, signal.SIGUSR1)


def interrupt() -> Callable[[], None]:
    """Let each of them raise `KeyboardInterrupt`; returns what undoes it. A rank notes them by itself."""
    before = {} if "RANK" in os.environ else {each: signal.signal(each, signal.default_int_handler) for each in ASK}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def ignore() -> None:
    """Ignore them from now on: the command ends already, and who asks twice gets one answer."""
    for number in (signal.SIGINT, *ASK):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def on_ctrl_c(act: Callable[[], None]) -> Iterator[None]:
    """Have Ctrl-C, and nothing else, do this in the block."""
    before = signal.signal(signal.SIGINT, lambda number, frame: act())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
