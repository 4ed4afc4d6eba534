"""What a scheduler's own command-line tool says, and which job a run was submitted as."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from support import json_lines
from support.errors import UserError

LOGGED = re.compile(r"[EWI]\d{4} \d\d:")  # lines of kubectl's log, which say at length what its last line says
SECONDS = 120.0  # that a tool may take to answer


def said(command: Sequence[str], install: str) -> str:
    """What a tool prints. Errors: `UserError` with its own words, or with `install` where it is missing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise UserError(f"{command[0]} is not on this machine; {install}") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{' '.join(command)} was silent for {SECONDS:.0f} s; see that the cluster answers") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if not LOGGED.match(line)]
        words = " ".join(" ".join(lines).split()) or f"status {done.returncode} and no word"
        raise UserError(f"{' '.join(command)}: {words}")
    return done.stdout


def job_of(run: Path, kind: str) -> str:
    """The id of the job that a run was last submitted as. Errors: `UserError` where it was not."""
    jobs = [line["id"] for line in json_lines.read(run / "jobs.jsonl") if line.get("kind") == kind]
    if not jobs:
        raise UserError(f"{run} was not submitted to {kind}; give a run that pretrain --cluster began")
    return str(jobs[-1])
