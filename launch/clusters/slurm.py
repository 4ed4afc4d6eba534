"""Slurm: the batch script of a job, and what `sbatch`, `squeue` and `scancel` do with it.

The script starts our command on the first node; the command starts the ranks by `srun` (`launch/clusters/in_job.py`).
The script passes on what asks it to stop, and ends with `launch/clusters/requeue.py`.
"""

import math
import re
import shlex
import sys
from pathlib import Path

from launch.clusters.description import Cluster
from launch.clusters.job import Job
from launch.clusters.time_limit import seconds_of
from launch.clusters.tool import check_goes_on, job_of, said
from recipes.registry import ROOT
from run.directory import runs_root
from support.errors import UserError
from support.json_object import JsonObject

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@,-]*")  # of a partition, an account …
CONSTRAINT = re.compile(r"[A-Za-z0-9._&|,*()\[\]!:-]+")
IMAGE = re.compile(r"[A-Za-z0-9._/:@#+-]+")
UNQUOTABLE = re.compile(r"[\n\r\0\"\\%]")  # in a path of an #SBATCH line: % begins a pattern there
MARGIN_SECONDS = 30.0  # for the step in hand and Slurm
STATE = re.compile(r"[A-Z_]+")
INSTALL = "give the command on a login node of the cluster"
ENDED = (  # states of a job that comes to nothing more; Slurm forgets jobs after a while
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED"),
    *("TIMEOUT", "UNKNOWN"),
)
PREFLIGHT_OUTPUT = "slurm-preflight-%j.out"
SRUN = ("srun", "--kill-on-bad-exit=0", "--wait=120", "--cpu-bind=none", "--distribution=block", "--label")


def check(job: Job) -> None:
    """Refuse what no batch script can say, or what cannot work. Errors: `UserError` that names key and remedy."""
    words, where = job.cluster.slurm, job.cluster_file
    for key in ("partition", "account", "qos", "reservation", "constraint"):
        value, pattern = getattr(words, key), CONSTRAINT if key == "constraint" else NAME
        if value and not pattern.fullmatch(value):
            raise UserError(f"{where}: slurm.{key} is {value!r}, which is no name that Slurm knows; take the signs out")
    if words.container and not IMAGE.fullmatch(job.cluster.image):
        raise UserError(f"{where}: slurm.container is {words.container}, and image is {job.cluster.image!r}; name one")
    for mount in words.mounts:
        if "," in mount:
            raise UserError(
                f"{where}: slurm.mounts has {mount!r}, and commas stand between mounts; name each by itself"
            )
    for place in _seen(job) if words.container else ():
        if "," in place or ":" in place:
            raise UserError(f"{place} holds a comma or a colon, and no container can be given it; rename it")
    for text in job.words:
        if "\n" in text or "\0" in text:
            raise UserError(f"{text!r} holds the end of a line, which a job cannot be given; take it out")
    if found := UNQUOTABLE.search(str(job.run_dir.absolute())):
        raise UserError(f"--run-dir {job.run_dir} holds {found[0]!r}, which Slurm would not leave as it is; rename it")
    limit = seconds_of(job.cluster.time_limit)
    if limit and limit <= warning_seconds(job):
        raise UserError(
            f"{where}: time_limit is {job.cluster.time_limit}, and a save needs the last {warning_seconds(job)} s of "
            "it; raise it"
        )


def warning_seconds(job: Job) -> int:
    """How long before the time limit the job is warned: what a stop may take, and a margin."""
    return math.ceil(job.stop_seconds + MARGIN_SECONDS)


def jobs_in_chain(job: Job) -> int:
    """How many jobs of the time limit the run takes, one after another; 1 where that is not known."""
    limit = seconds_of(job.cluster.time_limit) - warning_seconds(job)
    return max(1, math.ceil(job.seconds / limit)) if limit > 0 else 1


def render(job: Job) -> str:
    """The batch script of a job: what `sbatch` gets. Errors: as `check`."""
    check(job)
    cluster, run = job.cluster, job.run_dir.absolute()
    count = jobs_in_chain(job)
    about = f"{job.recipe.name} on {job.nodes} nodes x {job.gpus_per_node} ranks"
    chain = f"; {count} jobs of {cluster.time_limit} one after another, by the planner" if count > 1 else ""
    head = [
        *_asked_for(cluster, job.recipe.name),
        *_nodes(job),
        f"--signal=B:USR1@{warning_seconds(job)}",
        "--requeue",
        "--open-mode=append",
        f'--output="{run}/slurm-%j.out"',
    ]
    command = [sys.executable, "-m", "commands", "pretrain", job.recipe.name, *job.words]
    again = [sys.executable, "-m", "launch.clusters.requeue", str(run)]
    return "\n".join(
        [
            "#!/bin/bash",
            f"# {about}{chain}",
            *(f"#SBATCH {word}" for word in head),
            *_before(cluster),
            f"export STAGECRAFT_SRUN={shlex.quote(shlex.join(_srun(job)))}",
            f"{shlex.join([*command, '--run-dir', str(run), '--resume', 'auto'])} &",
            PASSED_ON.format(again=shlex.join(again)),
        ]
    )


