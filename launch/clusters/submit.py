"""Hand a job to the scheduler of its cluster, and keep its number with the run, so that nobody has to remember it."""

import importlib
import os
import re
import shlex
import time
from pathlib import Path
from typing import Protocol, cast

from launch.clusters.description import SECRET as NAMED_SECRET
from launch.clusters.description import Kind
from launch.clusters.job import Job
from run import members, record
from run.directory import runs_root
from support import json_lines
from support.errors import UserError
from support.files import write
from support.json_object import JsonObject
from support.secrets import ADDRESS, without_passwords

SUFFIX: dict[str, str] = {"slurm": ".sh", "kubernetes": ".yaml", "azureml": ".yaml"}  # of the rendered file
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")
LETTERS = 8  # of a secret, at least: "1" is no secret and stands everywhere


class Scheduler(Protocol):
    """What a module of a kind (`launch.clusters.slurm` …) can do. Errors: `UserError`.

    `ENDED` are the states, in the scheduler's words, of a job that comes to nothing more.
    """

    ENDED: tuple[str, ...]

    def check(self, job: Job) -> None:
        """Refuse what can be known to fail before anything starts."""

    def render(self, job: Job) -> str:
        """The text that is submitted."""

    def submit(self, job: Job, file: Path) -> str:
        """Submit the rendered file; returns the job's id."""

    def status(self, run: Path) -> JsonObject:
        """What the scheduler says of the last job of a run."""

    def stop(self, run: Path) -> str:
        """Have the last job of a run stop and save; returns what was done, in a line."""


def scheduler(kind: Kind) -> Scheduler:
    """The module of a kind of cluster, imported now."""
    return cast(Scheduler, importlib.import_module(f"launch.clusters.{kind}"))


def submitted(job: Job, dry_run: bool) -> JsonObject:
    """Check, render and submit a job, and note it with the run. With `dry_run` nothing is written or submitted.

    Errors: `UserError` where it cannot run, the run goes on already, or the scheduler refuses; nothing is left then.
    """
    module = scheduler(job.cluster.kind)
    module.check(job)
    text = module.render(job)
    check_secrets(text, job.cluster.secrets, job.cluster_file)
    _check_notify(job)
    folder = record_folder(job)
    file = folder / f"job{SUFFIX[job.cluster.kind]}"
    value = {"run": str(folder), "kind": job.cluster.kind, "file": str(file), "text": text, "id": None}
    if dry_run:
        return value
    if found := members.others(folder):
        raise UserError(f"{folder} is trained in by pid {found[0].pid} on {found[0].host}; wait for its end or stop it")
    _check_queue(job, module, folder)
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write(file, text)
    except OSError as error:
        raise UserError(
            f"{file} cannot be written: {error.strerror}; have `runs` in {job.cluster_file} name a place that can"
        ) from None
    try:
        value["id"] = module.submit(job, file)
    except BaseException:
        if made:
            file.unlink()
            for each in made:
                each.rmdir()
        raise
    noted = {"time": time.time(), "kind": job.cluster.kind, "id": value["id"], "cluster": str(job.cluster_file)}
    json_lines.add(folder / record.JOBS, {**noted, "name": _name_of(job)})
    return value


def _check_queue(job: Job, module: Scheduler, folder: Path) -> None:
    """Errors: `UserError` where a job of the run waits or runs: one of the two would come to nothing."""
    last = last_job(folder)
    if last is None or last["kind"] != job.cluster.kind:
        return
    try:
        state = module.status(folder)["state"]
    except UserError:
        return  # a scheduler that is silent says so when it is given the job
    if state not in module.ENDED:
        stop = f"stagecraft stop --run {shlex.quote(str(folder))}"
        raise UserError(f"job {last['id']} of {folder} is {state.lower()} already; stop it first: {stop}")


def record_folder(job: Job) -> Path:
    """Where this machine keeps what it knows of a job's run: the run's directory, where its storage is here too."""
    if not job.cluster.runs or job.cluster.kind == "slurm" or Path(job.cluster.runs).is_dir():
        return job.run_dir
    return runs_root() / job.recipe.name / job.run_dir.name


def _name_of(job: Job) -> str | None:
    """The name that the run will have."""
    return next((name for flag, name in zip(job.words, job.words[1:], strict=False) if flag == "--name"), None)


def last_job(run: Path) -> JsonObject | None:
    """The job that a run was submitted as last; None where it never was."""
    noted = [line for line in json_lines.read(run / record.JOBS) if line.get("kind") in SUFFIX]
    return noted[-1] if noted else None


def is_secret(name: str, secrets: tuple[str, ...]) -> bool:
    """Whether the value of a variable is shown to nobody."""
    return name in secrets or SECRET.search(name.upper()) is not None


def check_secrets(text: str, secrets: tuple[str, ...], file: Path) -> None:
    """A job's text lies in a file that others may read. Errors: `UserError` where it holds a secret."""
    for name, value in os.environ.items():
        hidden = name in secrets or NAMED_SECRET.fullmatch(name.upper())
        if hidden and len(value) >= LETTERS and not value.startswith("/") and value in text:
            raise UserError(
                f"the value of ${name} would stand in the job's text, which others may read; take it out of the "
                f"command line or of {file}"
            )
    if (found := ADDRESS.search(text)) and found[0] != without_passwords(found[0]):
        raise UserError(
            f"the password of {without_passwords(found[0])} would stand in the job's text, which others may read; "
            "have a variable of your shell or a file on the nodes give it"
        )


def _check_notify(job: Job) -> None:
    """Errors: `UserError` where the command of `--notify` calls an address, which is as good as a key."""
    if any(flag == "--notify" and "://" in word for flag, word in zip(job.words, job.words[1:], strict=False)):
        raise UserError(
            "--notify calls an address, which would stand in the job's text, and others may read that; write the "
            "command into a script that the nodes see, and give --notify its path"
        )
