"""What a command line asks for, checked against the recipe, the JSON, the world size and what is on disk."""

import dataclasses
import itertools
import os
import time
from dataclasses import dataclass
from pathlib import Path

from model.engine import config as engine_config
from model.engine.batch import GLOBAL, KEYS, MICRO, STEPS
from model.engine.resolve import Resolved
from planner.resolve import resolve_engine
from planner.worlds import Worlds
from recipes import settings
from recipes.recipe import Recipe
from recipes.registry import ROOT
from run import branch, record, resize, resume, select
from run.directory import Run, check_new, read_recipe, runs_root, was_trained
from support.errors import UserError
from support.json_object import JsonObject, differences

RESUME = ("must", "auto", "never")  # what --resume may say; alone it says the first


@dataclass(frozen=True)
class Request:
    """What the command line asked for.

    With `resume` there must be a run to go on with; with `auto` the run is begun where there is none.
    """

    deepspeed_config: str | None = None
    settings: tuple[str, ...] = ()
    max_steps: int | None = None
    run_dir: str | None = None
    resume: bool = False
    seed: int | None = None
    name: str | None = None
    branch: str | None = None
    auto: bool = False
    allow_change: bool = False


def plan_run(recipe: Recipe, request: Request, world_size: int) -> Run:
    """Check a request against recipe, JSON, world size and what is on disk. Writes nothing.

    Errors: `UserError` for everything that would make the run fail later and can be known now.
    """
    request = settled(recipe, request)
    path = run_path(recipe, request)
    if request.resume:
        resume.check_no_import(path)
    check_new(path, request.resume)
    name = _name(request)
    point = None if request.branch is None else branch.point_of(request.branch)
    goes_on = point if point and point.recipe.name == recipe.name else None
    home = path if request.resume else goes_on and goes_on.run  # whose recipe and JSON are changed, if any
    stored = read_recipe(home) if home else None
    if recipe.data.tunes:
        recipe = _tuned(recipe, stored, point)
    wanted = settings.override(stored or recipe, list(request.settings))
    if request.seed is not None:
        wanted = dataclasses.replace(wanted, seed=request.seed)
    if stored is not None and request.resume:
        _check_same_run(path, recipe, stored, wanted)
    if wanted.data.tunes and wanted.data.tokeniser != recipe.data.tokeniser:
        raise UserError(
            f"--set data.tokeniser={wanted.data.tokeniser}: a model that is tuned keeps its own; leave that setting out"
        )
    if point:
        wanted = branch.fitted(wanted, point)
    kept = stored is not None and (request.resume or wanted.engine == stored.engine)
    if request.deepspeed_config is not None:
        config_path = _config_path(request.deepspeed_config)
    else:
        config_path = home / "ds_config.json" if home and kept else _config_path(wanted.engine)
    config = engine_config.parse(config_path)
    if stored is not None and request.resume:
        batch = _steps_of(path, stored, wanted, config, request, world_size)
        worlds = Worlds(wanted, config, config_path, batch, resize.consumed(path))
        resolved = resize.resolved_on(path, worlds, world_size)
    else:
        resolved = resolve_engine(wanted, config, config_path, world_size)
    resolved = dataclasses.replace(resolved, deviations=(*_changed(recipe, wanted), *resolved.deviations))
    if request.max_steps is not None and request.max_steps < 1:
        raise UserError(f"--max-steps is {request.max_steps}; it must be at least 1")
    _check_outputs(resolved.json, config_path)
    if wanted.batch.ramp and resolved.json["train_batch_size"] != wanted.batch.global_batch:
        raise UserError(f"{config_path}: train_batch_size does not go with a batch-size ramp; set batch.global_batch")
    changed: tuple[str, ...] = ()
    if stored is not None and request.resume:
        changed = _allowed_changes(path, stored, (wanted, resolved), request.allow_change)
    asked = (world_size, request.max_steps, request.resume, name)
    parent = record.parent_of(path) if request.resume else None
    run = Run(path, wanted, config, resolved, *asked, parent, changed)
    run = branch.with_parent(run, point) if point else run
    branch.check_adapters(run.parent, wanted)
    return run


def _tuned(recipe: Recipe, stored: Recipe | None, point: branch.Point | None) -> Recipe:
    """A recipe that tunes, for the model that it goes on with or begins with."""
    if stored is None:
        return branch.based(recipe, point)
    data = dataclasses.replace(recipe.data, tokeniser=stored.data.tokeniser)
    return dataclasses.replace(recipe, model=stored.model, data=data)


def settled(recipe: Recipe, request: Request) -> Request:
    """The request with `auto` decided: it goes on with a run that finished a step, or begins one.

    Errors: `UserError` where nobody can tell which run is meant.
    """
    if not request.auto:
        return request
    if request.branch is not None and request.run_dir is None and request.name is None:
        raise UserError("--resume auto with --from needs --run-dir or --name: else the newest run may be the parent")
    named, request = request.run_dir or request.name, dataclasses.replace(request, auto=False)
    try:
        path = select.newest(recipe.name) if named in (None, select.NEWEST) else select.find(named)
    except UserError:
        return request
    if not was_trained(path):
        return request
    return dataclasses.replace(request, run_dir=str(path), resume=True, name=None, branch=None)


