"""See a run through: launch its ranks, launch them again when they broke, and say why when that is of no use."""

import time

from launch import local
from launch.attempt import Attempt, Ended, Fault, launch, note
from launch.care import Care
from launch.clusters import in_job
from launch.death import told
from launch.group import Launched
from launch.hosts.far import Nodes
from launch.hosts.hosts import Hosts
from launch.stops import Stops, listening
from launch.watch import HangWatch
from model.checkpoint.format import completed
from model.engine.batch import MICRO, STEPS
from planner.saving import saving
from run import events, members, rank_logs, resize, save_request
from run.directory import Run, end_of, note_end, was_trained
from run.record import read_object
from support.errors import CRASHED, STOPPED, WEIGHTS_LOST, WRONG_INPUT, CrashedError, GaveUpError, StoppedError
from support.files import write_json
from training import recorder

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before the ranks are launched again; doubled each time
FORGOTTEN_SECONDS = 4 * members.BEAT_SECONDS  # until ranks of other machines have seen that nobody wants them
PORTS = 3  # that are tried, where another process takes the one that was free
CANNOT_MEET = "the ranks cannot meet"  # how rank 0's error begins then


class Supervisor:
    """Sees a run through whose directory is written and whose lock is held (the descriptor `lock`)."""

    def __init__(self, run: Run, care: Care, hosts: Hosts | None, lock: int, output: int | None) -> None:
        self.run, self.care, self.hosts, self.lock, self.output = run, care, hosts, lock, output
        self.stop_seconds = saving(run.recipe, run.world_size).stop_seconds
        self.saved = self._newest()
        self.failures: list[str] = []  # without a new checkpoint in between
        self.wanted = run.world_size  # ranks, where there is room for all of them
        self.unseen = False  # whether ranks of the last launch may live yet
        self.blamed = in_job.Blamed()

    def see_through(self) -> int:
        """Returns the status that the ranks noted. Errors: `CrashedError`, `GaveUpError`, `StoppedError`.

        Meanwhile SIGUSR2 asks for a save.
        """
        try:
            with listening(lambda: save_request.wish(self.run.path)) as stops:
                while (status := self._status_of(self._launch(stops), stops)) is None:
                    self._wait(stops)
                return status
        finally:
            members.forget(self.run.path)
            rank_logs.clear(self.run.path)
            recorder.clear(self.run.path)

    def _launch(self, stops: Stops) -> Ended:
        """Launch the ranks, on another port where the one that was free is taken meanwhile."""
        path = self.run.path
        for port in range(PORTS):
            members.forget(path)
            if self.unseen:
                time.sleep(FORGOTTEN_SECONDS)
            file = members.join(path, members.SUPERVISOR, self.stop_seconds)
            try:
                group = self._started(stops)
            except CrashedError as error:
                if in_job.inside():
                    raise  # the job may be queued again
                note(path, fault := Fault(str(error)))
                return Ended(error.status, fault, False, {})
            seen = self.hosts is None or self.hosts.own
            here = seen and not in_job.inside()
            watch = HangWatch(self.run, self.care.hang_seconds, group, here, self.care)
            ended = Attempt(group, stops, self.stop_seconds, watch.hangs).see_through(file)
            self.unseen = bool(group.lost) if isinstance(group, Nodes) else not seen
            last = rank_logs.last_error(path, 0) or ""
            if not seen or ended.asked or port == PORTS - 1 or not last.startswith(CANNOT_MEET):
                break
        return ended

    def _started(self, stops: Stops) -> Launched:
        """The ranks, started: on this machine, on hosts, or as tasks of the job that this process runs in.

        Errors: `CrashedError` where a host cannot be used.
        """
        path, world, more = self.run.path, self.run.world_size, ((self.lock,), self.output, stops.wakes)
        if in_job.inside():
            return in_job.launch(path, world, *more)
        if self.hosts and self.hosts.own:
            return self.hosts.launch(path, world, self.stop_seconds, *more)
        where = self.hosts.words() if self.hosts else None
        command = local.deepspeed_command("commands.rank", ["--run-dir", str(path)], world, where)
        return launch(command, local.environment(world), path, world, *more)

    def _status_of(self, ended: Ended, stops: Stops) -> int | None:
        """The status to end with; None where the ranks are to be launched again. Errors: as `see_through`."""
        path, noted = self.run.path, end_of(self.run.path)
        if noted == STOPPED and not ended.asked and ended.fault and ended.fault.rank is None:
            noted = None  # nobody asked: the launcher was killed under the ranks, and they have saved
        if noted is not None and noted != CRASHED:
            if stops.first and noted != STOPPED:  # it came after the last step: a search of runs stops all the same
                events.note(path, "stop", signal=stops.first.name)
            return noted
        if ended.asked:
            raise StoppedError(f"stopped before it could save; go on with --resume --run-dir {path}")
        for rank, code in ended.codes.items():  # a rank that ended before the run did
            if code in (WRONG_INPUT, WEIGHTS_LOST) and noted is None:
                note_end(path, code, rank_logs.last_error(path, rank) or "")
                if rank:
                    self._say(rank)
                return code
        fault = ended.fault or self._noted_fault(ended)
        reason, newest = fault.reason, self._newest()
        if newest != self.saved:
            self.saved, self.failures = newest, []
        self.failures.append(reason)
        self.care.tell(path, "fault", rank=fault.rank, code=fault.code, reason=reason)
        if in_job.inside():
            self.blamed.take(path, fault, self.run.world_size)
        if not self.care.restarts or not was_trained(path):
            raise CrashedError(f"{reason}; go on with --resume --run-dir {path}")
        if len(self.failures) > self.care.restarts:
            raise GaveUpError(
                f"gave up after {len(self.failures)} failures without a new checkpoint; the last: {reason}; the ranks' "
                f"output is in {path / 'logs'}; when it is mended, go on with --resume --run-dir {path}",
                [f"failure {number}: {line}" for number, line in enumerate(self.failures, start=1)],
            )
        return None

    def _noted_fault(self, ended: Ended) -> Fault:
        """A crash that no rank's end tells: what rank 0 noted, or the launcher's status."""
        reason = str(read_object(self.run.path / "status.json").get("reason", ""))
        status = ended.status - 256 if ended.status > 192 else ended.status  # 256 - the signal that killed a rank
        if not reason and status < 0:
            reason = f"a rank {told(status)}"
        fault = Fault(reason or f"the ranks ended with status {ended.status} before the run did", None, status)
        note(self.run.path, fault)
        return fault

    def _wait(self, stops: Stops) -> None:
        """Let some time go by, then make the directory ready for another launch. Errors: `StoppedError`."""
        path, count = self.run.path, len(self.failures)
        seconds = min(FIRST_WAIT * 2 ** (count - 1), LONGEST_WAIT)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if stops.first:
                raise StoppedError(f"stopped between two launches; go on with --resume --run-dir {path}")
            members.beat(members.file_of(path, members.SUPERVISOR))
            time.sleep(min(0.1, seconds))
        (path / "status.json").unlink(missing_ok=True)
        write_json(path / "start.json", {**read_object(path / "start.json"), "resumed": True, "changes": []})
        self._fit()
        facts = {"failures": count, "waited": seconds, "checkpoint": self.saved, "ranks": self.run.world_size}
        events.note(path, "restart", **facts)
        events.note(path, "phase", phase="imports")
        self.care.tell(path, "restart", **facts)

    def _fit(self) -> None:
        """Go on with the most ranks that there is room for. Errors: `GaveUpError` where this machine has too few GPUs.

        Hosts may come back until the next launch.
        """
        path, (left, told) = self.run.path, self._room()
        most = self.wanted if left is None else min(left, self.wanted)
        if most == self.run.world_size:
            return
        fewer = resize.on_at_most(self.run, most)
        if fewer is None and not self.hosts:
            raise GaveUpError(
                f"{left} of {self.wanted} {told}, and the run cannot go on with so few; go on with "
                f"--resume --run-dir {path} where there are more"
            )
        if fewer and fewer.world_size != self.run.world_size:
            self.run = fewer
            resize.write(fewer)
            sizes = [fewer.engine.json[key] for key in (MICRO, STEPS)]
            line = f"{left} of {self.wanted} {told}: the run goes on with {fewer.world_size} ranks"
            events.note(path, "said", line=f"{line}, micro-batch {sizes[0]} x accumulation {sizes[1]}")

    def _room(self) -> tuple[int | None, str]:
        """How many ranks there is room for, and what that counts; None where nobody can tell."""
        if in_job.inside():
            return None, ""
        if self.hosts is None:
            return local.gpus_left(), "GPUs are left here"
        if not self.hosts.own:
            return None, ""
        room = self.hosts.look(self.run.path)
        for host, why in self.hosts.left_out.items():
            events.note(self.run.path, "said", line=f"host {host} is left out: {why}")
        return room, "slots are left on the hosts"

    def _newest(self) -> str | None:
        """The newest checkpoint."""
        found = completed(self.run.checkpoints)
        return found[-1].name if found else None

    def _say(self, rank: int) -> None:
        """Show the last lines that a rank printed; the terminal shows rank 0 only."""
        for line in rank_logs.last_lines(self.run.path, rank):
            events.note(self.run.path, "said", line=f"rank {rank}: {line}")
