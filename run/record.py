"""Who a run is: `run.json`. Its first start writes it, and no later one."""

import json
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from support.errors import UserError
from support.files import write_json
from support.json_object import JsonObject

JOBS = "jobs.jsonl"  # the jobs that a run was submitted as, a line each
FILE = "run.json"
RUN = "run"  # the id of its run in a checkpoint's tie


@dataclass(frozen=True)
class Parent:
    """Where a branch began: after `step` of the run that has this `id`, and what has been different since.

    `consumed_samples` were read until then, and count for budget and schedule. The branch reads the sample at place
    `consumed_samples - data_from` of its data: with other data than its parent's it begins at their start. A parent
    that is `tuned` gives its weights alone: steps, budget and optimiser begin anew. Where adapters train, `base` is the
    checkpoint that they lie on: the parent's, or where that has adapters too, theirs.
    """

    id: str
    path: str
    step: int
    consumed_samples: int
    changes: tuple[str, ...] = ()
    data_from: int = 0
    tuned: bool = False
    base: str = ""
    base_fingerprint: str = ""

    @property
    def checkpoint(self) -> Path:
        """Where its weights and its optimiser lie."""
        return Path(self.path) / "checkpoints" / f"step-{self.step:08d}"

    @property
    def tie(self) -> dict[str, str]:
        """What ties that checkpoint to the parent; nothing of one that had no id yet."""
        return {RUN: self.id} if self.id else {}


@dataclass(frozen=True)
class Record:
    """Who a run is: 16 hex digits, a name if it was given one, seconds since 1970, and its parent if it is a branch."""

    id: str
    name: str | None
    created: float
    parent: Parent | None = None


def write(path: Path, name: str | None = None, parent: Parent | None = None) -> Record:
    """Write who the run in the directory `path` is."""
    record = Record(secrets.token_hex(8), name, time.time(), parent)
    write_json(path / FILE, asdict(record))
    return record


def read(path: Path) -> Record | None:
    """Who the run in the directory `path` is; None where nothing, or something else than we write, says so."""
    values = read_object(path / FILE)
    try:
        parent = values["parent"]
        known = Parent(**{**parent, "changes": tuple(map(str, parent["changes"]))}) if parent else None
        return Record(str(values["id"]), values["name"] and str(values["name"]), float(values["created"]), known)
    except (KeyError, TypeError, ValueError):
        return None


def parent_of(path: Path) -> Parent | None:
    """The parent of a run, None where it is no branch. Errors: `UserError` where `run.json` cannot say so."""
    known = read(path)
    if known is None and (path / FILE).exists():
        raise UserError(f"{path / FILE} was changed; restore it, or start a new run")
    return known.parent if known else None


def read_object(file: Path) -> JsonObject:
    """The JSON object of a file; an empty one where there is none, or something else."""
    try:
        values: Any = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def label(path: Path) -> str:
    """What to call the run in the directory `path`: its name, or else its directory's."""
    record = read(path)
    return (record and record.name) or path.resolve().name
