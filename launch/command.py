"""Start the ranks of a command, here or on the hosts of a hostfile, and pass on what they print."""

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launch import attempt, local
from launch.death import told
from launch.group import Launched
from launch.hosts.far import Nodes
from launch.hosts.hosts import Hosts, hosts_of
from launch.stops import Stops, listening
from support.errors import DONE, CrashedError, StoppedError, UserError
from support.json_object import JsonObject
from training.presence import WATCHED

END_SECONDS = 10.0  # that ranks have to end by themselves when they are asked, or one of them is lost
COMPLAINT = "error: "


def world_of(ranks: int | None, hostfile: str | None) -> tuple[Hosts | None, int]:
    """The hosts, if any, and how many ranks there are to be. Errors: `UserError`."""
    hosts = hosts_of(hostfile)
    if hosts:
        if ranks is not None:
            raise UserError("--ranks and --hostfile exclude each other: the hostfile's slots count the ranks")
        return hosts, hosts.world_size
    gpus = len(local.visible_gpus())
    if ranks is None or ranks < 1 or (gpus and ranks > gpus):
        most = f" and at most {gpus}, as there are GPUs here" if gpus else ""
        raise UserError(f"--ranks must be at least 1{most}")
    return None, ranks


def see_through(words: Sequence[str], world: int, hosts: Hosts | None, folder: Path) -> JsonObject:
    """Start `python -m words` in `world` ranks, of which the first prints JSON in a line, and return that.

    All hosts must see `folder`. Everything else that ranks print goes to standard error.

    Errors: `UserError` with the first line that a rank complained in and the status that it ended with; `StoppedError`.
    """
    if hosts:
        hosts.check(folder)
    with tempfile.TemporaryFile() as output, listening() as stops:
        if hosts:
            group: Launched = hosts.launch(folder, world, END_SECONDS, (), output.fileno(), stops.wakes, words)
        else:
            command = local.deepspeed_command(words[0], list(words[1:]), world, None)
            env = {**local.environment(world), WATCHED: str(os.getpid())}
            group = attempt.launch(command, env, folder, world, (), output.fileno(), stops.wakes, numbers=())
        heard = _Heard(output.fileno())
        _wait(group, stops, heard)
        if stops.first:
            raise StoppedError("stopped; give the same command again, what is finished is kept")
    if group.status == DONE and heard.value is not None:
        return heard.value
    raise _failure(group, heard.complaints)


def _failure(group: Launched, complaints: list[str]) -> UserError:
    """Why the ranks broke: the first complaint, with its status, or how one of them ended."""
    status = next((node.status for node in group.nodes if node.status), None) if isinstance(group, Nodes) else None
    status = status or group.status or DONE
    # DeepSpeed's launcher ends with 256 - the signal that killed a rank, and with 128 + the one that killed itself.
    code = status - 256 if status > 192 else 128 - status if status > 128 else status
    if complaints and code >= 0:
        error = CrashedError(complaints[0])
        error.status = code or CrashedError.status
        return error
    why = f"a rank {told(code)}" if code else "the ranks ended and told nothing"
    if group.broken and code >= 0:
        why = group.broken
    return CrashedError(f"{why}; give the same command again, what is finished is kept")


def _wait(group: Launched, stops: Stops, heard: "_Heard") -> None:
    """Wait for the end of all ranks. Where one is lost, or a stop is asked for, the others have to end too."""
    until: float | None = None
    try:
        while not group.over:
            group.look()
            heard.listen()
            if until is None and (stops.first or group.broken):
                group.ask_to_stop()
                until = time.monotonic() + END_SECONDS
            if stops.at_once or (until is not None and time.monotonic() > until):
                group.kill()
    finally:
        group.close()
        heard.listen(last=True)


class _Heard:
    """What ranks print into a file: the first one's JSON, complaints, and what goes on to standard error."""

    def __init__(self, file: int) -> None:
        self.file, self.read = file, 0
        self.value: JsonObject | None = None
        self.complaints: list[str] = []

    def listen(self, last: bool = False) -> None:
        """Read what is new, up to the last whole line."""
        new = os.pread(self.file, os.fstat(self.file).st_size - self.read, self.read)
        whole = len(new) if last else new.rfind(b"\n") + 1
        self.read += whole
        for line in new[:whole].decode(errors="replace").splitlines():
            if line.startswith(COMPLAINT):
                self.complaints.append(line.removeprefix(COMPLAINT))
            elif not self._is_value(line):
                print(line, file=sys.stderr, flush=True)

    def _is_value(self, line: str) -> bool:
        if line.startswith('{"'):
            with suppress(ValueError):
                self.value = json.loads(line)
                return True
        return False
