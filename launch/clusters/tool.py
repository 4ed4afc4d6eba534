"""What a scheduler's own command-line tool says, and which job a run was submitted as."""

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from support import json_lines
from support.errors import UserError
from support.json_object import JsonObject

LOGGED = re.compile(r"[EWI]\d{4} \d\d:")  # lines of kubectl's log, which say at length what its last line says
SECONDS = 120.0  # that a tool may take to answer


def said(command: Sequence[str], install: str) -> str:
    """What a tool prints. Errors: `UserError` with its own words, or with `install` where it is missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on this machine; {install}") from None
    except OSError as error:
        raise UserError(f"{command[0]} cannot be started: {error.strerror}; {install}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{' '.join(command)} was silent for {SECONDS:.0f} s; see that the cluster answers") from None
    if done.returncode:
        lines = [" ".join(line.split()) for line in (done.stderr or done.stdout).splitlines()]
        words = [line for line in lines if line and not LOGGED.match(line)]
        if words and words[0].startswith(f"{command[0]}:"):
            raise UserError("; ".join(words))
        told = " ".join(words) or f"it ended with status {done.returncode} and said nothing; {install}"
        raise UserError(f"{' '.join(command)}: {told}")
    return done.stdout


def read_answer(command: Sequence[str], text: str, *keys: str) -> JsonObject:
    """The JSON object with `keys` that a tool printed. Errors: `UserError` where `text` is something else."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict) or any(key not in value for key in keys):
        begins = " ".join(text.split())[:60]
        raise UserError(f"{' '.join(command)} said {begins!r}, which is no answer; look at it with the same command")
    return value


def job_of(run: Path, kind: str) -> str:
    """The id of the job that a run was last submitted as. Errors: `UserError` where it was not."""
    jobs = [line["id"] for line in json_lines.read(run / "jobs.jsonl") if line.get("kind") == kind]
    if not jobs:
        raise UserError(f"{run} was not submitted to {kind}; give a run that pretrain --cluster began")
    return str(jobs[-1])


def check_goes_on(run: Path, now: JsonObject, ended: Sequence[str]) -> None:
    """Errors: `UserError` where the last job of a run, which stands as `now` says, has nothing to stop."""
    if now["state"] in ended:
        raise UserError(f"job {now['id']} of {run} is {now['state'].lower()}: there is nothing to stop")
