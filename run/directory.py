"""The run directory: everything that made a run, and everything it made.

runs/<recipe>/<time>/
    run.json                  who it is: id, name, when it was created, and its parent if it is a branch
    recipe.json               the recipe with its overrides, as the first start had it
    ds_config.json            the DeepSpeed JSON as it was given, "auto" and all; a resumed run reads it again
    ds_config.resolved.json   the same without "auto", as DeepSpeed got it
    data.json, tokeniser/     the manifests of the prepared data, and a copy of the tokeniser
    start.json                what the last start was asked for: command, world size, last step, whether it resumes, its
                              recipe, and what it changed of the numbers that the run computes
    starts.jsonl              all starts, a line each, with time, versions, commit and device
    status.json               how the last start ended; none while it runs, and none after a crash that nobody noted
    metrics.jsonl             one line a step, and one for the last evaluation
    events.jsonl              what else happened
    checkpoints/              step-00000100/ …
    evaluations/              what `evaluate --tasks` found, a file each time
    jobs.jsonl                where a scheduler runs it: a line a job, with its kind and id
    job.sh, job.yaml          what the scheduler was given last
    .lock                     held by the process that trains here
    report.json, loss.png     written at the end; `report` draws the curve at any time

The directory is how the launcher tells the ranks what to do: they are given its path and nothing else.
"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from data.samples import mixture
from data.samples.mixture import Mixture
from model.engine.resolve import Resolved
from recipes import settings
from recipes.recipe import Recipe, steps_for
from recipes.registry import ROOT
from run import record
from run.record import Parent
from run.resume import check_can_go_on
from support.errors import UserError
from support.files import enough_room, locked, whole_folder, write_json
from support.json_object import JsonObject
from support.secrets import command_to_keep

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "datasets", "numpy")


def runs_root() -> Path:
    """Where runs and prepared data are kept: `$STAGECRAFT_RUNS`, else `runs/` in the working directory."""
    return Path(os.environ.get("STAGECRAFT_RUNS", "runs"))


@dataclass(frozen=True)
class Run:
    """A run that was checked and can start: nothing of it needs to be on disk yet."""

    path: Path
    recipe: Recipe
    engine_json: JsonObject
    engine: Resolved
    world_size: int
    max_steps: int | None
    resume: bool
    name: str | None = None
    parent: Parent | None = None
    changes: tuple[str, ...] = ()

    def last_step_from(self, step: int, consumed_samples: int) -> int:
        """The step at which the token budget is used up, or `--max-steps` reached, seen from a position of the run."""
        recipe = self.recipe
        batch = dataclasses.replace(recipe.batch, global_batch=self.engine.json["train_batch_size"])
        left = steps_for(recipe.train_samples, batch, consumed_samples)
        return step + left if self.max_steps is None else min(step + left, self.max_steps)

    @property
    def data_from(self) -> int:
        """How many samples a branch's parent had read where the branch begins with data of its own; else 0."""
        return self.parent.data_from if self.parent else 0

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"


@contextmanager
def created(run: Run, data: Mixture) -> Iterator[int]:
    """Write what makes a run, and hold its directory for this process alone; yields the descriptor of the lock.

    Errors: `UserError` where another process trains there, or has meanwhile, and where a run that saved has nothing to
    go on from; `NoRoomError`.
    """
    busy = f"another process trains in {run.path}; wait for its end, or give another --run-dir"
    with locked(run.path / ".lock", busy) as lock:
        check_new(run.path, run.resume)
        if run.resume:
            check_can_go_on(run.path)
        with enough_room(run.path):
            _create(run, data)
        yield lock


def check_new(path: Path, resume: bool) -> None:
    """A run is not started anew over another one. Errors: `UserError`."""
    if not resume and was_trained(path):
        raise UserError(f"{path} already holds a run; add --resume to go on with it, or give another --run-dir")


