"""What happened to a run beside its steps: `events.jsonl`, a line an event, never cut.

Who trains, launches or supervises a run adds lines; a panel, a report or a colleague's program reads them. Each line
has `time` (seconds since 1970) and `event`, one of `KINDS`, and the facts that `KINDS` names.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from support import json_lines
from support.json_object import JsonObject

KINDS = {
    "start": "the command begins: resumed, world_size, pid, host",
    "phase": "what a start is busy with: phase (data, imports, engine, compile, load)",
    "training": "the loop begins: step, last_step, reached (the step that any start came to before)",
    "saving": "training waits until a checkpoint is written: step",
    "saved": "a checkpoint is whole: step, path, seconds (from its beginning), waited (by training), bytes",
    "passed_over": "a checkpoint was damaged: path, reason",
    "rollback": "the run goes on from an earlier checkpoint: from_step, to_step, first_sample, last_sample (skipped)",
    "said": "a line that a person should see: line",
    "fault": "a launch of the ranks broke: rank (null: not known), code (minus the signal), reason, log (last lines)",
    "restart": "the ranks are launched again: failures (in a row, without a new checkpoint), waited (seconds), ranks",
    "slow": "a rank is slower than the others for long: rank, host (null: not known), what (computing, waiting for "
    "data, standing still), times (null: it is as fast again), since (seconds since 1970)",
    "bad_node": "the run ends on a node that is to be kept out: node, reason",
    "queued": "a job of a scheduler ended and was queued again: job, status (of the command), without (a node), reason",
    "stop": "the run was asked to stop: signal (null: another rank than the first got it)",
    "end": "the start ended: status (see support/errors.py), reason",
    "note": "what a person wrote down: text",
}


def note(path: Path, event: str, /, **facts: Any) -> None:
    """Add an event to the run directory `path`. A disk without room loses it: the run is worth more."""
    with suppress(OSError):
        add(path, event, **facts)


def add(path: Path, event: str, /, **facts: Any) -> None:
    """Add an event to the run directory `path`. Errors: `OSError` where it cannot be written."""
    assert event in KINDS, event
    json_lines.add(path / "events.jsonl", {"time": time.time(), "event": event, **facts})


def read(path: Path) -> list[JsonObject]:
    """The events of the run directory `path`, oldest first."""
    return [line for line in json_lines.read(path / "events.jsonl") if line.get("event") in KINDS]
