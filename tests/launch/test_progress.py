"""A process that works is left alone however long it takes; one that hangs is noticed."""

import subprocess
import sys
import time

import pytest

from launch import progress

WORKS = "import time\nwhile True: sum(range(1000))"
WAITS = "import time; time.sleep(1000)"


@pytest.mark.parametrize(("code", "hangs"), [(WORKS, False), (WAITS, True)])
def test_processor_time_tells_slow_from_hung(code: str, hangs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is turned forward, five minutes a look; what works has worked for two seconds by then."""
    child = subprocess.Popen([sys.executable, "-c", f"import subprocess, sys\n{code}"])
    try:
        watch = progress.Watch(child.pid)
        began = progress.processor_seconds(child.pid)
        while not hangs and progress.processor_seconds(child.pid) < began + 1.1 * progress.WORK_SECONDS:
            time.sleep(0.05)
        later = time.monotonic() + 300
        monkeypatch.setattr(progress.time, "monotonic", lambda: later)
        assert watch.hangs() is hangs
    finally:
        child.kill()
        child.wait()


def test_ranks_that_ask_whether_the_others_are_there_do_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher's two processes and eight ranks, of which one is stopped: the others ask a hundred times a second."""
    seconds = [0.0]

    def used(process: int) -> list[float]:
        return [0.0] * 3 + [0.012 * seconds[0]] + [0.008 * seconds[0]] * 6

    monkeypatch.setattr(progress, "_seconds", used)
    monkeypatch.setattr(progress.time, "monotonic", lambda: seconds[0])
    watch, hung = progress.Watch(1), []
    for seconds[0] in (60.0, 119.0, 121.0):
        hung.append(watch.hangs())
    assert hung == [False, False, True]


def test_a_process_that_is_gone_has_used_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert progress.processor_seconds(child.pid) == 0
