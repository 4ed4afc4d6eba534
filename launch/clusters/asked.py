"""A job for a cluster's scheduler, and all that can be known before it waits in a queue."""

import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from inference import teach
from launch.care import RESTARTS, Care
from launch.clusters import network
from launch.clusters.description import Cluster, file_of, label
from launch.clusters.job import Job
from launch.clusters.submit import last_job
from planner import planning
from planner.hardware import find
from planner.resolve import data_degree
from planner.saving import saving
from planner.work import step_of
from recipes import recipe as recipes
from recipes.recipe import Recipe
from recipes.registry import ROOT, short_name
from recipes.settings import override
from run import select
from run.directory import Run, runs_root
from run.request import Request, plan_run, run_path, settled
from support.errors import UserError

# Settings that other data follows from.
OF_DATA = ("data.", "teacher.", "dpo.", "model.vocab_size=", "model.objective=")


@dataclass(frozen=True)
class Where:
    """Where a start is to run: a cluster by name or file, how many of its nodes, and what counts without one."""

    cluster: str | None = None
    nodes: int | None = None
    dry_run: bool = False
    processes: int | None = None
    hostfile: str | None = None

    @property
    def file(self) -> Path:
        """The cluster's file. Errors: `UserError`."""
        otherwise = "hostfile" if self.hostfile else "local"
        return file_of(otherwise if self.cluster is None else self.cluster)


