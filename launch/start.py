"""Start the ranks of a run and see that they finish."""

import dataclasses
import time

from launch import local
from launch.follow import following
from planner import planning
from planner.show import show
from recipes.recipe import Recipe
from recipes.registry import ROOT
from run import report
from run.directory import created, end_of
from run.noted import noted
from run.prepared import run_data
from run.request import Request, plan_run, run_path
from support.errors import CrashedError, StoppedError
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
    with created(run, run_data(run, print)) as lock, noted(run, began, at_data):
        command = local.deepspeed_command("commands.rank", arguments, world, hostfile)
        status = local.run(command, local.environment(world), lock, output=output)
        ended = end_of(run.path)
        if ended is None and status - 128 in local.STOP_SIGNALS:
            raise StoppedError(f"stopped before it could save; go on with --resume --run-dir {run.path}")
        if ended is None:  # a rank or the launcher was killed
            raise CrashedError(
                f"the ranks ended with status {status} before the run did; go on with --resume --run-dir {run.path}"
            )
    return ended