def render_preflight(job: Job) -> str:
    """The batch script that looks at nodes before a run. `job.words` are flags of `preflight`. Errors: as `check`."""
    check(job)
    folder = job.run_dir.absolute()
    command = [sys.executable, "-m", "commands", "preflight", job.recipe.name, *job.words, "--run-dir", str(folder)]
    head = [*_asked_for(job.cluster, f"preflight-{job.recipe.name}"), *_nodes(job), "--no-requeue"]
    return "\n".join(
        [
            "#!/bin/bash",
            f"# before {job.recipe.name} on {job.nodes} nodes x {job.gpus_per_node} ranks",
            *(f"#SBATCH {word}" for word in [*head, f'--output="{folder}/{PREFLIGHT_OUTPUT}"']),
            *_before(job.cluster),
            f"export STAGECRAFT_SRUN={shlex.quote(shlex.join(_srun(job)))}",
            f"exec {shlex.join(command)}",
            "",
        ]
    )


# A trap interrupts `wait`; the status of a command that has ended can be asked for twice.
PASSED_ON = """command=$!
again=1 stopped=
trap 'again=1; kill -USR1 "$command" 2>/dev/null' USR1
trap 'again=1; stopped=stopped; kill -TERM "$command" 2>/dev/null' TERM
while [ "$again" ]; do again=; wait "$command"; status=$?; done
trap '' USR1 TERM
exec {again} "$status" $stopped
"""


def _asked_for(cluster: Cluster, name: str) -> list[str]:
    """What the scheduler is asked for besides nodes."""
    words = cluster.slurm
    named = {key: getattr(words, key) for key in ("partition", "account", "qos", "constraint", "reservation")}
    given = [f'--{key}="{value}"' for key, value in {**named, "time": cluster.time_limit}.items() if value]
    return [f'--job-name="{name}"', *given, "--export=ALL"]


def _nodes(job: Job) -> list[str]:
    """The nodes that the scheduler is asked for, and the ranks on them."""
    return [
        f"--nodes={job.nodes}",
        f"--ntasks={job.world_size}",
        f"--ntasks-per-node={job.gpus_per_node}",
        f"--gpus-per-node={job.gpus_per_node}" if job.cluster.slurm.gpus else "--exclusive",
    ]


def _before(cluster: Cluster) -> list[str]:
    """Lines of shell before the command: its folder, its variables, the cluster's own lines."""
    variables = {"STAGECRAFT_RUNS": cluster.runs or str(runs_root().absolute()), **cluster.environment}
    return [
        f"cd {shlex.quote(str(Path.cwd()))}",
        f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}",
        *(f"export {name}={shlex.quote(value)}" for name, value in variables.items()),
        *cluster.setup,
    ]


def _seen(job: Job) -> list[str]:
    """The folders that a container sees where they are: project, runs, and where the command was given."""
    runs = job.cluster.runs or str(runs_root().absolute())
    return list(dict.fromkeys([str(ROOT), runs, str(job.run_dir.absolute().parent), str(Path.cwd())]))


def _srun(job: Job) -> list[str]:
    """The words that start Python as every rank: `srun`, the container, and the cluster's own lines on each node."""
    cluster, words = job.cluster, job.cluster.slurm
    start = [*SRUN, f"--nodes={job.nodes}", f"--ntasks={job.world_size}", f"--ntasks-per-node={job.gpus_per_node}"]
    mounts = ",".join([*(f"{each}:{each}" for each in _seen(job)), *words.mounts])
    python = [sys.executable]
    if words.container == "pyxis":
        start += [f"--container-image={cluster.image}", f"--container-mounts={mounts}"]
        start += [f"--container-workdir={Path.cwd()}"]  # else it is the image's, and a relative path means another file
        python = ["python3"]
    elif words.container == "apptainer":
        python = ["apptainer", "exec", "--nv", "--bind", mounts, cluster.image, "python3"]
    if cluster.setup:
        python = ["bash", "-c", "\n".join([*cluster.setup, 'exec "$0" "$@"']), *python]
    return [*start, *python]


