"""What the other tests stand on: how long they wait, and that forks are what fresh interpreters are."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.progress import processor_seconds
from recipes.registry import ROOT
from tests import patience
from tests.commands.running import run
from tests.conftest import WHOLE
from tests.distributed import run_ranks


@pytest.mark.parametrize(
    ("share", "end"),
    [(0.0, 120), (0.02, 120), (0.05, 1800), (1.0, 1800)],  # of a core that is used: polling takes two hundredths
)
def test_what_computes_is_waited_for(share: float, end: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(patience, "monotonic", lambda: clock[0])
    monkeypatch.setattr(patience, "processor_seconds", lambda pid: share * clock[0])
    waiting = patience.Patience([0])
    with pytest.raises(AssertionError):
        while True:
            clock[0] += 1
            waiting.check("it")
    assert clock[0] == end


def test_cpu_time_is_the_whole_tree_s() -> None:
    before = processor_seconds(os.getpid())
    assert before > 0
    (used,) = run_ranks(1, spin)
    assert processor_seconds(os.getpid()) >= before + used  # the rank is a child of a child


def spin() -> float:
    while os.times().user < 0.5:
        pass
    return os.times().user - 0.1  # clocks tick in hundredths


def test_files_that_are_kept_whole_are_there() -> None:
    assert all((ROOT / path).is_file() for path in WHOLE)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_rank_that_dies_is_said() -> None:
    with pytest.raises(AssertionError, match="rank 0 died with exit code -9"):
        run_ranks(1, die)


@pytest.mark.parametrize("arguments", [("tiny", "--json"), ("gpt_435m",), ("--no-such-flag",), ("--help",)])
def test_a_fork_ends_and_says_what_a_fresh_interpreter_does(arguments: tuple[str, ...], tmp_path: Path) -> None:
    fork, fresh = (run(tmp_path, "commands", "plan", *arguments, fresh=fresh) for fresh in (False, True))
    assert (fork.returncode, fork.stdout, fork.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)


def test_every_worker_gives_the_tests_the_same_names(request: pytest.FixtureRequest) -> None:
    """Collected again, later and under another hash seed, as another worker of pytest-xdist collects them."""
    files = {item.nodeid.split("::")[0] for item in request.session.items}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-n", "0", "-o", "addopts=", *sorted(files)],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert {item.nodeid for item in request.session.items} <= set(done.stdout.splitlines())
