"""The processes of a launch, together: the launcher, and the ranks of this machine. `launch/hosts/far.py` has several.

The launcher ends its ranks one after another, half a minute each, and says of none how it ended. So the ranks are
watched from here by their process descriptors, and ended all at once.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launch.death import exit_of
from launch.progress import Watch
from run import members
from run.members import stat_of

LOOK_SECONDS = 0.1
KILLED_SECONDS = 10.0  # that a killed process may take to be gone, while the kernel writes out what it had


@dataclass
class Rank:
    """A rank. `ended` is when it was found to have ended (monotonic), `code` how, see `exit_of`.

    `node` is where it was: a host, or a node as the scheduler calls it; empty where there is one machine.
    """

    number: int
    pid: int
    began: int
    descriptor: int
    ended: float | None = None
    code: int | None = None
    asked: bool = False
    node: str = ""
    out_of_memory: bool = False  # known of ranks of other hosts

    @property
    def stopped(self) -> bool:
        """Whether it is stopped, by SIGSTOP or a debugger."""
        fields = stat_of(self.pid)
        return fields is not None and fields[0] in "Tt"

    def send(self, number: int) -> None:
        """Send a signal; it reaches no other process that has the same number meanwhile."""
        if self.ended is None:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.descriptor, number)


class Launched(Protocol):
    """What an attempt sees through: a `Group`, or the `Nodes` of several hosts."""

    path: Path
    world: int
    status: int | None  # of the launcher, when it has ended; minus the signal that killed it
    broken: str | None  # what no rank's end tells, in words: a host that is lost, for example

    @property
    def living(self) -> list[Rank]: ...
    @property
    def over(self) -> bool: ...
    def ended(self) -> list[Rank]: ...
    def idle(self) -> bool: ...
    def look(self) -> None: ...
    def ask_to_stop(self) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


@dataclass
class Group:
    """A launcher that was started as a group of its own, and the ranks that have said in `path` that they live.

    `numbers` are the ranks that may be of this machine, where that is known before.
    """

    launcher: "subprocess.Popen[bytes]"
    path: Path
    world: int
    wakes: int | None = None  # a descriptor that interrupts a look
    numbers: Sequence[int] | None = None
    ranks: dict[int, Rank] = field(default_factory=dict)
    status: int | None = None  # of the launcher; minus the signal that killed it
    stopping: bool = False
    broken: str | None = None
    _watch: Watch | None = None
    _poll: select.poll = field(default_factory=select.poll)
    _told: set[str] = field(default_factory=set)
    _launcher: int = -1

    def __post_init__(self) -> None:
        self._launcher = os.pidfd_open(self.launcher.pid)
        for descriptor in (self._launcher, self.wakes):
            if descriptor is not None:
                self._poll.register(descriptor, select.POLLIN)

    def look(self) -> None:
        """Wait a moment, and note who came and who ended."""
        self._find()
        if self.stopping:
            self._ask()
        by_descriptor = {rank.descriptor: rank for rank in self.living}
        for descriptor, _ in self._poll.poll(1000 * LOOK_SECONDS):
            if rank := by_descriptor.get(descriptor):
                rank.code, rank.ended = exit_of(rank.pid), time.monotonic()
                self._poll.unregister(descriptor)
            elif descriptor == self.wakes:
                os.read(descriptor, 64)
            else:
                self._poll.unregister(descriptor)  # the launcher's
        self.status = self.launcher.poll()
        if self.status:
            self._pass_on(self.status)

    def _pass_on(self, status: int) -> None:
        """Take the launcher's status for that of the rank that ended first, where nobody saw how any did.

        The launcher ends as the first rank did that broke; where a signal killed that, with 256 - the signal.
        """
        ended = self.ended()
        unseen = [rank for rank in ended if rank.code is None]
        if unseen and not any(rank.code for rank in ended) and (0 < status <= 128 or status > 192):
            unseen[0].code = status - 256 if status > 192 else status

    def _find(self) -> None:
        """Take the ranks that have come since."""
        if len(self._told) == (self.world if self.numbers is None else len(self.numbers)):
            return
        folder = self.path / "ranks"
        known = None if self.numbers is None else [folder / f"{number}.json" for number in self.numbers]
        for file in folder.glob("[0-9]*.json") if known is None else known:
            if file.stem in self._told or (found := members.read(self.path, file.stem)) is None:
                continue
            self._told.add(file.stem)
            if found.here and members.began_at(found.pid) in (found.began, None):
                with suppress(ProcessLookupError):
                    rank = Rank(int(found.name), found.pid, found.began, os.pidfd_open(found.pid))
                    self.ranks[rank.number] = rank
                    self._poll.register(rank.descriptor, select.POLLIN)

    @property
    def living(self) -> list[Rank]:
        """The ranks that have not ended, in their order."""
        return [self.ranks[number] for number in sorted(self.ranks) if self.ranks[number].ended is None]

    @property
    def over(self) -> bool:
        """Whether launcher and ranks have ended."""
        return self.status is not None and not self.living

    def ended(self) -> list[Rank]:
        """The ranks that have ended, the first one first."""
        return sorted((rank for rank in self.ranks.values() if rank.ended), key=lambda rank: rank.ended or 0.0)

    def idle(self) -> bool:
        """Whether all of it has done nothing for two minutes. Ask this now and then."""
        self._watch = self._watch or Watch(self.launcher.pid)
        return self._watch.hangs()

    def ask_to_stop(self) -> None:
        """Ask all ranks at once to save and to end. Before there are any, the launcher is asked."""
        self.stopping = True
        self._ask()
        if not self.ranks:
            _terminate(self.launcher.pid)

    def _ask(self) -> None:
        """Ask those that were not asked; some may come late."""
        for rank in self.living:
            if not rank.asked:
                rank.asked = True
                rank.send(signal.SIGTERM)

    def kill(self) -> None:
        """End all at once, whatever they do, and the processes that they started."""
        for rank in self.living:
            rank.send(signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.killpg(self.launcher.pid, signal.SIGKILL)

    def close(self) -> None:
        """End what is left, and let go of it."""
        self.kill()
        ended = self.launcher.wait()
        self.status = ended if self.status is None else self.status
        until = time.monotonic() + KILLED_SECONDS
        while members.group_lives(self.launcher.pid) and time.monotonic() < until:
            time.sleep(0.02)
        for descriptor in (self._launcher, *(rank.descriptor for rank in self.ranks.values())):
            os.close(descriptor)


def _terminate(launcher: int) -> None:
    """Ask the launcher's inner process to end its ranks; the outer one passes no signal on."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(launcher).children() or [psutil.Process(launcher)]:
            child.terminate()
