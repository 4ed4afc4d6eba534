"""Telling how far the work is: a function that is called with a line."""

import math
import time
from collections.abc import Callable

Say = Callable[[str], None]


def now_and_then(say: Say, seconds: float = 10.0, at_once: bool = True) -> Say:
    """Pass on a line, then none for some seconds; the first one `at_once`, or some seconds from now."""
    last = -math.inf if at_once else time.monotonic()

    def sparing(line: str) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            say(line)

    return sparing
