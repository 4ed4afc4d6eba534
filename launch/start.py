"""Start the ranks of a run and see that they finish."""

import dataclasses
import time
from pathlib import Path

from inference import reference, teach
from launch import local
from launch.care import Care
from launch.clusters import in_job
from launch.clusters.description import Cluster
from launch.follow import following
from launch.hosts.hosts import Hosts, hosts_of
from planner import planning
from planner.show import show
from recipes.recipe import Recipe
from recipes.registry import ROOT
from run import events, members, report
from run.directory import created
from run.noted import noted
from run.request import Request, plan_run, run_path
from support.errors import UserError
from support.json_object import JsonObject

DEFAULT = Care()


def start(
    recipe: Recipe,
    request: Request,
    processes: int | None,
    hostfile: str | None,
    care: Care = DEFAULT,
    cluster: Cluster | None = None,
) -> JsonObject:
    """Check all that can be checked, write the run directory, see the ranks through on it; returns the report.

    With a `cluster` of kind hostfile that says how hosts are reached; `hostfile` takes the place of the one it names.

    Errors: `SystemExit` with the exit status of the run, see `support/errors.py`; its ranks have said why.
    """
    began = time.time()
    path = run_path(recipe, request)
    print(f"{'resuming' if request.resume else 'starting'} {recipe.name} in {path}", flush=True)  # what follows is slow
    care.check()
    hosts = hosts_of(hostfile, cluster)
    if hosts and processes:
        raise UserError("--processes and --hostfile exclude each other: the hostfile's slots count the processes")
    request = dataclasses.replace(request, run_dir=str(path))
    noted_before = len(events.read(path))
    try:
        with following(path, began) as output:
            ended = _ended(recipe, request, processes, hosts, care, began, output)
    finally:
        _tell_end(path, care, noted_before)
    if ended:
        raise SystemExit(ended)
    report.show(path)
    return report.read(path)


def _ended(
    recipe: Recipe,
    request: Request,
    processes: int | None,
    hosts: Hosts | None,
    care: Care,
    began: float,
    output: int | None,
) -> int:
    """Start and see through the ranks; returns how the run ended. The launcher prints to the descriptor `output`."""
    own = in_job.world_size() or (hosts.world_size if hosts else None)
    world = own or local.world_size(None, processes, recipe.cluster.world_size)
    if not request.resume and not request.settings and world < recipe.layout.ranks_per_replica:
        machine = planning.cluster_machine(recipe.cluster)
        show(planning.plan(recipe, ROOT / recipe.engine, recipe.cluster.world_size, machine))
    run = plan_run(recipe, request, world)
    if hosts:
        hosts.check(run.path)
    from launch.supervise import Supervisor
    from model.engine.build import check_json  # imports torch and DeepSpeed
    from training import tasks

    check_json(run.engine.json, run.recipe.layout, world)
    tasks.check(run.recipe)
    at_data = time.time()
    if not run.resume:
        teach.check(run.recipe)  # the data may take hours
    data = reference.data_of(run, print)
    members.wait_alone(run.path)
    with created(run, data) as lock, noted(run, began, at_data):
        return Supervisor(run, care, hosts, lock, output).see_through()


def _tell_end(path: Path, care: Care, noted_before: int) -> None:
    """Tell whoever is to be told how this start ended, which began when so many events were there."""
    last = events.read(path)[noted_before:][-1:]
    if last and last[0]["event"] == "end":
        care.tell(path, "end", **{name: last[0].get(name) for name in ("status", "reason")})
