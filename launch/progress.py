"""Tell a slow process from one that hangs, on a machine of any speed."""

import time
from contextlib import suppress

PATIENCE_SECONDS = 120.0
WORK_SECONDS = 1.0  # of processor time: a launcher that only waits for its ranks uses less than that in two minutes


def processor_seconds(process: int) -> float:
    """Processor time of a process, of its living descendants, and of those that they waited for."""
    import psutil

    used = 0.0
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(process)
        for each in (root, *root.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                used += sum(each.cpu_times()[:4])
    return used


class Watch:
    """Watches a process: it hangs when it and its descendants do not work for two minutes."""

    def __init__(self, process: int) -> None:
        self.process = process
        self.used, self.moved = processor_seconds(process), time.monotonic()

    def hangs(self) -> bool:
        """Ask this now and then. The time of a process that ends leaves the sum: that counts as work too."""
        used = processor_seconds(self.process)
        if abs(used - self.used) >= WORK_SECONDS:
            self.used, self.moved = used, time.monotonic()
        return time.monotonic() - self.moved > PATIENCE_SECONDS
