"""What becomes of a Slurm job whose command has ended: `python -m launch.clusters.requeue RUN STATUS [stopped]`.

The batch script ends with it. A job that was warned of its time limit is queued again under the same number, and so is
one of which a node has to be kept out.
"""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from run import events
from support.errors import BAD_NODE, DONE, GAVE_UP, STOPPED, WEIGHTS_LOST, WRONG_INPUT
from support.json_object import JsonObject

ENDS = (DONE, WRONG_INPUT, WEIGHTS_LOST, GAVE_UP)  # after these no other job helps
ANSWER_SECONDS = 60.0  # that a command of Slurm may take
IN_VAIN = 3  # jobs in a row that saved nothing, then the chain ends
EXCLUDED = re.compile(r"ExcNodeList=(\S+)")


def reason_to_go_on(status: int, stopped: bool, before: list[JsonObject]) -> str:
    """Why a job whose command ended so is queued again; empty where it is not. `before` are the run's events.

    `stopped` says that its user had it stopped.
    """
    if stopped or status in ENDS or in_vain(before) >= IN_VAIN:
        return ""
    if status == BAD_NODE:
        return "a node is kept out"
    return "it was asked to save and to make room" if status == STOPPED else f"its command ended with status {status}"


def in_vain(before: list[JsonObject]) -> int:
    """How many times the job was queued again since it saved last."""
    count = 0
    for event in before:
        count = 0 if event["event"] == "saved" else count + (event["event"] == "queued")
    return count


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGCONT):
        signal.signal(number, signal.SIG_IGN)  # the scheduler ends this job as soon as it has queued it again
    run, status, stopped = Path(sys.argv[1]), int(sys.argv[2]), len(sys.argv) > 3
    job, before = os.environ["SLURM_JOB_ID"], events.read(run)
    reason = reason_to_go_on(status, stopped, before)
    state = _said("squeue", "--noheader", f"--jobs={job}", "--format=%T") if reason else ""
    if reason and state in ("RUNNING", ""):  # else it is being cancelled, or queued again already
        named = [event["node"] for event in before if event["event"] == "bad_node"]
        without = named[-1] if status == BAD_NODE and named else None
        events.note(run, "queued", job=job, status=status, without=without, reason=reason)
        print(f"job {job} is queued again: {reason}" + (f" ({without})" if without else ""), flush=True)
        _said("scontrol", "requeue", job)
        if without:
            found = EXCLUDED.search(_said("scontrol", "show", "job", job))
            others = [] if not found or found[1] == "(null)" else [found[1]]
            _said("scontrol", "update", f"JobId={job}", f"ExcNodeList={','.join([*others, without])}")
    elif not stopped and status not in ENDS and in_vain(before) >= IN_VAIN:
        print(f"job {job} is not queued again: {IN_VAIN} jobs in a row saved nothing; see {run}", flush=True)
    raise SystemExit(status)


def _said(*command: str) -> str:
    """What a command of Slurm prints; nothing where it fails, which is said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_SECONDS)
    except subprocess.TimeoutExpired:
        print(f"{command[0]} has not answered for {ANSWER_SECONDS:.0f} s", flush=True)
        return ""
    if done.returncode:
        print(f"{command[0]}: {done.stderr.strip()}", flush=True)
    return done.stdout.strip()


if __name__ == "__main__":
    main()
