"""Start ranks inside an allocation of Slurm that our own batch script runs in: as tasks of a step, by `srun`.

There is no ssh and no hostfile. The command runs on the first node and sees the ranks through. How a rank of another
node ended is known by what `srun` says.
"""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from launch import local
from launch.attempt import Fault
from launch.group import Group, Rank
from run import events
from support.errors import CRASHED, BadNodeError, CrashedError

SRUN = "STAGECRAFT_SRUN"  # set by our batch script: the words that start Python on every node, `srun` first
CLEAR_SECONDS = 30.0  # that a step which was cancelled may take to be gone
CANCEL_SECONDS = 5.0  # that scancel may try: the job may come back, and its next step has the same number
SLURM_SECONDS = 30.0  # that a question to the scheduler may take
BLAMED_IN_A_ROW = 3  # faults of ranks of one node, then it is kept out
# `srun: error: n1: task 3: Killed`, `srun: error: n[0-1]: tasks 0-3,5: Exited with exit code 1`
ENDED = re.compile(r"srun: error: (?P<nodes>\S+): tasks? (?P<tasks>[\d,-]+): (?P<how>.+)")
SIGNALS = {signal.strsignal(number): number for number in signal.valid_signals()}


def inside() -> bool:
    """Whether this process runs in a job that our batch script began."""
    return SRUN in os.environ and "SLURM_JOB_ID" in os.environ


def world_size() -> int | None:
    """How many ranks the job has; None outside of one."""
    return int(os.environ["SLURM_NTASKS"]) if inside() else None


def ranks_per_node() -> int:
    """How many ranks each node of the job has."""
    return int(os.environ["SLURM_NTASKS_PER_NODE"])


@cache
def nodes() -> list[str]:
    """The nodes of the job, in the order of the ranks."""
    listed = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
    return subprocess.run(listed, capture_output=True, text=True, check=True, timeout=SLURM_SECONDS).stdout.split()


def node_of(rank: int, world: int) -> str:
    """The node of a rank."""
    return nodes()[rank // (world // int(os.environ["SLURM_JOB_NUM_NODES"]))]


def launch(
    path: Path,
    world: int,
    inherited: tuple[int, ...],
    output: int | None,
    wakes: int | None,
    words: Sequence[str] = (),
) -> "Step":
    """Start the ranks of the run in `path`, or ranks that run `words`: a module and its arguments.

    As `launch.attempt.launch`; what an earlier start left is ended before.
    """
    clear()
    meet = {"MASTER_ADDR": os.environ["SLURMD_NODENAME"], "MASTER_PORT": str(local.free_port())}
    env = {**local.environment(ranks_per_node()), **meet}
    process = subprocess.Popen(
        [
            *shlex.split(os.environ[SRUN]),
            "-m",
            "launch.clusters.task",
            *(words or ("commands.rank", "--run-dir", str(path))),
        ],
        env=env,
        start_new_session=True,
        pass_fds=inherited,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.PIPE,
    )
    return Step(process, path, world, wakes, () if words else None, output=output)


def clear() -> None:
    """End the steps of this job: `srun` may have been killed under them.

    Errors: `CrashedError` where a node does not answer. No step would begin there; a job that is queued again can.
    """
    until = time.monotonic() + CLEAR_SECONDS
    while steps := _steps():
        for step in steps:
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(["scancel", step], capture_output=True, timeout=CANCEL_SECONDS)
        if time.monotonic() > until:
            raise CrashedError(f"step {steps[0]} of the job does not end: one of its nodes does not answer")
        time.sleep(0.2)


def _steps() -> list[str]:
    line = ["squeue", "--noheader", "--steps", f"--jobs={os.environ['SLURM_JOB_ID']}", "--format=%i"]
    with suppress(OSError, subprocess.TimeoutExpired):
        said = subprocess.run(line, capture_output=True, text=True, timeout=SLURM_SECONDS).stdout.split()
        return [step for step in said if step.rpartition(".")[2].isdigit()]
    return []


@dataclass
class Step(Group):
    """The ranks of a step. `launcher` is `srun`; it says how each rank ended, the first one first.

    The parent of a rank waits for it at once, so its end can seldom be read from the kernel.
    """

    output: int | None = None
    _words: bytes = b""
    _heard: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.launcher.stderr
        os.set_blocking(self.launcher.stderr.fileno(), False)

    def look(self) -> None:
        """Wait a moment, and note who came and who ended."""
        super().look()
        for rank in self.ranks.values():
            if rank.number not in self._heard:
                rank.code = None  # srun will say it, and in which order
        self._hear()
        if self.status is not None and self.status > 0:
            self.status = CRASHED  # it is that of a rank, and 143 does not say that `srun` was asked to end

    def _pass_on(self, status: int) -> None:
        """What `srun` ends with is the highest status of all ranks, and says nothing of who was first."""

    def _hear(self) -> None:
        """Take what `srun` said since, and pass it on."""
        assert self.launcher.stderr
        with suppress(BlockingIOError):
            while said := os.read(self.launcher.stderr.fileno(), 2**16):
                with suppress(OSError):
                    os.write(2 if self.output is None else self.output, said)
                self._words += said
        *lines, self._words = self._words.split(b"\n")
        for line in lines:
            for number, code in ends_in(line.decode(errors="replace")):
                self._take(number, code)

    def _take(self, number: int, code: int) -> None:
        self._heard.add(number)
        if number not in self.ranks:  # of another node: nothing here shows its end
            self._told.add(str(number))
            self.ranks[number] = Rank(number, 0, 0, os.open(os.devnull, os.O_RDONLY))
        rank = self.ranks[number]
        rank.code, rank.node, rank.ended = code, node_of(number, self.world), time.monotonic()

    def kill(self) -> None:
        """End all at once: `srun` ends the ranks of other nodes when it is asked to end itself."""
        asked = self.launcher.poll() is None and not self._ending
        self._ending = True
        for rank in self.living:
            rank.send(signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self.launcher.pid, signal.SIGTERM if asked else signal.SIGKILL)

    _ending: bool = False


def ends_in(line: str) -> list[tuple[int, int]]:
    """The ranks that `srun` says in a line to have ended, and how: a status, or minus a signal."""
    if not (found := ENDED.fullmatch(line.strip())):
        return []
    how = found["how"].removesuffix(" (core dumped)")
    status = how.removeprefix("Exited with exit code ")
    code = int(status) if status.isdigit() else -SIGNALS.get(how, signal.SIGKILL)  # "Out Of Memory" is a SIGKILL too
    ranges = [each.partition("-") for each in found["tasks"].split(",")]
    return [(rank, code) for first, _, last in ranges for rank in range(int(first), int(last or first) + 1)]


class Blamed:
    """The node that faults began on, one after another."""

    def __init__(self) -> None:
        self.node, self.count = "", 0

    def take(self, path: Path, fault: Fault, world: int) -> None:
        """Note where a fault began. Errors: `BadNodeError` where one node of several had too many in a row."""
        node = "" if fault.rank is None else node_of(fault.rank, world)
        self.count = self.count + 1 if node == self.node else 1
        self.node = node
        if node and self.count >= BLAMED_IN_A_ROW and len(nodes()) > 1:
            events.note(path, "bad_node", node=node, reason=fault.reason)
            raise BadNodeError(f"{self.count} faults in a row began on node {node}; the last: {fault.reason}")
