"""The ranks of several hosts, together, as this machine sees them: one `launch.hosts.near` on each, over ssh.

It stands in for `launch.group.Group`: who came, who ended and how, told by the nodes instead of this kernel.
"""

import os
import select
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launch.death import told
from launch.group import KILLED_SECONDS, LOOK_SECONDS, Rank
from launch.hosts.near import BEAT_SECONDS
from launch.hosts.talk import Talk
from recipes.registry import ROOT
from support.errors import CRASHED, DONE
from support.json_object import JsonObject

CONNECT_SECONDS = 10  # that a host may take to answer
# ssh itself notices a link that is down after 3 times 5 seconds. A user's shared connection is used where there is one.
PATIENT = ("BatchMode=yes", f"ConnectTimeout={CONNECT_SECONDS}", "ServerAliveInterval=5", "ServerAliveCountMax=3")
SILENT_SECONDS = 60.0  # without a sign of life of a host that is connected: its storage may stand still for a while
NO_PROJECT = 71  # how the shell on a host ends where there is no such folder


@dataclass
class FarRank(Rank):
    """A rank that a node tells of."""

    far: "Node | None" = None
    stands: bool = False

    @property
    def stopped(self) -> bool:
        return self.stands

    def send(self, number: int) -> None:
        if self.ended is None and self.far:
            self.far.talk.say(rank=self.number, signal=number)


def command(host: str, here: bool, port: int = 0, setup: Sequence[str] = ()) -> list[str]:
    """What starts the node of a host. `setup` are lines of shell that run there before."""
    python = [sys.executable, "-m", "launch.hosts.near"]
    enter = f"cd {shlex.quote(str(ROOT))} || exit {NO_PROJECT}"
    script = "\n".join((enter, *setup, f"exec {shlex.join(python)}"))
    if here:
        return ["bash", "-c", script] if setup else python
    options = [word for option in (*PATIENT, "ControlMaster=no") for word in ("-o", option)]
    return ["ssh", "-T", *options, *(["-p", str(port)] if port else []), host, script]


class Node:
    """One host, with the process that holds the connection to it; `here`: this machine, without ssh. See `command`."""

    def __init__(
        self, host: str, here: bool, port: int = 0, setup: Sequence[str] = (), inherited: tuple[int, ...] = ()
    ) -> None:
        self.host, self.here = host, here
        self.process = subprocess.Popen(
            command(host, here, port, setup),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=inherited,
        )
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.talk = Talk(self.process.stdout.fileno(), self.process.stdin.fileno())
        self.errors = self.process.stderr.fileno()
        os.set_blocking(self.errors, False)
        self._begun = b""  # a line of which the end is to come
        self.said: deque[str] = deque(maxlen=20)  # on standard error, by ssh and by what runs there
        self.facts: JsonObject = {}
        self.status: int | None = None  # of the launcher there
        self.idle = False
        self.lost: str | None = None

    @property
    def over(self) -> bool:
        """Whether nothing of this host is to be waited for."""
        return self.status is not None or self.lost is not None

    def printed(self) -> bytes:
        """The lines that were printed there since the last call, whole, so that those of hosts do not mix."""
        with suppress(BlockingIOError):
            while read := os.read(self.errors, 2**16):
                self._begun += read
            self._begun += b"\n" if self._begun else b""  # nothing comes after it
        lines, end, begun = self._begun.rpartition(b"\n")
        text, self._begun = lines + end, begun
        self.said.extend(line for line in text.decode(errors="replace").splitlines() if line.strip())
        return text

    def close(self) -> None:
        """End the connection; who runs there sees that."""
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe
            with suppress(OSError):
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.0 if self.lost else KILLED_SECONDS)
        self.process.kill()
        self.process.wait()


