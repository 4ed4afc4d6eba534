"""What a command line asks for, checked against the recipe, the JSON, the world size and what is on disk."""

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path

from model.engine import config as engine_config
from model.engine.resolve import Resolved
from planner.resolve import resolve_engine
from recipes import settings
from recipes.recipe import Recipe
from recipes.registry import ROOT
from run.directory import Run, check_new, newest, read_recipe, runs_root
from support.errors import UserError
from support.json_object import JsonObject


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    deepspeed_config: str | None = None
    settings: tuple[str, ...] = ()
    max_steps: int | None = None
    run_dir: str | None = None
    resume: bool = False
    seed: int | None = None


def plan_run(recipe: Recipe, request: Request, world_size: int) -> Run:
    """Check a request against recipe, JSON, world size and what is on disk. Writes nothing.

    Errors: `UserError` for everything that would make the run fail later and can be known now.
    """
    path = _run_path(recipe, request)
    stored = read_recipe(path) if request.resume else None
    check_new(path, request.resume)
    wanted = settings.override(stored or recipe, list(request.settings))
    if request.seed is not None:
        wanted = dataclasses.replace(wanted, seed=request.seed)
    if stored is not None:
        _check_same_run(path, recipe, stored, wanted)
    if request.deepspeed_config is None and stored is not None:
        config_path = path / "ds_config.json"
    else:
        config_path = _config_path(request.deepspeed_config or wanted.engine)
    config = engine_config.parse(config_path)
    resolved = resolve_engine(wanted, config, config_path, world_size)
    resolved = dataclasses.replace(resolved, deviations=(*_changed(recipe, wanted), *resolved.deviations))
    if request.max_steps is not None and request.max_steps < 1:
        raise UserError(f"--max-steps is {request.max_steps}; it must be at least 1")
    _check_outputs(resolved.json, config_path)
    if wanted.batch.ramp and resolved.json["train_batch_size"] != wanted.batch.global_batch:
        raise UserError(f"{config_path}: train_batch_size does not go with a batch-size ramp; set batch.global_batch")
    return Run(path, wanted, config, _with_monitors(resolved, path), world_size, request.max_steps, request.resume)


def _run_path(recipe: Recipe, request: Request) -> Path:
    if request.run_dir:
        path = Path(request.run_dir)
        standing = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not standing.is_dir():
            raise UserError(f"--run-dir {path}: {standing} is a file; give a directory")
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


def _changed(recipe: Recipe, wanted: Recipe) -> list[str]:
    """A line for each field of a recipe that was overridden: in this start, or in the one that it resumes."""
    before, after = _fields(recipe), _fields(wanted)
    return [f"{name} is {after[name]} (recipe: {old})" for name, old in before.items() if after[name] != old]


def _fields(recipe: Recipe) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in vars(recipe).items():
        if dataclasses.is_dataclass(value):
            found |= {f"{name}.{key}": each for key, each in vars(value).items()}
        else:
            found[name] = value
    return found | {"data.corpus": settings.spelled(recipe.data.corpus)}


def _check_outputs(config: JsonObject, config_path: Path) -> None:
    """Refuse a place that the JSON has things written to and that cannot be one. Errors: `UserError` with the key."""
    monitors = [(f"{name}.output_path", config.get(name, {})) for name in ("tensorboard", "csv_monitor")]
    for key, section in [*monitors, ("flops_profiler.output_file", config.get("flops_profiler", {}))]:
        given = section.get(key.partition(".")[2]) if section.get("enabled") else None
        if given:
            place = Path(given).parent if key.endswith("file") else Path(given)
            standing = next(each for each in (place, *place.absolute().parents) if each.exists())
            if not (standing.is_dir() and os.access(standing, os.W_OK | os.X_OK)):
                raise UserError(f"{config_path}: {key} is {given} and nothing can be written there; give another place")


def _with_monitors(resolved: Resolved, path: Path) -> Resolved:
    """Let the monitors that the JSON switches on write into the run directory unless it says where."""
    config = dict(resolved.json)
    for name in ("tensorboard", "csv_monitor"):
        if config.get(name, {}).get("enabled"):
            config[name] = {"output_path": str(path), "job_name": name, **config[name]}
    if config.get("wandb", {}).get("enabled"):
        config["wandb"] = {"project": "stagecraft", **config["wandb"]}
    return dataclasses.replace(resolved, json=config)
