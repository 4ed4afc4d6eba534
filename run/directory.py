"""The run directory: everything that made a run, and everything it made.

runs/<recipe>/<run-id>/
    recipe.json               the recipe with its overrides
    ds_config.json            the DeepSpeed JSON as it was given, "auto" and all; a resumed run reads it again
    ds_config.resolved.json   the same without "auto", as DeepSpeed got it
    starts.jsonl              one line a start: time, command, world size, versions, commit, device, deviations
    data.json, tokeniser/     the manifests of the prepared data, and a copy of the tokeniser
    metrics.jsonl             one line a step
    checkpoints/              step-00000100/ …
    report.json, loss.png     written at the end
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.samples.mixture import Mixture
from model.engine import config as engine_config
from model.engine.resolve import Resolved
from planner.resolve import resolve_engine
from recipes import settings
from recipes.recipe import Recipe, steps_for
from recipes.registry import ROOT
from support.errors import UserError

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "datasets", "numpy")


def runs_root() -> Path:
    """Where runs and prepared data are kept: `$STAGECRAFT_RUNS`, else `runs/` in the working directory."""
    return Path(os.environ.get("STAGECRAFT_RUNS", "runs"))


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    deepspeed_config: str | None = None
    settings: tuple[str, ...] = ()
    max_steps: int | None = None
    run_dir: str | None = None
    resume: bool = False
    seed: int | None = None


@dataclass(frozen=True)
class Run:
    """A run that was checked and can start: nothing of it needs to be on disk yet."""

    path: Path
    recipe: Recipe
    engine_json: dict[str, Any]
    engine: Resolved
    max_steps: int | None
    resume: bool

    def last_step_from(self, step: int, consumed_samples: int) -> int:
        """The step at which the token budget is used up, or `--max-steps` reached, seen from a position of the run."""
        recipe = self.recipe
        batch = dataclasses.replace(recipe.batch, global_batch=self.engine.json["train_batch_size"])
        left = steps_for(recipe.train_samples, batch, consumed_samples)
        return step + left if self.max_steps is None else min(step + left, self.max_steps)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"


def plan_run(recipe: Recipe, request: Request, world_size: int) -> Run:
    """Check a request against recipe, JSON, world size and what is on disk. Writes nothing.

    Errors: `UserError` for everything that would make the run fail later and can be known now.
    """
    path = _run_path(recipe, request)
    stored = read_recipe(path) if request.resume else None
    if stored is None and (path / "recipe.json").exists():
        raise UserError(f"{path} already holds a run; add --resume to go on with it, or give another --run-dir")
    wanted = settings.override(stored or recipe, list(request.settings))
    if request.seed is not None:
        wanted = dataclasses.replace(wanted, seed=request.seed)
    if stored is not None:
        _check_same_run(path, recipe, stored, wanted)
    if request.deepspeed_config is None and stored is not None:
        config_path, config = path / "ds_config.json", engine_config.read(path / "ds_config.json")
    else:
        config_path = _config_path(request.deepspeed_config or wanted.engine)
        config = engine_config.read(config_path)
    resolved = resolve_engine(wanted, config, config_path, world_size)
    if request.max_steps is not None and request.max_steps < 1:
        raise UserError(f"--max-steps is {request.max_steps}; it must be at least 1")
    if wanted.batch.ramp and resolved.json["train_batch_size"] != wanted.batch.global_batch:
        raise UserError(f"{config_path}: train_batch_size does not go with a batch-size ramp; set batch.global_batch")
    return Run(path, wanted, config, _with_monitors(resolved, path), request.max_steps, request.resume)


def _run_path(recipe: Recipe, request: Request) -> Path:
    if request.run_dir:
        path = Path(request.run_dir)
        if path.exists() and not path.is_dir():
            raise UserError(f"--run-dir {path} is a file; give a directory")
        return path
    if request.resume:
        return newest(recipe.name)
    return runs_root() / recipe.name / time.strftime("%Y%m%d-%H%M%S")


def _config_path(given: str) -> Path:
    """A JSON by its path, from the working directory or from the project."""
    return Path(given) if Path(given).exists() or Path(given).is_absolute() else ROOT / given


def _check_same_run(path: Path, recipe: Recipe, stored: Recipe, wanted: Recipe) -> None:
    if stored.name != recipe.name:
        raise UserError(f"{path} is a run of {stored.name}, not of {recipe.name}; resume it with {stored.name}")
    for section in ("model", "data"):
        before, after = getattr(stored, section), getattr(wanted, section)
        for entry in dataclasses.fields(before):
            old, new = getattr(before, entry.name), getattr(after, entry.name)
            if old != new:
                if entry.name == "corpus":
                    old, new = settings.spelled(old), settings.spelled(new)
                raise UserError(
                    f"{path} was started with {section}.{entry.name} {old}, not {new}; resume it without "
                    f"that setting, or start a new run"
                )
    if stored.seed != wanted.seed:
        raise UserError(f"{path} was started with seed {stored.seed}, not {wanted.seed}; resume it without --seed")


def _with_monitors(resolved: Resolved, path: Path) -> Resolved:
    """Let the monitors that the JSON switches on write into the run directory unless it says where."""
    config = dict(resolved.json)
    for name in ("tensorboard", "csv_monitor"):
        if config.get(name, {}).get("enabled"):
            config[name] = {"output_path": str(path), "job_name": name, **config[name]}
    if config.get("wandb", {}).get("enabled"):
        config["wandb"] = {"project": "stagecraft", **config["wandb"]}
    return dataclasses.replace(resolved, json=config)


def create(run: Run, data: Mixture, world_size: int) -> None:
    """Write what made the run. A run whose `recipe.json` exists can be resumed."""
    run.path.mkdir(parents=True, exist_ok=True)
    _write_json(run.path / "ds_config.json", run.engine_json)
    _write_json(run.path / "ds_config.resolved.json", run.engine.json)
    _write_json(run.path / "data.json", data.described)
    shutil.copytree(data.parts[0].folder / "tokeniser", run.path / "tokeniser", dirs_exist_ok=True)
    with open(run.path / "starts.jsonl", "a") as stream:
        stream.write(json.dumps(_circumstances(run, world_size)) + "\n")
    _write_json(run.path / "recipe.json", dataclasses.asdict(run.recipe))


def _write_json(path: Path, value: Any) -> None:
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(scratch, path)


def _circumstances(run: Run, world_size: int) -> dict[str, Any]:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.orig_argv,
        "world_size": world_size,
        "resumed": run.resume,
        "deviations": list(run.engine.deviations),
        "commit": commit or "unknown",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": device_name(),
    }


def device_name() -> str:
    """What this process computes on."""
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()  # arm64 gives its CPUs no name there


def read_recipe(path: Path) -> Recipe:
    """The recipe of a run. Errors: `UserError` where `path` is no run."""
    file = path / "recipe.json"
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{path} is not a run directory (no recipe.json); give the directory that a run wrote"
        ) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file} line {error.lineno} is not JSON: {error.msg}; restore it") from None
    return settings.from_dict(values, str(file))


def newest(name: str | None = None) -> Path:
    """The run that was started or resumed last, of one recipe or of all. Errors: `UserError` where there is none."""
    found = runs_root().glob(f"{name or '*'}/*/recipe.json")
    runs = sorted((file.parent for file in found), key=lambda path: (path / "starts.jsonl").stat().st_mtime)
    if not runs:
        raise UserError(
            f"there is no run below {runs_root() / (name or '')}; train one with make demo, or give its directory"
        )
    return runs[-1]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line torn by a crash is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def truncate_metrics(path: Path, step: int) -> None:
    """Forget the steps after a checkpoint: a resumed run takes them again."""
    kept = [line for line in read_metrics(path) if line["step"] <= step]
    scratch = path.with_name(path.name + ".partial")
    scratch.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(scratch, path)
