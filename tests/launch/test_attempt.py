"""One launch, with a played launcher: how it ends, what reaches it, and that nothing of it is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.attempt import Attempt, Ended, launch
from launch.stops import Stops, listening
from support import files
from tests.patience import ended, wait_until


def run(path: Path, *command: str, lock: int | None = None, stops: Stops | None = None) -> Ended:
    """Launch a command in place of a launcher, and see it through."""
    group = launch([*command], dict(os.environ), path, 2, () if lock is None else (lock,), wakes=stops and stops.wakes)
    return Attempt(group, stops or Stops(), 30.0, lambda: None).see_through(path / "file")


def test_the_status_is_the_launcher_s(tmp_path: Path) -> None:
    assert run(tmp_path, sys.executable, "-c", "raise SystemExit(7)") == Ended(7, None, False, {})
    killed = run(tmp_path, sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert killed == Ended(128 + 9, None, False, {})


def test_a_launcher_whose_inner_process_is_killed_says_so(tmp_path: Path) -> None:
    """DeepSpeed's own ends with 0."""
    code = "import runpy, subprocess, sys\n"
    code += "def play(*_, **__): subprocess.Popen(['sh', '-c', 'kill -9 $$']).wait()\n"
    code += "runpy.run_module = play\nfrom launch import runner\nrunner.main()"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 128 + 9


def test_the_launcher_holds_the_lock_of_the_run(tmp_path: Path) -> None:
    with files.locked(tmp_path / "lock") as lock:
        assert run(tmp_path, sys.executable, "-c", f"import os; os.fstat({lock})", lock=lock).status == 0


def test_a_killed_launcher_leaves_no_process(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    outer = "import os, subprocess, sys\n"
    outer += "child = subprocess.Popen(['sleep', '600']); open(sys.argv[1], 'w').write(str(child.pid))\n"
    outer += "os.kill(os.getpid(), 9)"
    assert run(tmp_path, sys.executable, "-c", outer, str(mark)).status == 128 + 9
    child = int(mark.read_text())
    wait_until(lambda: ended(child), child)


OUTER = """
import subprocess, sys
# As DeepSpeed's launcher: an outer process that handles no signal waits for an inner one that does.
inner = "import signal, sys, time; stop = lambda *_: (open(sys.argv[1], 'w').write('stopped'), sys.exit(0));"
inner += "signal.signal(15, stop); open(sys.argv[1] + '.up', 'w'); time.sleep(600)"
sys.exit(subprocess.call([sys.executable, "-c", inner, sys.argv[1]]))
"""


def test_a_request_reaches_the_inner_process(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    code = f"""
import sys
from pathlib import Path
from launch.stops import listening
from tests.launch import test_attempt
with listening() as stops:
    done = test_attempt.run(Path({str(tmp_path)!r}), sys.executable, "-c", {OUTER!r}, {str(mark)!r}, stops=stops)
assert done.asked and done.fault is None, done
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_until(mark.with_name("mark.up").exists, process.pid)
    process.send_signal(signal.SIGINT)
    wait_until(lambda: process.poll() is not None, process.pid)
    assert process.returncode == 0
    assert mark.read_text() == "stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_requests_are_noted_however_often_they_come(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with listening() as stops:
        for _ in range(3):
            signal.raise_signal(number)
        assert stops.first == number and not stops.at_once
        stops.came.append((time.monotonic() + 6.0, number))
        assert stops.at_once == (number == signal.SIGINT)
    assert signal.getsignal(number) == before