def submit(job: Job, file: Path) -> str:
    """Give a rendered script to `sbatch`; returns the job's number. Errors: `UserError` with the scheduler's words."""
    return _submitted(file)


def _submitted(file: Path, *flags: str) -> str:
    told = said(["sbatch", "--parsable", *flags, str(file)], INSTALL)
    number = told.strip().partition(";")[0]
    if not number.isdigit():
        raise UserError(f"sbatch said {told.strip()[:60]!r} and no number of a job; see with squeue --me what it did")
    return number


def status(run: Path) -> JsonObject:
    """What Slurm says of the last job of a run. Errors: `UserError` where it was not submitted, or Slurm is silent.

    `id` is its number; `state` is Slurm's word, `UNKNOWN` where Slurm has forgotten the job.
    """
    job = job_of(run, "slurm")
    keys: tuple[str, ...] = ("state", "reason", "elapsed", "left", "nodes", "start")
    listed = _listed("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T|%r|%M|%L|%N|%S")
    if not listed:
        keys = ("state", "reason", "elapsed", "nodes", "start")
        columns = "State,Reason,Elapsed,NodeList,Start"
        listed = _listed("sacct", "-X", "--noheader", "--parsable2", f"--jobs={job}", f"--format={columns}")
    values = listed.splitlines()[-1].split("|") if listed else ["UNKNOWN"]
    known = {key: value for key, value in zip(keys, values, strict=False) if value not in ("None", "")}
    state = known.get("state", "").partition(" ")[0]  # sacct: CANCELLED by 1000
    if not STATE.fullmatch(state):
        raise UserError(f"Slurm said {listed[:60]!r} of job {job}, which is no state; look with squeue --jobs={job}")
    return {"id": job, **dict.fromkeys(keys), **known, "state": state}


def _listed(*command: str) -> str:
    """What a command of Slurm prints; nothing where the job is not known, or nobody keeps accounts."""
    try:
        return said(command, INSTALL).strip()
    except UserError as error:
        if "Invalid job id" in str(error) or command[0] == "sacct":
            return ""
        raise


def stop(run: Path) -> str:
    """Have the last job of a run save and end, and not be queued again. Errors: `UserError` where there is none."""
    now = status(run)
    check_goes_on(run, now, ENDED)
    if now["state"] == "RUNNING":
        said(["scancel", "--batch", "--signal=TERM", now["id"]], INSTALL)
        return f"job {now['id']} was asked to save and to end"
    said(["scancel", now["id"]], INSTALL)  # waiting, also to be begun again
    return f"job {now['id']} was {now['state'].lower()}; it is cancelled"


def render_data(recipe: str, words: tuple[str, ...], cluster: Cluster, nodes: int) -> str:
    """The batch script that prepares a recipe's data: one task of an array on each node, then once for the rest.

    `words` are the flags of `prepare`, without those that say where.
    """
    command = shlex.join([sys.executable, "-m", "commands", "prepare", recipe, *words])
    runs = cluster.runs or str(runs_root().absolute())
    if found := UNQUOTABLE.search(runs):
        raise UserError(f"{runs} holds {found[0]!r}, which Slurm would not leave as it is; keep runs elsewhere")
    head = [*_asked_for(cluster, f"data-{recipe}"), "--nodes=1", "--ntasks=1", "--exclusive", "--requeue"]
    return "\n".join(
        [
            "#!/bin/bash",
            f"# sbatch --array=0-{nodes - 1} THIS, then sbatch --dependency=afterany:ITS_JOB THIS: the second job puts",
            "# all together, and does what a task of the first has left undone.",
            *(f"#SBATCH {word}" for word in [*head, "--open-mode=append", f'--output="{runs}/slurm-data-%j.out"']),
            *_before(cluster),
            'if [ "${SLURM_ARRAY_TASK_ID:-}" ]; then',
            f'  exec {command} --nodes {nodes} --node "$SLURM_ARRAY_TASK_ID"',
            "fi",
            f"exec {command}",
            "",
        ]
    )


def submit_data(file: Path, nodes: int) -> tuple[str, str]:
    """Give a script of `render_data` to `sbatch`, as an array and for its end; returns both numbers."""
    array = _submitted(file, f"--array=0-{nodes - 1}")
    return array, _submitted(file, f"--dependency=afterany:{array}")