class Nodes:
    """The nodes of one launch, each of which was told to start its ranks. `output` gets what is printed there."""

    def __init__(
        self, nodes: Sequence[Node], path: Path, world: int, output: int | None = None, wakes: int | None = None
    ) -> None:
        self.nodes, self.path, self.world, self.output, self.wakes = nodes, path, world, output, wakes
        self.ranks: dict[int, FarRank] = {}
        self.status: int | None = None
        self.broken: str | None = None
        self.asked = False  # to stop, or killed
        self.beat_at = 0.0

    def look(self) -> None:
        """Wait a moment, and note what the nodes tell."""
        poll = select.poll()
        for node in self.nodes:
            if not node.over:
                poll.register(node.talk.ears, select.POLLIN)
        if self.wakes is not None:
            poll.register(self.wakes, select.POLLIN)
        for descriptor, _ in poll.poll(1000 * LOOK_SECONDS):
            if descriptor == self.wakes:
                os.read(descriptor, 64)
        beats = time.monotonic() - self.beat_at > BEAT_SECONDS
        for node in self.nodes:
            if not node.over:
                self._hear(node)
                if beats:
                    node.talk.say(beat=True)
        if beats:
            self.beat_at = time.monotonic()
        if self.over and self.status is None:
            self.status = CRASHED if self.broken or any(node.status for node in self.nodes) else DONE

    def _hear(self, node: Node) -> None:
        for message in node.talk.heard():
            if "over" in message:
                node.status = message["over"]
                if node.status and not self.asked and not self._has_ended(node):
                    self.broken = f"the ranks on {node.host} did not begin: their launcher {_told(node.status)}"
            elif "idle" in message:
                node.idle = message["idle"]
            elif "launcher" in message:
                self.broken = f"the launcher on {node.host} {_told(message['status'])}"
            elif "rank" in message:
                self._take(node, message)
        if text := node.printed():
            with suppress(OSError):
                os.write(2 if self.output is None else self.output, text)
        if node.status is None and (node.talk.over or node.talk.silent > SILENT_SECONDS):
            node.lost = f"host {node.host} is lost: {self._why(node)}"
            self.broken = self.broken or node.lost

    def _has_ended(self, node: Node) -> bool:
        """Whether it is known of a rank of a host how it broke."""
        return any(rank.code for rank in self.ranks.values() if rank.far is node)

    def _take(self, node: Node, message: JsonObject) -> None:
        number = message["rank"]
        if number not in self.ranks:
            self.ranks[number] = FarRank(number, 0, 0, -1, node=node.host, far=node)
        rank = self.ranks[number]
        rank.stands = "stopped" in message
        if "ended" in message:
            rank.code, rank.ended, rank.out_of_memory = message["code"], time.monotonic(), message["memory"]

    @staticmethod
    def _why(node: Node) -> str:
        if not node.talk.over:
            return f"it says nothing for {node.talk.silent:.0f} s"
        with suppress(subprocess.TimeoutExpired):
            status = node.process.wait(1.0)
            if node.here or status != 255:
                return f"the process there that starts the ranks {_told(status)}"
        node.printed()
        return node.said[-1] if node.said else "the connection ended"

    @property
    def living(self) -> list[Rank]:
        """The ranks that have not ended, on hosts that are not lost, in their order."""
        ranks = (self.ranks[number] for number in sorted(self.ranks))
        return [rank for rank in ranks if rank.ended is None and rank.far and not rank.far.over]

    @property
    def over(self) -> bool:
        """Whether all is over on all hosts."""
        return all(node.over for node in self.nodes)

    @property
    def lost(self) -> list[str]:
        """The hosts of which nobody knows whether their ranks have ended."""
        return [node.host for node in self.nodes if node.lost]

    def ended(self) -> list[Rank]:
        """The ranks that have ended, the first one first."""
        return sorted((rank for rank in self.ranks.values() if rank.ended), key=lambda rank: rank.ended or 0.0)

    def idle(self) -> bool:
        """Whether all hosts have done nothing for two minutes."""
        return all(node.idle for node in self.nodes)

    def ask_to_stop(self) -> None:
        """Ask all ranks of all hosts at once to save and to end."""
        self._say(stop=True)

    def kill(self) -> None:
        """End all at once, whatever they do."""
        self._say(kill=True)

    def _say(self, **order: bool) -> None:
        self.asked = True
        for node in self.nodes:
            if not node.over:
                node.talk.say(**order)

    def close(self) -> None:
        """End what is left, and let go of it."""
        self.kill()
        until = time.monotonic() + KILLED_SECONDS
        while not self.over and time.monotonic() < until:
            self.look()
        for node in self.nodes:
            node.close()
        self.status = CRASHED if self.status is None else self.status


def _told(status: int) -> str:
    """A status in words. A signal is 128 + its number to a shell, and 256 - its number to DeepSpeed's launcher."""
    return told(status - 256 if status > 192 else 128 - status if status > 128 else status)
