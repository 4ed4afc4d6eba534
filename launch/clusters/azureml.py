"""Azure ML: the YAML of a command job, and what `az ml` does with it.

Azure starts the ranks itself, as PyTorch wants them (`RANK`, `WORLD_SIZE`, `MASTER_ADDR` …), and mounts the datastore.
It acts upon no exit status: a job that ended is submitted again, and goes on.
"""

import re
import shlex
from pathlib import Path

from launch.clusters.job import Job
from launch.clusters.time_limit import seconds_of
from launch.clusters.tool import check_goes_on, job_of, read_answer, said
from support.errors import UserError
from support.json_object import JsonObject

INSTALL = "install Azure's command line with `az extension add --name ml`, and run az login"
SCHEMA = "https://azuremlschemas.azureedge.net/latest/commandJob.schema.json"
SHARED_MEMORY = "64g"
NAME = re.compile(r"(azureml:)?[A-Za-z0-9][A-Za-z0-9-]{0,31}")
EXPERIMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,254}")
ENVIRONMENT = re.compile(r"azureml:(//\S+|[^\s:@]+(:[^\s:@]+|@latest))")
DATASTORE = re.compile(r"azureml://(\S+/)?datastores/[^\s/]+/paths/\S+")
IMAGE = re.compile(r"[^\s@]+:[^\s/@]+|\S+@sha256:[0-9a-f]{64}")
ENDED = ("Completed", "Failed", "Canceled", "NotResponding")
BINDING = "${{"  # what Azure puts something in for, inside a command


def check(job: Job) -> None:
    """Refuse what Azure would refuse, or what cannot work. Errors: `UserError` that names key and remedy."""
    words, file, image = job.cluster.azureml, job.cluster_file, job.cluster.image
    for key, pattern, value, remedy in (
        ("azureml.compute", NAME, words.compute, "name a compute cluster, as az ml compute list shows it"),
        ("azureml.experiment", EXPERIMENT, words.experiment, "write letters, digits, dashes and underscores"),
        ("azureml.datastore", DATASTORE, words.datastore, "write azureml://datastores/NAME/paths/FOLDER"),
        ("azureml.environment", ENVIRONMENT, words.environment or "azureml:a:1", "write azureml:NAME:VERSION"),
        ("image", IMAGE, image if not words.environment else "a:1", "name one with a tag, or set azureml.environment"),
    ):
        if not pattern.fullmatch(value):
            raise UserError(f"{file}: {key} is {value!r}; {remedy}")
    if job.gpus_per_node < 1:
        raise UserError(f"{file}: gpus_per_node is {job.gpus_per_node}; a node needs at least 1")
    if found := next((word for word in (*job.words, job.run_dir.name) if BINDING in word), None):
        raise UserError(f"{found} holds {BINDING}, which Azure would put something in for; take it out")


def command(job: Job) -> str:
    """The shell lines that each rank runs. The run lies on the datastore that Azure mounts for the output `runs`."""
    module = shlex.join(["python", "-m", f"recipes.{job.recipe.name}"])
    folder = f'"$STAGECRAFT_RUNS"/{shlex.quote(f"{job.recipe.name}/{job.run_dir.name}")}'
    start = f"exec {module} --run-dir {folder} --resume auto {shlex.join(job.words)}".rstrip()
    return "\n".join(["set -e", "export STAGECRAFT_RUNS=${{outputs.runs}}", *job.cluster.setup, start])


def render(job: Job) -> str:
    """The YAML for `az ml job create`."""
    import yaml

    words, limit = job.cluster.azureml, seconds_of(job.cluster.time_limit)
    variables = {name: text for name, text in job.cluster.environment.items() if name != "STAGECRAFT_RUNS"}
    whole: JsonObject = {
        "$schema": SCHEMA,
        "type": "command",
        "display_name": job.run_dir.name,
        "experiment_name": words.experiment,
        "tags": {"recipe": job.recipe.name, "run": job.run_dir.name},
        "compute": words.compute if words.compute.startswith("azureml:") else f"azureml:{words.compute}",
        "environment": words.environment or {"image": job.cluster.image},
        "resources": {"instance_count": job.nodes, "shm_size": SHARED_MEMORY},
        "distribution": {"type": "pytorch", "process_count_per_instance": job.gpus_per_node},
        "command": command(job),
        "outputs": {"runs": {"type": "uri_folder", "mode": "rw_mount", "path": words.datastore}},
        **({"environment_variables": variables} if variables else {}),
        **({"limits": {"timeout": limit}} if limit else {}),
    }
    head = f"# {job.recipe.name} on {job.nodes} nodes of {job.gpus_per_node} GPUs: az ml job create --file THIS\n"
    return head + yaml.safe_dump(whole, sort_keys=False, width=1000, allow_unicode=True)


def submit(job: Job, file: Path) -> str:
    """Hand the rendered file to Azure; returns the name that it gave the job. Errors: `UserError` with az's words."""
    command = ["az", "ml", "job", "create", "--file", str(file), "--output", "json"]
    return str(read_answer(command, said(command, INSTALL), "name")["name"])


def status(run: Path) -> JsonObject:
    """What Azure says of the last job of a run: `id`, `state`, `reason`.

    Errors: `UserError` where it was not submitted, or Azure is silent.
    """
    name = job_of(run, "azureml")
    command = ["az", "ml", "job", "show", "--name", name, "--output", "json"]
    seen = read_answer(command, said(command, INSTALL), "status")
    return {"id": name, "state": str(seen["status"]), "reason": str((seen.get("error") or {}).get("message", ""))}


def stop(run: Path) -> str:
    """Have Azure cancel the last job of a run. Errors: `UserError` where there is nothing to stop."""
    now = status(run)
    check_goes_on(run, now, ENDED)
    said(["az", "ml", "job", "cancel", "--name", now["id"]], INSTALL)
    return f"job {now['id']} is cancelled; what it did since its last save is lost where Azure gives it no time"
