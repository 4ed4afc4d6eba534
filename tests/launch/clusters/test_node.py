"""Nodes under torchrun itself; their ranks do nothing but end."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.clusters import node

RANK = """
import json, os, signal, sys, time
from pathlib import Path

run, what = Path(sys.argv[2]), sys.argv[5]
(run / f"rank-{os.environ['RANK']}.json").write_text(json.dumps([sys.argv[1:], os.environ["WORLD_SIZE"]]))

def save(number, frame):
    time.sleep(0.5)
    if what == "stops":
        (run / "status.json").write_text('{"status": 75, "reason": "stopped"}')
    sys.exit(75)

if what in ("stops", "stops unseen"):
    signal.signal(signal.SIGTERM, save)
    if os.environ["RANK"] == "0":
        os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
elif what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(what))
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A node alone with one rank. torchrun's handlers of signals, and what it adds to the environment, go again."""
    (tmp_path / "rank_of_a_test.py").write_text(RANK)
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    monkeypatch.setattr(node.local, "environment", lambda processes: {"PYTHONPATH": str(tmp_path)})
    for name in ("PYTHONPATH", "OMP_NUM_THREADS", "TORCHELASTIC_SIGNALS_TO_HANDLE", "PET_NPROC_PER_NODE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)


def ended(run: Path, what: str, *more: str) -> int:
    with pytest.raises(SystemExit) as end:
        node.main(["--run-dir", str(run), "--stop-seconds", "20", *more, "rank_of_a_test", what])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(("what", "status"), [("0", 0), ("2", 2), ("77", 77), ("75", 75), ("5", 1), ("killed", 1)])
def test_a_node_ends_as_its_rank_did(tmp_path: Path, what: str, status: int) -> None:
    assert ended(tmp_path, what) == status
    words, world = json.loads((tmp_path / "rank-0.json").read_text())
    assert words == ["--run-dir", str(tmp_path), "--resume", "auto", what] and world == "1"


def test_a_request_to_stop_reaches_the_rank_and_comes_back(tmp_path: Path) -> None:
    assert ended(tmp_path, "stops") == 75


def test_a_rank_that_noted_no_save_has_crashed(tmp_path: Path) -> None:
    assert ended(tmp_path, "stops unseen") == 1


@pytest.mark.parametrize(("what", "status"), [("0", 0), ("3", 3), ("75", 138), ("1", 138)])
def test_another_status_asks_for_another_try(tmp_path: Path, what: str, status: int) -> None:
    assert ended(tmp_path, what, "--again", "138") == status
