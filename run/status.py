"""How a run is: that it goes on, or how its last start ended."""

from pathlib import Path

from run.metrics import FINAL
from run.record import read_object
from support import json_lines
from support.errors import DONE, STOPPED, WEIGHTS_LOST, WRONG_INPUT
from support.files import is_locked

RUNNING, NEVER, CRASHED = "running", "never started", "crashed"
ENDS = {DONE: "finished", WRONG_INPUT: "refused", WEIGHTS_LOST: "weights lost", STOPPED: "stopped"}


def status_of(path: Path) -> str:
    """Whether a run goes on, and if not, how its last start ended. Whoever trains holds the lock of the directory."""
    return RUNNING if is_locked(path / ".lock") else outcome_of(path)


def outcome_of(path: Path) -> str:
    """How the last start of a run ended, if it has. What cannot be read says nothing."""
    lines = [line for line in json_lines.read_end(path / "metrics.jsonl") if "step" in line]
    if not lines:
        return NEVER
    ended = read_object(path / "status.json").get("status")
    if ended is None:  # a kill, or a run of before ends were noted: its last evaluation is known, or its report
        last = FINAL in lines[-1] or read_object(path / "report.json").get("step") == lines[-1]["step"]
        return ENDS[DONE] if last else CRASHED
    return ENDS.get(ended, CRASHED) if isinstance(ended, int) else CRASHED
