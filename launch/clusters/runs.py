"""A run by its directory, wherever it runs: how it is, and a request to stop."""

import os
import signal
from pathlib import Path

from launch.clusters.submit import last_job, scheduler
from run import listing, members
from run.status import RUNNING, status_of
from support.errors import UserError
from support.json_object import JsonObject


def standing(path: Path) -> JsonObject:
    """How a run is: what its record says, its last job, and the scheduler's word on that, or why there is none.

    Errors: `UserError` where `path` is no run.
    """
    job = last_job(path)
    if job is None and not (path / "recipe.json").is_file():
        raise UserError(f"{path} is not a run directory (no recipe.json); see what there is with stagecraft runs")
    value = listing.summary(path)
    living = members.others(path)
    said = None
    if job:
        try:
            said = scheduler(job["kind"]).status(path)
        except UserError as error:
            said = {"unknown": str(error)}
    value["status"] = RUNNING if living else value["status"]
    commands = [each for each in living if each.name == members.SUPERVISOR] or living
    value["on"] = f"pid {commands[0].pid} on {commands[0].host}" if commands else None
    value["job"] = {key: job[key] for key in ("kind", "id", "time", "cluster")} if job else None
    return {**value, "scheduler": said}


def waits(path: Path) -> bool:
    """Whether a job of a run waits or runs by its scheduler's word; also where that has none."""
    if (job := last_job(path)) is None:
        return False
    module = scheduler(job["kind"])
    try:
        return module.status(path)["state"] not in module.ENDED
    except UserError:
        return True


def show(value: JsonObject) -> None:
    """Print how a run is."""
    step = "-" if value["step"] is None else f"{value['step']:,}"
    last = "-" if value["last_step"] is None else f"{value['last_step']:,}"
    print(f"{value['run']}: {value['status']}, step {step} of {last}")
    if value["reason"] and value["status"] != RUNNING:
        print(f"reason     {value['reason']}")
    if value["on"]:
        print(f"running    {value['on']}")
    if value["validation_loss"] is not None:
        print(f"validation {value['validation_loss']:.4f}, best {value['best_validation_loss']:.4f}")
    if value["tokens_per_second"] is not None:
        print(f"speed      {value['tokens_per_second']:,.0f} tokens/s")
    if value["job"]:
        print(f"job        {value['job']['id']} of {value['job']['kind']}, by {value['job']['cluster']}")
        print("scheduler ", ", ".join(f"{key} {word}" for key, word in value["scheduler"].items() if word))


def stop(path: Path) -> str:
    """Ask a run to save and to end; returns what was done, in a line.

    The scheduler is asked where a job of it runs or waits, else the command on this machine. Errors: `UserError` where
    nothing of it runs, or it runs on another machine.
    """
    job, refused = last_job(path), ""
    if job:
        try:
            return scheduler(job["kind"]).stop(path)
        except UserError as error:
            refused = str(error)
    living = members.others(path)
    command = next((each for each in living if each.name == members.SUPERVISOR), None)
    if command and command.here:
        os.kill(command.pid, signal.SIGTERM)
        return f"asked pid {command.pid}, which sees {path} through, to save and to end"
    if command:
        raise UserError(f"{path} is seen through by pid {command.pid} on {command.host}; give the same command there")
    if living or status_of(path) == RUNNING:
        raise UserError(f"the command of {path} is gone, and its ranks save and end by themselves; wait for them")
    raise UserError(refused or f"{path} does not run; its newest checkpoint is the last thing that it saved")
