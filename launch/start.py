"""Start the ranks of a run and see that they finish."""

import dataclasses
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from launch import local
from launch.follow import following
from planner import planning
from planner.show import show
from recipes.recipe import Recipe
from recipes.registry import ROOT
from run import events, report
from run.directory import Run, created, end_of, note_end
from run.prepared import run_data
from run.request import Request, plan_run, run_path
from support.errors import CRASHED, CrashedError, UserError
from support.json_object import JsonObject


def start(recipe: Recipe, request: Request, processes: int | None, hostfile: str | None) -> JsonObject:
    """Check all that can be checked, write the run directory, start the ranks on it; returns the report.

    Errors: `SystemExit` with the exit status of the run, see `support/errors.py`; its ranks have said why.
    """
    began = time.time()
    path = run_path(recipe, request)
    print(f"{'resuming' if request.resume else 'starting'} {recipe.name} in {path}", flush=True)  # what follows is slow
    with following(path, began) as output:
        ended = _ended(recipe, dataclasses.replace(request, run_dir=str(path)), processes, hostfile, began, output)
    if ended:
        raise SystemExit(ended)
    report.show(path)
    return report.read(path)


def _ended(
    recipe: Recipe, request: Request, processes: int | None, hostfile: str | None, began: float, output: int | None
) -> int:
    """Start and see through the ranks, which print to the descriptor `output`; returns how the run ended."""
    world = local.world_size(hostfile, processes, recipe.cluster.world_size)
    if not request.resume and not request.settings and world < recipe.layout.ranks_per_replica:
        machine = planning.cluster_machine(recipe.cluster)
        show(planning.plan(recipe, ROOT / recipe.engine, recipe.cluster.world_size, machine))
    run = plan_run(recipe, request, world)
    arguments = ["--run-dir", str(run.path)]
    if hostfile:
        local.check_remote(arguments)
    from model.engine.build import check_json  # imports torch and DeepSpeed

    check_json(run.engine.json, run.recipe.layout, world)
    at_data = time.time()
    with created(run, run_data(run, print)) as lock, _noted(run, began, at_data):
        command = local.deepspeed_command("commands.rank", arguments, world, hostfile)
        status = local.run(command, local.environment(world), lock, output=output)
        ended = end_of(run.path)
        if ended is None:  # a rank or the launcher was killed
            raise CrashedError(
                f"the ranks ended with status {status} before the run did; go on with --resume --run-dir {run.path}"
            )
    return ended


@contextmanager
def _noted(run: Run, began: float, at_data: float) -> Iterator[None]:
    """Keep in the run directory when a start began, what it was busy with, and how it ended.

    The directory is there from the data on, so its first events are older than itself. A crash that no rank has noted
    is noted here.
    """
    facts = {"resumed": run.resume, "world_size": run.world_size, "pid": os.getpid(), "host": socket.gethostname()}
    events.note(run.path, "start", time=began, **facts)
    events.note(run.path, "phase", time=at_data, phase="data")
    events.note(run.path, "phase", phase="imports")
    try:
        yield
    except BaseException as error:
        status = error.status if isinstance(error, UserError) else CRASHED
        note_end(run.path, status, str(error) or type(error).__name__)
        raise
    finally:
        file = run.path / "status.json"  # a full disk has none
        events.note(run.path, "end", **(json.loads(file.read_text()) if file.exists() else {"status": CRASHED}))
