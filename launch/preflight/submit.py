"""Have Slurm run a preflight on the nodes that a run is meant for: a short job, whose output is what it finds."""

import tempfile
from dataclasses import replace
from pathlib import Path

from launch.clusters import in_job, network, slurm
from launch.clusters.asked import Where, reference
from launch.clusters.description import read
from launch.clusters.job import Job
from launch.preflight.asked import Asked
from launch.preflight.start import flags_of
from recipes.settings import override
from support.errors import UserError
from support.json_object import JsonObject

TIME_LIMIT = "00:10:00"


def is_for_scheduler(where: Where) -> bool:
    """Whether a scheduler is to start it. Errors: `UserError` for flags that go with no other start."""
    if where.cluster and not in_job.inside() and read(where.file).kind == "slurm":
        return True
    if where.dry_run:
        raise UserError("--dry-run shows the job of a cluster of kind slurm; give one with --cluster")
    if where.nodes and not where.cluster:
        raise UserError("--nodes counts the nodes of a cluster; give --cluster too")
    return False


def submitted(asked: Asked, where: Where) -> JsonObject:
    """Submit the job, and say where its output will lie; with `dry_run` show its script and do nothing.

    Errors: `UserError` for what is wrong with the run, or with Slurm's words.
    """
    job = _job(asked, where)
    text = slurm.render_preflight(job)
    value = {"kind": "slurm", "text": text, "id": None, "output": None}
    if where.dry_run:
        print(text.rstrip("\n"))
        return value
    job.run_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "preflight.sh"
        file.write_text(text)
        value["id"] = slurm.submit(job, file)
    value["output"] = str(job.run_dir / slurm.PREFLIGHT_OUTPUT.replace("%j", str(value["id"])))
    print(f"submitted as slurm job {value['id']}; what it finds will stand in {value['output']}")
    return value


def _job(asked: Asked, where: Where) -> Job:
    """The job. Errors: `UserError` for what is wrong with the run on so many ranks."""
    if where.processes or where.hostfile:
        raise UserError("--processes and --hostfile are for starts from this machine; leave them out, or --cluster")
    cluster = read(where.file)
    machines = reference(cluster, override(asked.recipe, list(asked.settings)), where.nodes)
    asked.run(machines.world_size)
    folder = asked.folder.absolute()  # on storage that nodes share
    environment = network.environment(cluster, machines.nodes)
    short = replace(cluster, time_limit=TIME_LIMIT, environment=environment)
    flags, size = tuple(flags_of(asked, where)), (machines.nodes, machines.gpus_per_node)
    return Job(asked.recipe, flags, short, where.file, *size, folder)
