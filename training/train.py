"""One rank of a training run: from its data and its engine to the end of its loop."""

import os
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from data.samples.mixture import Mixture
from inference import reference, teach
from model.checkpoint.base import Base
from model.checkpoint.read import load_base, load_checked, load_newest
from model.checkpoint.together import told
from model.engine.build import build, check_json, start_process_group
from model.engine.config import fp32_json
from model.engine.device import check_device, will_compile
from model.engine.engine import Engine
from model.engine.inside import unexamined_version
from model.engine.precision import software
from recipes.recipe import Recipe
from recipes.registry import short_name
from run import report, resume
from run.directory import Run, created, note_end, note_start, opened
from run.noted import noted
from run.request import Request, plan_run
from support.errors import DONE, UserError
from support.files import enough_room
from support.json_object import JsonObject
from support.terminal import Say
from training import alike, proof, recorder, tasks
from training.device import device_name
from training.display import Display
from training.launchers import check_meeting
from training.log import Log
from training.loop import Loop
from training.preferred import source_of
from training.rollback import Position, position_of
from training.source import check_alike


def train_launched(path: Path) -> None:
    """One rank of a run that our launcher wrote into `path`: it is told nothing else."""
    if torch.cuda.is_available():
        recorder.record(path)
    start_process_group()
    _train(*opened(path))


def train_alone(recipe: Recipe, request: Request) -> None:
    """One rank that another launcher started with the flags of a recipe: rank 0 writes the run directory."""
    began = time.time()
    check_meeting()
    start_process_group()
    run = plan_run(recipe, _same_path(recipe, request), torch.distributed.get_world_size())
    if run.world_size > int(os.environ.get("LOCAL_WORLD_SIZE", run.world_size)):
        _check_data(run)
    check_json(run.engine.json, run.recipe.layout, run.world_size)
    tasks.check(run.recipe)
    at_data = time.time()
    first = torch.distributed.get_rank() == 0
    say: Say = print if first else lambda line: None
    _train(run, reference.data_of(run, say, hashes=first), alone_since=(began, at_data))


def _check_data(run: Run) -> None:
    """Ranks of several machines would wait for the first for hours. Errors: `UserError` where data are not there."""
    if lacking := told(teach.missing(run) if torch.distributed.get_rank() == 0 else []):
        raise UserError(
            f"{', '.join(lacking)} {'are' if lacking[1:] else 'is'} not prepared, and the ranks of several machines do "
            f"not wait for that; run stagecraft prepare {short_name(run.recipe.name)}, then give the same command again"
        )


def _same_path(recipe: Recipe, request: Request) -> Request:
    """Rank 0 chooses the run directory, and the checkpoint that a branch begins with, for all."""
    run = plan_run(recipe, request, torch.distributed.get_world_size())
    branch = f"{run.parent.path}@{run.parent.step}" if run.parent and not run.resume else None
    path, resumes, branch = told((str(run.path), run.resume, branch))
    name = None if resumes else request.name
    return replace(request, run_dir=path, resume=resumes, auto=False, branch=branch, name=name)


def _train(run: Run, mixture: Mixture, alone_since: tuple[float, float] | None = None) -> None:
    """Train to the last step, and say at the end how it ended.

    Without our launcher (`alone_since`: when the start and its data began) rank 0 does what that would do.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    assert world == run.world_size, f"{world} ranks were started for a run that was written for {run.world_size}"
    check_alike(run, mixture)
    with ExitStack() as parent:
        if alone_since and rank == 0:
            parent.enter_context(created(run, mixture))
            parent.enter_context(noted(run, *alone_since))
        try:
            with enough_room(run.path):
                _to_the_end(run, mixture, alone=alone_since is not None)
        except UserError as error:
            if rank == 0:
                note_end(run.path, error.status, str(error))
            raise
        if rank == 0:
            note_end(run.path, DONE)
    torch.distributed.destroy_process_group()


def _to_the_end(run: Run, mixture: Mixture, alone: bool) -> None:
    """Train to the last step, evaluating and saving on the way, and report; `alone` of our launcher also on screen."""
    rank = torch.distributed.get_rank()
    check_device(run.engine.json)
    with Log(run, Display(run.path) if alone and rank == 0 else None) as log:
        alike.check(run, log)
        if unexamined := unexamined_version():
            log.say(unexamined)
        if rank == 0:
            note_start(run, device_name())
            if slow := software(run.engine.json):
                log.say(f"slow: {slow}; for speed take {fp32_json(run.engine.json, run.recipe.layout)}")
        loop = _loop(run, mixture, log)
        loop.run_to_last_step()
        loop.evaluate_at_the_end()
    if rank == 0:
        values = report.write(run.path)
        if alone:
            report.show(run.path, values)


def _loop(run: Run, mixture: Mixture, log: Log) -> Loop:
    """The loop, ready to train from where the run is."""
    source = source_of(run.recipe, mixture, run.data_from)
    if compiling := will_compile(run.engine.json):
        log.say(compiling)
    log.note("phase", phase="compile" if compiling else "engine")
    recipe = run.recipe
    trainer = build(recipe.model, recipe.layout, run.engine.json, recipe.seed, mixture.entries, recipe.lora)
    log.note("phase", phase="load")
    tie = told(resume.tie_of(run.path, mixture))
    lies_on = _load_base(trainer, run)
    saved = load_newest(trainer, run.checkpoints, log.passed_over, tie, position_of) if run.resume else None
    from_parent = saved is None and run.parent is not None
    if saved is None and run.resume:
        resume.check_never_saved(run.path)
        if run.parent is None:
            log.say("nothing was saved before: the run begins again with its first step")
    if saved is None and run.parent:
        tuned = run.parent.tuned
        saved = lies_on or load_checked(trainer, run.parent.checkpoint, run.parent.tie, position_of, tuned)
        log.say(f"{'tunes' if tuned else 'branches off'} {run.parent.path} after step {run.parent.step}")
        for change in run.parent.changes:
            log.say(f"differs from its parent: {change}")
    for change in run.changes:
        log.say(f"changed since the last start: {change}")
    begins_anew = from_parent and run.parent and run.parent.tuned
    position = position_of(saved) if saved and not begins_anew else Position()
    if position.proof and from_parent and not proof.reads_alike(position.proof, source):
        log.say("no proof of the parent's weights: the branch reads other samples")
        position.proof = None
    if position.proof:
        log.say(proof.check(position.proof, trainer, source, run))
    loop = Loop(run, trainer, source, log, position, tie)
    log.start(position.step, loop.last_step)
    if not run.recipe.intervals.save_every:
        log.say(f"saving every {loop.save_seconds / 60:,.3g} minutes")
    return loop


def _load_base(trainer: Engine, run: Run) -> JsonObject | None:
    """Load what the adapters of a run lie on, if it trains any; collective. Gives its state where they begin with it.

    The adapters of a branch begin as those of its parent, where that has some.
    """
    parent, lora = run.parent, run.recipe.lora
    if not (lora.rank and parent):
        return None
    state = load_base(trainer, Base(parent.base, parent.base_fingerprint, lora.scale), parent.tuned)
    return state if Path(parent.base).resolve() == parent.checkpoint.resolve() else None
