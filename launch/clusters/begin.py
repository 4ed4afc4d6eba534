"""Begin a run where its command line says: on this machine, over a hostfile, or through the scheduler of a cluster."""

import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from launch import local
from launch.base import with_base
from launch.care import Care
from launch.clusters import network
from launch.clusters.asked import Where, check_data, environment, job_of
from launch.clusters.description import Cluster, read
from launch.clusters.submit import is_secret, submitted
from launch.hosts.hosts import Hosts, hosts_of
from launch.start import start
from recipes.recipe import Recipe
from run.request import Request, plan_run, run_path, settled
from support.errors import UserError
from support.json_object import JsonObject


def begin(recipe: Recipe, request: Request, where: Where, care: Care) -> JsonObject:
    """Begin a run; returns its report, or where a scheduler takes it or `dry_run` is on, what was or would be begun.

    Errors: `UserError` for what can be known before anything starts; `SystemExit` with the run's exit status.
    """
    if where.nodes is not None and where.nodes < 1:
        raise UserError(f"--nodes is {where.nodes}; it must be at least 1")
    if not where.dry_run:
        request = with_base(recipe, request)
    if where.cluster is None and not where.dry_run:
        if where.nodes is not None:
            raise UserError("--nodes counts the nodes of a cluster; give --cluster too")
        return start(recipe, settled(recipe, request), where.processes, where.hostfile, care)
    cluster = read(where.file)
    if cluster.kind in ("local", "hostfile"):
        return _here(recipe, request, where, cluster, care)
    if where.processes or where.hostfile:
        raise UserError("--processes and --hostfile are for starts from this machine; leave them out, or --cluster")
    job = job_of(recipe, request, where, cluster, care)
    value = submitted(job, where.dry_run)
    if where.dry_run:
        print(value["text"].rstrip("\n"))
        return value
    size = f"{job.nodes} x {job.gpus_per_node} {job.cluster.gpu}"
    print(f"submitted {recipe.name} on {size} as {cluster.kind} job {value['id']}; run: {value['run']}")
    print(f"stagecraft status --run {request.name or value['run']} shows how it is; logs and stop take the same")
    return value


def _here(recipe: Recipe, request: Request, where: Where, cluster: Cluster, care: Care) -> JsonObject:
    """Start from this machine, with what the cluster's file says."""
    hosts = _hosts(where, cluster)
    nodes = len(hosts.devices) if hosts else 1
    processes = where.processes or (None if hosts else cluster.gpus_per_node or None)
    variables = network.environment(cluster, nodes)
    if cluster.runs:
        variables["STAGECRAFT_RUNS"] = cluster.runs
    with environment(variables):
        request = settled(recipe, request)
        path = run_path(recipe, request)
        request = replace(request, run_dir=str(path))
        world = hosts.world_size if hosts else local.world_size(None, processes, recipe.cluster.world_size)
        run = plan_run(recipe, request, world)
        check_data(run, request, nodes, where)
        if where.dry_run:
            text = _shown(cluster, hosts, path, world, _changes(variables, world, cluster.secrets))
            print(text.rstrip("\n"))
            return {"run": str(path), "kind": cluster.kind, "file": None, "text": text, "id": None}
        setup = () if hosts and hosts.own else cluster.setup  # our own starter has each host run it
        with environment(_after(setup, where.file)):
            return start(recipe, request, processes, hosts.file.path if hosts else None, care, cluster)


@contextmanager
def placed(where: Where, cluster: Cluster | None) -> Iterator[tuple[Hosts | None, int | None]]:
    """Have the environment of a start from this machine for a while; gives its hosts, or the ranks that are asked for.

    Errors: `UserError` as `begin`.
    """
    if cluster is None:
        hosts = hosts_of(where.hostfile)
        if hosts and where.processes:
            raise UserError("--processes and --hostfile exclude each other: the hostfile's slots count the processes")
        yield hosts, where.processes
        return
    hosts = _hosts(where, cluster)
    processes = where.processes or (None if hosts else cluster.gpus_per_node or None)
    with environment(network.environment(cluster, len(hosts.devices) if hosts else 1)):
        setup = () if hosts and hosts.own else cluster.setup
        with environment(_after(setup, where.file)):
            yield hosts and hosts_of(hosts.file.path, cluster), processes


def _hosts(where: Where, cluster: Cluster) -> Hosts | None:
    """The hosts to start on, none of a local cluster. Errors: `UserError` where they are not what was asked for."""
    if cluster.kind == "local":
        if where.hostfile:
            raise UserError(f"--hostfile goes with a cluster of kind hostfile, and {where.file} is one machine")
        asked = where.nodes or cluster.nodes
        if asked > 1:
            raise UserError(f"{asked} nodes are more than this machine; give --cluster hostfile, or one of your own")
        return None
    hosts = hosts_of(where.hostfile, cluster)
    if hosts is None:
        raise UserError(f"{where.file} names no hosts; give --hostfile, or set hostfile.path there")
    if where.processes:
        raise UserError("--processes and a hostfile exclude each other: the hostfile's slots count the processes")
    there = len(hosts.devices)
    asked = where.nodes or cluster.nodes or there
    if asked != there:
        raise UserError(f"{asked} nodes were asked for, and hostfile {hosts.file.path} names {there}; let them agree")
    return hosts


def _after(setup: tuple[str, ...], file: Path) -> dict[str, str]:
    """The environment that lines of shell leave. Errors: `UserError` with the shell's last word where one fails."""
    if not setup:
        return {}
    script = "\n".join(["set -e", "exec 3>&1 1>&2", *setup, "env -0 >&3"])
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, errors="surrogateescape")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"{file}: setup ended with status {done.returncode} and said: {said}")
    return dict(line.split("=", 1) for line in done.stdout.split("\0") if "=" in line)


def _changes(variables: dict[str, str], world: int, secrets: tuple[str, ...]) -> dict[str, str]:
    """The variables that ranks get besides those of this process, and the secrets among those; secrets masked."""
    own, theirs = dict(os.environ), local.environment(world)
    names = [name for name in theirs if name in variables or name in secrets or own.get(name) != theirs[name]]
    return {name: "***" if is_secret(name, secrets) else theirs[name] for name in sorted(names)}


def _shown(cluster: Cluster, hosts: Hosts | None, path: Path, world: int, variables: dict[str, str]) -> str:
    """A start as one would type it: setup, variables, command; over ssh the variables go through the connections."""
    assigned = [f"{name}={value if value == '***' else shlex.quote(value)}" for name, value in variables.items()]
    if hosts and hosts.own:
        return "\n".join([*(f"# {line}" for line in assigned), *hosts.lines()]) + "\n"
    words = hosts.words() if hosts else None
    command = local.deepspeed_command("commands.rank", ["--run-dir", str(path)], world, words)
    return "\n".join([*cluster.setup, " \\\n".join([*assigned, shlex.join(command)])]) + "\n"
