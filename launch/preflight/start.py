"""Start the ranks of a preflight as those of a run are started, and hear what they found."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from launch import local
from launch.clusters.description import Cluster
from launch.preflight.asked import Asked, Limits, Values
from support.errors import CrashedError, UserError

START_SECONDS = 30.0  # that the launcher may take besides what the ranks may
END_SECONDS = 2.0  # that ranks and launcher have to end when all is told
LOOK_SECONDS, MOST_BYTES = 0.1, 2**24
ONLY_THERE = ("slurm", "kubernetes", "azureml")


def hostfile_of(cluster: Cluster | None, hostfile: str | None) -> str | None:
    """The hostfile that is meant. Errors: `UserError` for a cluster whose ranks only its own scheduler starts."""
    if hostfile or cluster is None or cluster.kind == "local":
        return hostfile
    if cluster.kind in ONLY_THERE:
        raise UserError(
            f"ranks of a {cluster.kind} cluster are started by its own scheduler; give the same command there as each "
            "rank of a job, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, as torchrun does"
        )
    if not cluster.hostfile.path:
        raise UserError("the cluster's hostfile.path is empty; fill it in, or give --hostfile")
    return cluster.hostfile.path


def _launched(command: list[str], env: dict[str, str], seconds: float) -> list[str]:
    """What a launcher printed until it ended, or was ended: after so many seconds, or soon after rank 0 has told all.

    DeepSpeed's launcher takes seconds to see that its ranks have ended.
    """
    until, lines = time.monotonic() + seconds, list[str]()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=output, start_new_session=True)
        try:
            while process.poll() is None and time.monotonic() < until:
                time.sleep(LOOK_SECONDS)
                lines = os.pread(output.fileno(), MOST_BYTES, 0).decode(errors="replace").splitlines()
                if found_in(lines):
                    until = min(until, time.monotonic() + END_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return os.pread(output.fileno(), MOST_BYTES, 0).decode(errors="replace").splitlines()


Launched = Callable[[list[str], dict[str, str], float], list[str]]  # command, environment, seconds; what was printed


def preflight(
    asked: Asked, processes: int | None, hostfile: str | None, cluster: Path | None, launched: Launched = _launched
) -> Values:
    """Start the ranks, which get the same command with paths from the root on, and return what they found.

    Errors: `UserError` for what is wrong before any rank begins; `CrashedError` where they tell nothing.
    """
    world = local.world_size(hostfile, processes, asked.recipe.cluster.world_size)
    asked.run(world)
    words = [*_words(asked), *(("--cluster", str(cluster)) if cluster else ()), "--json"]
    if hostfile:
        local.check_remote(words)
    asked.folder.mkdir(parents=True, exist_ok=True)
    command = local.deepspeed_command(
        "commands.preflight", words, world, ["--hostfile", hostfile] if hostfile else None
    )
    lines = launched(command, local.environment(world), Limits().total + START_SECONDS)
    values = found_in(lines)
    complaints = list(dict.fromkeys(line.partition("error: ")[2] for line in lines if "error: " in line))
    if values is None:
        reason = complaints[0] if complaints else next((line for line in reversed(lines) if line.strip()), "nothing")
        raise CrashedError(f"the ranks told nothing of what they found; what was printed last: {reason}")
    for line in (*complaints, *_whose(values["absent"], hostfile)):
        rest = values["checks"][-1]["findings"]
        rest.append({"line": line, "spoils": True})
    return values


def _words(asked: Asked) -> list[str]:
    """What the ranks get: variables such as STAGECRAFT_RUNS do not reach other machines."""
    words = [asked.recipe.name, "--run-dir", str(asked.folder.absolute())]
    if asked.deepspeed_config:
        words += ["--deepspeed_config", str(Path(asked.deepspeed_config).absolute())]
    return [*words, *(("--set", *asked.settings) if asked.settings else ())]


def found_in(lines: list[str]) -> Values | None:
    """What rank 0 printed: a line of JSON, before which a launcher may put the name of a host."""
    for line in lines:
        with suppress(ValueError):
            values: Values = json.loads(line[line.index('{"recipe": ') :])
            return values
    return None


def _whose(absent: list[int], hostfile: str | None) -> list[str]:
    """The hosts of a hostfile that ranks did not come from."""
    if not absent or hostfile is None:
        return []
    hosts = [name for name, slots in local.read_hostfile(Path(hostfile)).items() for _ in range(slots)]
    names = list(dict.fromkeys(hosts[rank] for rank in absent if rank < len(hosts)))
    return [f"in {hostfile} these ranks are of {', '.join(names)}; try ssh {names[0]} true"] if names else []