def _batch_of(path: Path, stored: Recipe) -> int:
    """The global batch that a run has had so far."""
    found = record.read_object(path / "ds_config.resolved.json").get(GLOBAL)
    return found if isinstance(found, int) else stored.batch.global_batch


def _steps_of(path: Path, stored: Recipe, wanted: Recipe, config: JsonObject, request: Request, world_size: int) -> int:
    """The global batch that a resumed run is to have: the one that it had, where nothing else is asked for."""
    asked = request.allow_change or request.deepspeed_config or wanted.batch != stored.batch
    if not asked:
        return _batch_of(path, stored)
    given = {key: size for key in KEYS if isinstance(size := config.get(key), int)}
    if GLOBAL not in given and len(given) == 2:  # as `model.engine.batch` has it
        return int(given[MICRO] * given[STEPS] * (world_size // wanted.layout.ranks_per_replica))
    return int(given.get(GLOBAL, wanted.batch.global_batch))


def _allowed_changes(path: Path, stored: Recipe, wanted: tuple[Recipe, Resolved], allowed: bool) -> tuple[str, ...]:
    """What a resume changes of the numbers that a run computes. Errors: `UserError` where that was not allowed."""
    file = path / "ds_config.json"
    world, config = record.read_object(path / "start.json").get("world_size", 1), engine_config.parse(file)
    worlds = Worlds(stored, config, file, _batch_of(path, stored), resize.consumed(path))
    before = resolve_engine(worlds.fitted(world) or stored, config, file, world, worlds.consumed)
    changed = tuple(resume.changes((stored, before), wanted))
    if changed and not allowed:
        raise UserError(
            f"this resume of {path} would change {', '.join(changed)}; leave that out, add --allow-change to go on "
            f"with it, or begin a branch of the run with --from {path}"
        )
    return changed


def _name(request: Request) -> str | None:
    """The name of a new run. Errors: `UserError` for what only a new run can be given, and for a bad name."""
    if request.resume and request.branch is not None:
        raise UserError("--resume goes on with a run, and --from begins another from its checkpoint; give one of them")
    if request.name is None:
        return None
    if request.resume:
        raise UserError("--name names a new run; leave it out where --resume goes on with one")
    return select.new_name(request.name)


def run_path(recipe: Recipe, request: Request) -> Path:
    """The directory that a run will have, or has where it goes on. Errors: `UserError` where there can be none."""
    if request.resume:
        asked = request.run_dir
        return select.newest(recipe.name) if asked in (None, select.NEWEST) else select.find(asked)
    if request.run_dir:
        path = Path(request.run_dir)
        standing = next(place for place in (path, *path.absolute().parents) if place.exists())
        if not standing.is_dir():
            raise UserError(f"--run-dir {path}: {standing} is a file; give a directory")
        return path
    place = runs_root() / recipe.name / time.strftime("%Y%m%d-%H%M%S")
    others = (place.with_name(f"{place.name}-{number}") for number in itertools.count(2))
    return place if not place.exists() else next(other for other in others if not other.exists())


def _config_path(given: str) -> Path:
    """A JSON by its path, from the working directory or from the project."""
    return Path(given) if Path(given).exists() or Path(given).is_absolute() else ROOT / given


def _check_same_run(path: Path, recipe: Recipe, stored: Recipe, wanted: Recipe) -> None:
    if stored.name != recipe.name:
        raise UserError(f"{path} is a run of {stored.name}, not of {recipe.name}; resume it with {stored.name}")
    for section in ("model", "data", "lora", "teacher", "dpo"):
        before, after = getattr(stored, section), getattr(wanted, section)
        for entry in dataclasses.fields(before):
            old, new = getattr(before, entry.name), getattr(after, entry.name)
            if old != new:
                if entry.name == "corpus":
                    old, new = settings.spelled(old), settings.spelled(new)
                shape = section in ("model", "lora") and entry.name not in branch.SHAPELESS
                other_way = "start a new run" if shape else f"begin a branch of it with --from {path}"
                raise UserError(
                    f"{path} was started with {section}.{entry.name} {old}, not {new}; resume it without "
                    f"that setting, or {other_way}"
                )
    if stored.seed != wanted.seed:
        raise UserError(
            f"{path} was started with seed {stored.seed}, not {wanted.seed}; resume it without --seed, or begin a "
            f"branch of it with --from {path}"
        )


def _changed(recipe: Recipe, wanted: Recipe) -> list[str]:
    """A line for each field of a recipe that was overridden: in this start, or in the one that it goes on from."""
    before, after = (settings.plain(each, branch.DESCRIBED) for each in (recipe, wanted))
    return [f"{name} is {new} (recipe: {old})" for name, old, new in differences(before, after)]


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