def reference(cluster: Cluster, recipe: Recipe, nodes: int | None) -> recipes.Cluster:
    """The machines of a start: `nodes` of the cluster, else as many as its file says, else as the recipe was planned.

    With other GPUs a node than the recipe's, so many nodes that there are as many GPUs in all.
    """
    planned = recipe.cluster
    gpus = cluster.gpus_per_node or planned.gpus_per_node
    count = nodes or cluster.nodes or -(-planned.world_size // gpus)
    return recipes.Cluster(cluster.gpu or planned.gpu, count, gpus)


def job_of(recipe: Recipe, request: Request, where: Where, cluster: Cluster, care: Care) -> Job:
    """The job that trains a recipe on a cluster. Writes nothing; says what differs from the plan.

    Errors: `UserError` for what would make it fail when its turn comes: recipe, JSON, world size, precision, tasks, and
    on more than one node data that is not prepared.
    """
    care.check()
    file = where.file
    machines = reference(cluster, override(recipe, list(request.settings)), where.nodes)
    root = Path(cluster.runs) if cluster.runs else runs_root().absolute()
    here = cluster.kind == "slurm" or (cluster.kind == "kubernetes" and root.is_dir())  # whether the storage is
    asked = _known_by_its_job(recipe, request, root, here)
    with environment({"STAGECRAFT_RUNS": str(root)}):
        settled_request = settled(recipe, asked)
        path = run_path(recipe, settled_request).absolute()
        run = plan_run(recipe, replace(settled_request, run_dir=str(path)), machines.world_size)
        _check_json(run)
        if here:
            check_data(run, request, machines.nodes, where)
            _check_tasks(run.recipe)
        else:
            remark("the storage of the nodes is not here: whether the data is prepared there shows when the job runs")
    seconds = _planned(run, machines)
    variables = {"STAGECRAFT_RUNS": str(root), **network.environment(cluster, machines.nodes)}
    sized = replace(cluster, nodes=machines.nodes, gpus_per_node=machines.gpus_per_node, gpu=machines.gpu)
    return Job(
        recipe=recipe,
        words=words(request, care),
        cluster=replace(sized, environment=variables),
        cluster_file=file,
        nodes=machines.nodes,
        gpus_per_node=machines.gpus_per_node,
        run_dir=path,
        stop_seconds=saving(run.recipe, run.world_size).stop_seconds,
        seconds=seconds,
    )


def _check_tasks(recipe: Recipe) -> None:
    if recipe.tasks.names:
        from training import tasks  # imports torch, which a start without tasks does not need here

        tasks.check(recipe)


def _known_by_its_job(recipe: Recipe, request: Request, root: Path, here: bool) -> Request:
    """The request; where it goes on with a run that lies below `root`, on storage that is not `here`, by its place.

    This machine has a record of its jobs at most. The ranks see whether it goes on or begins. Errors: `UserError` for a
    run here that never began: what its job was given besides is not known.
    """
    named = request.run_dir or request.name
    if named is None or not (request.resume or request.auto):
        return request
    try:
        path = select.find(named)
    except UserError:
        return request
    known = last_job(path) is not None and not (path / "recipe.json").is_file()
    if here and known and request.resume:
        raise UserError(
            f"{path} has not begun yet; give the first command again, with --run-dir {shlex.quote(str(path))}"
        )
    if here and known:  # auto: in its own directory, and not in another one of the same name
        return replace(request, run_dir=str(path))
    if here or not (known or path.is_relative_to(root)):
        return request
    place = path if path.is_relative_to(root) else root / recipe.name / path.name
    return replace(request, run_dir=str(place), resume=False, auto=False, name=None)


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Have variables in the environment of this process, and of what it starts, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def words(request: Request, care: Care) -> tuple[str, ...]:
    """The flags of a request, as one types them, without those that say where it runs."""
    valued = {
        "--deepspeed_config": _portable(request.deepspeed_config),
        "--max-steps": request.max_steps,
        "--seed": request.seed,
        "--name": request.name,
        "--from": request.branch,
        "--restarts": None if care.restarts == RESTARTS else care.restarts,
        "--hang-seconds": care.hang_seconds,
        "--notify": care.notify,
    }
    found = [word for flag, value in valued.items() if value is not None for word in (flag, str(value))]
    found += ["--allow-change"] if request.allow_change else []
    return (*found, *(["--set", *request.settings] if request.settings else []))


def _portable(given: str | None) -> str | None:
    """A JSON's path that also holds in another working directory; one of the project's in another checkout, too."""
    if given is None or not Path(given).exists():
        return given
    path = Path(given).resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def check_data(run: Run, request: Request, nodes: int, where: Where) -> None:
    """On several nodes all would wait while one prepares; a dry run says so only.

    Errors: `UserError` with the command that prepares.
    """
    lost = teach.missing(run)
    if not lost:
        return
    named = f"{lost[0]} and {len(lost) - 1} more" if len(lost) > 1 else lost[0]
    if nodes == 1:
        return remark(f"the data is not prepared yet ({named}): the run does that first")
    chosen = [setting for setting in request.settings if setting.startswith(OF_DATA)]
    more = f"CLUSTER={label(where.file)}" + (f" ARGS={shlex.quote(shlex.join(['--set', *chosen]))}" if chosen else "")
    line = (
        f"the data of {run.recipe.name} is not prepared below {runs_root() / 'data'} ({named}), and {nodes} nodes "
        f"would wait for it; prepare it first: make data-{short_name(run.recipe.name)} {more}"
    )
    if not where.dry_run:
        raise UserError(line)
    remark(line)


def remark(line: str) -> None:
    """Say something beside what is asked for: a dry run's text may go into a file."""
    print(line, file=sys.stderr, flush=True)


def _check_json(run: Run) -> None:
    """Let DeepSpeed read the JSON, where this machine has it. Errors: `UserError` for what it refuses."""
    if all(importlib.util.find_spec(name) for name in ("torch", "deepspeed")):
        from model.engine.build import check_json

        check_json(run.engine.json, run.recipe.layout, run.world_size)


def _planned(run: Run, machines: recipes.Cluster) -> float:
    """Seconds of the whole run, 0 where the planner does not know; says where the plan was another."""
    recipe, planned = run.recipe, run.recipe.cluster
    machine = planning.cluster_machine(machines)
    seconds = 0.0
    if machine:
        planning.check_precision(machine.gpu, run.engine.dtype)
        step = step_of(recipe, run.engine.json, data_degree(recipe, run.world_size))
        time, memory = planning.plan_time(recipe, step, machine), planning.plan_memory(step, machine.gpu)
        part = min(1.0, (run.max_steps or recipe.train_steps) / recipe.train_steps)
        seconds = time["run_seconds"] * part
        see = f"stagecraft plan {short_name(recipe.name)} --gpu {machine.gpu.name} --nodes {machines.nodes}"
        if not memory["fits"]:
            need, room = memory["peak_bytes"] / 1e9, memory["usable_bytes"] / 1e9
            remark(f"by the plan it does not fit: {need:.0f} GB of a rank, and {room:.0f} GB are there; see {see}")
        elif planned.gpu == "cpu" or find(planned.gpu) != machine.gpu:
            remark(f"{recipe.name} was planned for {planned.gpu}, and here are {machine.gpu.name}; see {see}")
    return seconds
