"""What a rank does beside training: it says that it lives, shows its stacks when asked, and leaves no orphan.

It imports nothing heavy: it begins with the rank, before torch is imported.
"""

import faulthandler
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from run import members, rank_logs
from support.errors import STOPPED

STACKS = signal.SIGQUIT  # asks a rank for the stacks of its threads
ALONE_SECONDS = 30.0  # that a rank without a launcher has to save and to end
WATCHED = "STAGECRAFT_WATCHED"  # a process that is to live as long as this rank, beside its launcher
OWN_LOG = "STAGECRAFT_OWN_LOG"  # set in a rank whose output goes to a file of its own


def enter(path: Path, rank: int) -> None:
    """Begin as a rank of the run in `path`, which our launcher started: with a log of its own, watched and watching.

    Errors: `SystemExit` where the launcher or the command has ended already.
    """
    try:
        (path / "logs").mkdir(exist_ok=True)
        _print_into(rank_logs.log_of(path, rank), rank_logs.header(rank))
        stacks = open(rank_logs.stacks_of(path, rank), "w")  # noqa: SIM115  # open as long as the rank lives
        faulthandler.register(STACKS, stacks, all_threads=True)
        faulthandler.enable(sys.stderr)  # a crash in C++ leaves stacks in the log
    except OSError as error:  # a full disk: the run is worth more than its log
        print(f"rank {rank} has no log: {error}", file=sys.stderr)
    file = members.join(path, str(rank))
    supervisor = members.read(path, members.SUPERVISOR)
    local = supervisor if supervisor and supervisor.here else None
    # The launcher has a session of its own. Who is in another one is not it, but what orphans are given to.
    watched = [os.getppid()] if os.getsid(os.getppid()) == os.getsid(0) else []
    if local and members.began_at(local.pid) == local.began:
        watched.append(local.pid)
    if node := os.environ.get(WATCHED):
        watched.append(int(node))
    if len(watched) < 1 + bool(local) + bool(node):
        print("the launcher has ended: this rank does not begin")
        raise SystemExit(STOPPED)
    seconds = supervisor.stop_seconds if supervisor else ALONE_SECONDS
    _watch(watched, max(seconds, ALONE_SECONDS), file)


def watch_launcher(seconds: float = ALONE_SECONDS) -> None:
    """End with the process that started this one, whoever that is, after so many seconds at the latest."""
    node = os.environ.get(WATCHED)
    _watch([os.getppid(), *([int(node)] if node else [])], seconds)


def _print_into(file: Path, header: str) -> None:
    """Let this process print into a file, and the processes that it starts."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(descriptor, header.encode())
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.environ[OWN_LOG] = str(file)


def _watch(pids: Sequence[int], seconds: float, file: Path | None = None) -> None:
    """In a thread: when one of the processes ends, ask this rank to stop, and end it after so many seconds.

    A rank whose launcher was killed has nobody who would end it. It saves, unless another rank hangs.
    """
    poll, missing = select.poll(), not pids
    for pid in pids:
        try:
            poll.register(os.pidfd_open(pid), select.POLLIN)
        except ProcessLookupError:
            missing = True

    def watch() -> None:
        unwanted = 0
        while not missing and not poll.poll(1000 * members.BEAT_SECONDS):
            unwanted = 0 if file is None or members.beat(file) else unwanted + 1
            if unwanted == 2:  # the supervisor has begun anew without this rank, which may be stuck
                os.kill(os.getpid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGTERM)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(1.0)
            if file:
                members.beat(file)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="presence", daemon=True).start()
