"""Tell a slow process from one that hangs, on a machine of any speed."""

import time
from contextlib import suppress

PATIENCE_SECONDS = 120.0
WORK_SECONDS = 2.0  # of processor time, of each process: a rank that waits for the others to begin uses 0.8 to 1.4


def processor_seconds(process: int) -> float:
    """Processor time of a process, of its living descendants, and of those that they waited for."""
    return sum(_seconds(process))


def _seconds(process: int) -> list[float]:
    """The same of each by itself."""
    import psutil

    used = []
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process)
        for each in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                used.append(float(sum(each.cpu_times()[:4])))
    return used


class Watch:
    """Watches a process: it hangs when it and its descendants do not work for two minutes."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.used, self.moved = processor_seconds(process), time.monotonic()

    def hangs(self) -> bool:
        """Ask this now and then. The time of a process that ends leaves the sum: that counts as work too."""
        each = _seconds(self.process)
        if abs(sum(each) - self.used) >= WORK_SECONDS * max(1, len(each)):
            self.used, self.moved = sum(each), time.monotonic()
        return time.monotonic() - self.moved > PATIENCE_SECONDS