def _create(run: Run, data: Mixture) -> None:
    """Write all that the ranks need to know. It counts as a run from its first step on."""
    if not run.resume or not (run.path / record.FILE).exists():
        record.write(run.path, run.name, run.parent)
    (run.path / "status.json").unlink(missing_ok=True)
    write_json(run.path / "ds_config.json", run.engine_json)
    write_json(run.path / "ds_config.resolved.json", run.engine.json)
    write_json(run.path / "data.json", data.described)
    with whole_folder(run.path / "tokeniser") as folder:
        shutil.copytree(data.parts[0].folder / "tokeniser", folder, dirs_exist_ok=True)
    recipe = dataclasses.asdict(run.recipe)
    start = {
        "command": command_to_keep(sys.orig_argv),
        "world_size": run.world_size,
        "max_steps": run.max_steps,
        "resumed": run.resume,
        "deviations": list(run.engine.deviations),
        "notes": list(run.engine.notes),
        "changes": list(run.parent.changes if run.parent and not run.resume else run.changes),
        "recipe": recipe,
    }
    write_json(run.path / "start.json", start)
    if not run.resume or not (run.path / "recipe.json").exists():
        write_json(run.path / "recipe.json", recipe)


def opened(path: Path) -> tuple[Run, Mixture]:
    """The run that `created` wrote, and its data, which that has checked.

    Errors: `UserError` where a file is missing or was changed.
    """
    return read_run(path), mixture.reopened(read_data(path), hashes=False, taught=True)


def read_run(path: Path) -> Run:
    """The run that `created` wrote. Errors: `UserError` where a file is missing or was changed."""
    start, resolved = _read_json(path / "start.json"), _read_json(path / "ds_config.resolved.json")
    engine = Resolved(resolved, tuple(start["deviations"]), tuple(start.get("notes", ())))
    given = _read_json(path / "ds_config.json")
    asked = (start["world_size"], start["max_steps"], start["resumed"])
    changes = tuple(start.get("changes", ())) if start["resumed"] else ()
    return Run(path, read_recipe(path), given, engine, *asked, parent=record.parent_of(path), changes=changes)


def note_start(run: Run, device: str) -> None:
    """Add a line to `starts.jsonl`: what was asked for, and with what it is done."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **_read_json(run.path / "start.json"),
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": device,
    }
    with open(run.path / "starts.jsonl", "a") as stream:
        stream.write(json.dumps(line) + "\n")


def note_end(path: Path, status: int, reason: str = "") -> None:
    """Write how a start ended. GNU make and the deepspeed launcher pass no exit status of a rank on."""
    with suppress(OSError):  # on a full disk the reason is worth more than this file
        write_json(path / "status.json", {"status": status, "reason": reason})


def end_of(path: Path) -> int | None:
    """The exit status of the last start; None while it runs, and where it crashed."""
    file = path / "status.json"
    return int(_read_json(file)["status"]) if file.exists() else None


def was_trained(path: Path) -> bool:
    """Whether a directory is that of a run that finished a step: it has metrics, or a checkpoint."""
    metrics = path / "metrics.jsonl"
    measured = metrics.exists() and metrics.stat().st_size > 0
    return (path / "recipe.json").exists() and (measured or any((path / "checkpoints").glob("step-????????")))


def read_recipe(path: Path) -> Recipe:
    """The recipe of a run, as its last start had it. Errors: `UserError` where `path` is no run."""
    file = path / "recipe.json"
    if not file.exists():
        raise UserError(f"{path} is not a run directory (no recipe.json); give the directory that a run wrote")
    last = record.read_object(path / "start.json").get("recipe")
    return settings.from_dict(last or _read_json(file), str(path / "start.json" if last else file))


def read_data(path: Path) -> JsonObject:
    """The data that a run was trained on, as it described them. Errors: `UserError` where they cannot be read."""
    values = _read_json(path / "data.json")
    if "parts" not in values:
        raise UserError(f"{path / 'data.json'} was changed; restore it, or start a new run")
    return values


def _read_json(file: Path) -> JsonObject:
    try:
        values: JsonObject = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file} is missing; restore it, or start a new run") from None
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}; restore it, or start a new run") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} must hold a JSON object; restore it, or start a new run")
    return values
