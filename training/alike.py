"""Whether the machines of a run are alike: compared at the start of every run, in moments.

`stagecraft preflight` asks more, and takes longer. The functions that compare take what all ranks said, and nothing
else.
"""

import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model.checkpoint.together import gathered, told
from planner import placement
from planner.finding import Finding, few
from planner.hardware import GIGA, find
from planner.resolve import data_degree
from planner.timing import Machine
from planner.work import step_of
from run.directory import Run
from support.errors import UserError
from training.device import device_name
from training.facts import Facts, facts
from training.log import Log
from training.shared import LATE_SECONDS, leave_token, take_token, token_problem

SKEW_SECONDS = 1.0  # between two clocks, from which on it is said
ROUNDS = 3  # barriers that clocks are read around
SAME = "install the same everywhere, with make setup"
REMEDIES = {
    "Stagecraft's sources": "give all machines the same checkout",
    "DeepSpeed JSON": "start all ranks with the same --deepspeed_config",
    "recipe": "start all ranks with the same recipe and --set",
    "NCCL": "load the same NCCL everywhere",
    "CUDA driver": "install the same driver",
    "GPU": "take machines with the same GPUs, or leave these out",
    "CPU kernels": "take machines with the same CPUs: their numbers differ in the last bits",
}
HARMLESS = ("CUDA driver", "GPU", "CPU kernels")  # training goes on with these


def different(everyone: Sequence[Facts]) -> list[Finding]:
    """What is not the same on all ranks, and where: most have it right."""
    found = []
    for name in dict.fromkeys(name for each in everyone for name in each.alike):
        values = [each.alike.get(name, "none") for each in everyone]
        usual = Counter(values).most_common(1)[0][0]  # of equally frequent ones rank 0's
        others = [each for each, value in zip(everyone, values, strict=True) if value != usual]
        if others:
            there = others[0].alike.get(name, "none")
            spoils = name not in HARMLESS
            where = f"{_hosts(others)} ({_ranks([each.rank for each in others])})"
            line = f"{name} is {there} on {where}, and {usual} elsewhere; {REMEDIES.get(name, SAME)}"
            found.append(Finding(line, spoils))
    return found


def _hosts(some: Sequence[Facts]) -> str:
    return few(list(dict.fromkeys(each.host for each in some)))


def _ranks(numbers: Sequence[int]) -> str:
    return f"rank{'s' * (len(numbers) > 1)} {few(numbers)}"


@dataclass(frozen=True)
class Skew:
    """How far a host's clock is before the usual one, and how wrong that may be, in seconds."""

    host: str
    seconds: float
    error: float


Reading = tuple[float, float]  # of a clock, before and after a barrier


def skews(hosts: Sequence[str], readings: Sequence[Sequence[Reading]]) -> list[Skew]:
    """The clock of each host, from what each rank read around the same barriers.

    A rank is in a barrier when the last rank has come, and so is every other one. So the readings of two ranks around
    it are intervals that share a moment, and the difference of their clocks has bounds. Of more barriers the tightest
    count.
    """
    zero, best = readings[0], dict[str, tuple[float, float]]()
    for host, mine in zip(hosts, readings, strict=True):
        low = max(before - after_0 for (before, _), (_, after_0) in zip(mine, zero, strict=True))
        high = min(after - before_0 for (_, after), (before_0, _) in zip(mine, zero, strict=True))
        known = best.get(host, (low, high))
        best[host] = max(low, known[0]), min(high, known[1])
    usual = statistics.median_low((low + high) / 2 for low, high in best.values())
    return [Skew(host, (low + high) / 2 - usual, abs(high - low) / 2) for host, (low, high) in best.items()]


def skewed(clocks: Sequence[Skew]) -> list[Finding]:
    """The hosts whose clock is surely wrong."""
    wrong = [each for each in clocks if abs(each.seconds) - each.error > SKEW_SECONDS]
    if not wrong:
        return []
    first = max(wrong, key=lambda each: abs(each.seconds))
    side = "ahead of" if first.seconds > 0 else "behind"
    line = f"the clock of {first.host} is {abs(first.seconds):.2f} s {side} the others' (± {first.error:.2f} s)"
    more = f", and {len(wrong) - 1:,} more are wrong" if len(wrong) > 1 else ""
    return [Finding(f"{line}{more}; run chronyd or ntpd there", spoils=False)]


def unseen(folder: Path, hosts: Sequence[str], problems: Sequence[str]) -> list[Finding]:
    """The hosts that do not share the storage of a folder; `problems` has a line for each rank, or nothing."""
    bad = [(host, problem) for host, problem in zip(hosts, problems, strict=True) if problem]
    if not bad:
        return []
    names = few(list(dict.fromkeys(host for host, _ in bad)))
    line = f"{folder} on {names}: {bad[0][1]}; put it on storage that all machines mount there (STAGECRAFT_RUNS)"
    return [Finding(line)]


def first_ranks(hosts: Sequence[str]) -> list[int]:
    """The first rank of each host."""
    return [hosts.index(host) for host in dict.fromkeys(hosts)]


def read_clock() -> list[Reading]:
    """This rank's clock around barriers; collective."""
    torch.distributed.barrier()  # who comes late, comes late here
    found = []
    for _ in range(ROUNDS):
        before = time.time()
        torch.distributed.barrier()
        found.append((before, time.time()))
    return found


def check(run: Run, log: Log) -> None:
    """Compare the machines of a run that begins: versions, clocks, storage, and where the ranks are.

    Collective. What costs is said. Errors: `UserError` on all ranks for what spoils the run.
    """
    gpu = {"GPU": device_name()} if torch.cuda.is_available() else {}
    everyone = gathered(facts(**gpu))
    hosts = told([each.host for each in everyone])
    found = different(everyone)
    if len(set(hosts)) > 1:
        found += _between(run, hosts)
    spoils, warnings = told(([each.line for each in found if each.spoils], [e.line for e in found if not e.spoils]))
    for line in warnings:
        log.say(line)
    if spoils:
        raise UserError(spoils[0] + (f" (and {len(spoils) - 1} more: stagecraft preflight)" if spoils[1:] else ""))


def _between(run: Run, hosts: list[str]) -> list[Finding]:
    """What is found of several hosts, on rank 0; collective."""
    rank = torch.distributed.get_rank()
    token, failed = told(leave_token(run.path) if rank == 0 else ("", ""))
    asked = rank in first_ranks(hosts) and not failed
    problems = gathered(token_problem(run.path, token, rank, LATE_SECONDS) if asked else failed if rank == 0 else "")
    clocks = gathered(read_clock())
    if rank:
        return []
    take_token(run.path, token)
    step = step_of(run.recipe, run.engine.json, data_degree(run.recipe, len(hosts)))
    placed = placement.findings(run.recipe.layout, hosts, step, machine_of(hosts, device_name()))
    return [*unseen(run.path, hosts, problems), *skewed(skews(hosts, clocks)), *placed]


def machine_of(hosts: Sequence[str], device: str) -> Machine | None:
    """The machines that ranks run on, by the name of their GPU; None where the catalogue does not know it."""
    try:
        gpu = find(device, nearest=True)
    except UserError:
        return None
    return Machine(gpu, max(Counter(hosts).values()), gpu.network_gb_s * GIGA, gpu.link_gb_s * GIGA)
