"""Start the ranks of a preflight as those of a run are started, and hear what they found."""

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from launch import attempt, local
from launch.clusters import in_job
from launch.clusters.asked import Where
from launch.clusters.begin import placed
from launch.clusters.description import Cluster, read
from launch.group import Launched
from launch.hosts.far import Nodes
from launch.hosts.hosts import Hosts
from launch.preflight.asked import Asked, Limits, Values
from support.errors import CrashedError, UserError
from training.presence import WATCHED

START_SECONDS = 30.0  # that the launcher may take besides what the ranks may
END_SECONDS = 2.0  # that ranks and launcher have to end when all is told: DeepSpeed's takes seconds to see that
MOST_BYTES = 2**24
MODULE = "commands.preflight"

Launch = Callable[[int], Launched]  # of ranks that print to this descriptor


def preflight(asked: Asked, where: Where) -> Values:
    """Start the ranks, which get the same command with paths from the root on, and return what they found.

    They are tasks of the job that this process runs in, or are started on the hosts that `where` names, or here.

    Errors: `UserError` for what is wrong before any rank begins; `CrashedError` where they tell nothing.
    """
    folder = asked.folder.absolute()
    words = [MODULE, asked.recipe.name, "--run-dir", str(folder), *flags_of(asked, where), "--json"]
    if ranks := in_job.world_size():
        asked.run(ranks)
        named = [in_job.node_of(rank, ranks) for rank in range(ranks)]
        return _heard(lambda output: in_job.launch(folder, len(named), (), output, None, words), named)
    cluster = read(where.file) if where.cluster else None
    check_kind(cluster)
    with placed(where, cluster) as (hosts, processes):
        world = hosts.world_size if hosts else local.world_size(None, processes, asked.recipe.cluster.world_size)
        asked.run(world)
        if hosts:
            hosts.check(folder)
            return _on_hosts(hosts, folder, world, words)
        folder.mkdir(parents=True, exist_ok=True)
        command = local.deepspeed_command(words[0], words[1:], world, None)
        env = {**local.environment(world), WATCHED: str(os.getpid())}
        return _heard(lambda output: attempt.launch(command, env, folder, world, output=output, numbers=()))


def check_kind(cluster: Cluster | None) -> None:
    """Errors: `UserError` for a cluster whose ranks only its own scheduler starts."""
    if cluster and cluster.kind in ("kubernetes", "azureml"):
        raise UserError(
            f"ranks of a {cluster.kind} cluster are started by its own scheduler; give the same command there as each "
            "rank of a job, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, as torchrun does"
        )


def flags_of(asked: Asked, where: Where) -> list[str]:
    """The flags that ranks get, but for the folder: they may have another working directory."""
    flags = ["--cluster", str(where.file)] if where.cluster else []
    if asked.deepspeed_config:
        flags += ["--deepspeed_config", str(Path(asked.deepspeed_config).absolute())]
    return [*flags, *(("--set", *asked.settings) if asked.settings else ())]


def _on_hosts(hosts: Hosts, folder: Path, world: int, words: list[str]) -> Values:
    """What ranks on hosts found, whoever starts them."""
    named = [host for host, devices in hosts.devices.items() for _ in devices]
    if hosts.own:
        return _heard(lambda output: hosts.launch(folder, world, END_SECONDS, (), output, None, words), named)
    local.check_remote(words)
    command = local.deepspeed_command(words[0], words[1:], world, hosts.words())
    env = local.environment(world)
    return _heard(lambda output: attempt.launch(command, env, folder, world, output=output, numbers=()), named)


def _heard(launch: Launch, named: Sequence[str] = ()) -> Values:
    """What the ranks found that are started so; `named` are their hosts. Errors: `CrashedError`."""
    lines = _printed(launch, Limits().total + START_SECONDS)
    values = found_in(lines)
    lines = [line for line in lines if not in_job.ends_in(line)]
    complaints = list(dict.fromkeys(line.partition("error: ")[2] for line in lines if "error: " in line))
    if values is None:
        reason = complaints[0] if complaints else next((line for line in reversed(lines) if line.strip()), "nothing")
        raise CrashedError(f"the ranks told nothing of what they found; what was printed last: {reason}")
    last = values["checks"][-1]
    for line in () if values["ok"] else (*complaints, *_whose(values["absent"], named)):
        last["findings"].append({"line": line, "spoils": True})
        last["state"] = "fail"
    return values


def _printed(launch: Launch, seconds: float) -> list[str]:
    """What ranks print until they end, or are ended: after so many seconds, or soon after rank 0 has told all."""
    with tempfile.TemporaryFile() as output:

        def lines() -> list[str]:
            return os.pread(output.fileno(), MOST_BYTES, 0).decode(errors="replace").splitlines()

        group, until = launch(output.fileno()), time.monotonic() + seconds
        lost: list[str] = []
        try:
            while not group.over and time.monotonic() < until:
                group.look()
                if found_in(lines()):
                    until = min(until, time.monotonic() + END_SECONDS)
            lost = [f"error: {node.lost}" for node in group.nodes if node.lost] if isinstance(group, Nodes) else []
        finally:
            group.close()
        return [*lines(), *lost]


def found_in(lines: Sequence[str]) -> Values | None:
    """What rank 0 printed: JSON, before which a launcher may put its number or host.

    `srun` cuts lines after 1,024 bytes, and begins each piece with the number.
    """
    for number, line in enumerate(lines):
        label, begins, _ = line.partition('{"recipe": ')
        if begins:
            pieces = [each.removeprefix(label) for each in lines[number:] if each.startswith(label)]
            with suppress(ValueError):
                values: Values = json.JSONDecoder().raw_decode("".join(pieces))[0]
                return values
    return None


def _whose(absent: Sequence[int], named: Sequence[str]) -> list[str]:
    """The hosts that ranks did not come from."""
    names = list(dict.fromkeys(named[rank] for rank in absent if rank < len(named)))
    return [f"these ranks were to be on {', '.join(names)}; look at {names[0]}"] if names else []
