"""One launch of the ranks, from the first process to the last: how it went, and that nothing of it is left."""

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.death import kills_for_memory, told
from launch.group import Group, Launched, Rank
from launch.stops import Stops
from run import events, members, rank_logs
from support.errors import CRASHED, DONE, STOPPED, WEIGHTS_LOST, WRONG_INPUT
from training.stop import REQUESTS

GRACE_SECONDS = 4.0  # that the others have to end by themselves when a rank died: they cannot save without it
LEAVE_SECONDS = 30.0  # that the others have to end when one has ended on purpose before the last step
AGAIN_SECONDS = 1.0  # until who did not end is killed again
MEANT = (DONE, WRONG_INPUT, WEIGHTS_LOST, STOPPED)  # with these a rank ends on purpose


@dataclass(frozen=True)
class Fault:
    """Why a launch broke: in one line, and the rank that it began with, where that is known."""

    reason: str
    rank: int | None = None
    code: int | None = None  # see `launch.death.exit_of`


@dataclass(frozen=True)
class Ended:
    """How a launch ended: the launcher's status, the fault, if any, and the request to stop, if any."""

    status: int
    fault: Fault | None
    asked: bool
    codes: dict[int, int | None]  # of the ranks of this machine, the first that ended first


Hangs = Callable[[], Fault | None]  # asked several times a second: a fault, where the launch hangs


class Attempt:
    """Sees one launch through."""

    def __init__(self, group: Launched, stops: Stops, stop_seconds: float, hangs: Hangs) -> None:
        self.group, self.stops, self.stop_seconds, self.hangs = group, stops, stop_seconds, hangs
        self.killed_for_memory = kills_for_memory()
        self.fault: Fault | None = None
        self.asked = False
        self.until: float | None = None  # when all is ended that is left
        self.beat_at = time.monotonic()

    def see_through(self, file: Path) -> Ended:
        """Wait for the end of all of it. `file` is touched meanwhile: this process lives."""
        try:
            while not self.group.over:
                self.group.look()
                self._decide()
                now = time.monotonic()
                if now - self.beat_at > members.BEAT_SECONDS:
                    members.beat(file)
                    self.beat_at = now
                if self.until is not None and now > self.until:
                    self.group.kill()
                    self.until = now + AGAIN_SECONDS
            self._decide()
        finally:
            self.group.close()
        status = self.group.status
        assert status is not None
        codes = {rank.number: rank.code for rank in self.group.ended()}
        return Ended(status if status >= 0 else 128 - status, self.fault, self.asked, codes)

    def _decide(self) -> None:
        """Act upon what is new: a death, a request to stop, a hang."""
        if self.fault is None:
            self.fault = self._fault()
            if self.fault:
                note(self.group.path, self.fault)
                self._end_within(GRACE_SECONDS)
        if not self.asked and (self.stops.first or self._launcher_was_asked()):
            self.asked = True
            self._end_within(self.stop_seconds)
        if self.stops.at_once:
            self._end_within(0.0)
        if self.until is None and (self.group.status is not None or any(rank.code for rank in self.group.ended())):
            self._end_within(LEAVE_SECONDS, ask=False)  # after a 0 the others may be at the report yet

    def _end_within(self, seconds: float, ask: bool = True) -> None:
        """End what is left after so many seconds at the latest, and ask it to end by itself before."""
        until = time.monotonic() + seconds
        if self.until is None or until < self.until:
            if ask:
                self.group.ask_to_stop()
            self.until = until

    def _fault(self) -> Fault | None:
        meant = (*MEANT, -signal.SIGTERM) if self.asked else MEANT  # a rank that just begins dies of the request
        dead = [rank for rank in self.group.ended() if rank.code is not None and rank.code not in meant]
        if dead:
            # A rank that is killed takes the others with it within moments: they lose their connections to it.
            rank = next((each for each in dead if each.code == -signal.SIGKILL and self._soon(each, dead[0])), dead[0])
            memory = rank.out_of_memory or kills_for_memory() > self.killed_for_memory
            who = f"rank {rank.number} of {self.group.world}" + (f" on node {rank.node}" if rank.node else "")
            said = rank_logs.last_error(self.group.path, rank.number) if rank.code == CRASHED else None
            why = f": {said.partition(';')[0]}" if said else ""  # a full disk, for example, without the remedy
            return Fault(f"{who} {told(rank.code, memory)}{why}", rank.number, rank.code)
        if self.group.broken:
            return Fault(self.group.broken)
        if self.group.status is not None and self.group.living and not self._launcher_was_asked():
            status = self.group.status
            return Fault(f"the launcher {told(128 - status if status > 128 else status)}", None, status)
        return self.hangs() if not self.asked and not self.group.ended() else None

    @staticmethod
    def _soon(one: Rank, other: Rank) -> bool:
        assert one.ended is not None and other.ended is not None
        return one.ended - other.ended < 1.0

    def _launcher_was_asked(self) -> bool:
        """Whether somebody sent the launcher what asks a run to stop: it ends of that, and its ranks live."""
        status = self.group.status
        return status is not None and (128 - status if status > 128 else status) in [-number for number in REQUESTS]


def note(path: Path, fault: Fault) -> None:
    """Add a fault to the events of the run in `path`, with what its rank printed last."""
    log = [] if fault.rank is None else rank_logs.last_lines(path, fault.rank)
    events.note(path, "fault", rank=fault.rank, code=fault.code, reason=fault.reason, log=log)


def launch(
    command: list[str],
    env: dict[str, str],
    path: Path,
    world: int,
    inherited: tuple[int, ...] = (),
    output: int | None = None,
    wakes: int | None = None,
    numbers: Sequence[int] | None = None,
) -> Group:
    """Start a launcher in a group of its own. It gets the descriptors `inherited` and prints to `output`.

    What can be read from `wakes` interrupts a look at the group. `numbers` are the ranks of this machine.
    """
    process = subprocess.Popen(
        command, env=env, start_new_session=True, pass_fds=inherited, stdout=output, stderr=output
    )
    return Group(process, path, world, wakes, numbers)
