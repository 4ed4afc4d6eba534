"""The ranks of one host of several: `python -m launch.hosts.near`, which our command starts on each, by ssh.

Orders come as lines of JSON on standard input, and what happens goes to standard output; so nothing secret stands on a
command line. The ranks are started by DeepSpeed's launcher of a node, watched from here, and ended with the command.
"""

import base64
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from launch import local
from launch.attempt import launch
from launch.death import kills_for_memory
from launch.group import Group
from launch.hosts.talk import Talk
from recipes.registry import ROOT
from support.json_object import JsonObject
from training.presence import WATCHED

BEAT_SECONDS = 1.0  # between two signs of life
ALONE_SECONDS = 60.0  # without one, after which the command is taken for gone
ROOMS = ("commands", "launch", "training", "run", "planner", "recipes", "model", "data", "support")


@dataclass(frozen=True)
class Start:
    """What a node is to start: its part of the ranks of the run in `path`.

    `world` names the devices of each host, in the order of the ranks. `variables` are added to the environment. `words`
    are a module and its arguments, where the ranks belong to no run but run that.
    """

    path: str
    world: dict[str, list[int]]
    node: int
    address: str  # of the first host, as the others reach it
    port: int
    variables: dict[str, str]
    stop_seconds: float
    words: list[str] = field(default_factory=list)

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return sum(map(len, self.world.values()))

    @property
    def numbers(self) -> range:
        """The ranks of this node."""
        sizes = [len(devices) for devices in self.world.values()]
        return range(sum(sizes[: self.node]), sum(sizes[: self.node + 1]))

    def command(self) -> list[str]:
        """DeepSpeed's launcher of one node."""
        world = base64.urlsafe_b64encode(json.dumps(self.world).encode()).decode()
        where = [f"--world_info={world}", f"--node_rank={self.node}"]
        meeting = [f"--master_addr={self.address}", f"--master_port={self.port}"]
        launcher = [sys.executable, "-m", "deepspeed.launcher.launch", "--log_level", "critical"]
        words = self.words or ["commands.rank", "--run-dir", self.path]
        return [*launcher, *where, *meeting, "--no_local_rank", "--module", *words]


def facts(look: JsonObject) -> JsonObject:
    """What the command wants to know of this host before it starts anything; `look` has a file and its content."""
    client, _, server, _ = os.environ.get("SSH_CONNECTION", "   ").split(" ")
    try:
        sees = Path(look["file"]).read_text() == look["content"]
    except OSError:
        sees = False
    boards = len(list(local.DRIVER_GPUS.iterdir())) if local.DRIVER_GPUS.is_dir() else 0
    found = {"host": socket.gethostname(), "client": client, "server": server, "sees": sees, "boards": boards}
    return {**found, "port": local.free_port(), **versions()}


def versions() -> dict[str, str]:
    """What must be the same on all hosts."""
    code = hashlib.sha256()
    for file in sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py")):
        code.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    packages = {f"version of {name}": importlib.metadata.version(name) for name in ("torch", "deepspeed")}
    return {"project": code.hexdigest()[:12], "version of Python": platform.python_version(), **packages}


class Node:
    """Sees the ranks of this host through, and tells the command of them."""

    def __init__(self, talk: Talk, start: Start) -> None:
        self.talk, self.start = talk, start
        os.environ.update(start.variables)
        env = {**local.environment(len(start.numbers)), WATCHED: str(os.getpid())}
        numbers = () if start.words else start.numbers  # a run that lies in the same folder is another's
        self.group: Group = launch(start.command(), env, Path(start.path), start.world_size, numbers=numbers)
        self.killed_for_memory = kills_for_memory()
        self.told: dict[int, str] = {}  # what was said last of a rank
        self.until: float | None = None  # when all is ended that is left
        self.beat_at = 0.0

    def see_through(self) -> None:
        """Wait for the end of all of it."""
        try:
            while not self.group.over:
                self.group.look()
                self._tell()
                for order in self.talk.heard():
                    self._do(order)
                now = time.monotonic()
                if self.until is None and (self.talk.over or self.talk.silent > ALONE_SECONDS):
                    self.group.ask_to_stop()
                    self.until = now + self.start.stop_seconds
                if self.until is not None and now > self.until:
                    self.group.kill()
        finally:
            self.group.close()
        self._tell()
        self.talk.say(over=self.group.status)

    def _do(self, order: JsonObject) -> None:
        if "signal" in order:
            for rank in self.group.living:
                if order["rank"] == rank.number:
                    rank.send(order["signal"])
        elif "stop" in order:
            self.group.ask_to_stop()
        elif "kill" in order:
            self.group.kill()

    def _tell(self) -> None:
        """Say what is new of the ranks and of their launcher, and now and then that this process lives."""
        status = self.group.status
        memory = kills_for_memory() > self.killed_for_memory
        for rank in list(self.group.ranks.values()):
            if rank.ended is None:
                self._once(rank.number, "stopped" if rank.stopped else "lives")
            elif rank.code is not None or status is not None:
                self._once(rank.number, "ended", code=rank.code, memory=memory)
        if status is not None and self.group.living:
            self._once(-1, "launcher", status=status)
        if time.monotonic() - self.beat_at > BEAT_SECONDS:
            self.talk.say(idle=self.group.idle())
            self.beat_at = time.monotonic()

    def _once(self, rank: int, what: str, **more: object) -> None:
        if self.told.get(rank) != what:
            self.told[rank] = what
            self.talk.say(rank=rank, **{what: True}, **more)


def _ordered(talk: Talk, word: str) -> JsonObject | None:
    """Wait for an order; None where the command is gone."""
    while not talk.over and talk.silent < ALONE_SECONDS:
        for order in talk.heard():
            if word in order:
                return order
        time.sleep(0.02)
    return None


def main() -> None:
    ears, mouth = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # neither end is the ranks' to read or to write
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command is asked, and asks
    talk = Talk(ears, mouth)
    if (look := _ordered(talk, "file")) is None:
        return
    talk.say(facts=facts(look))
    if (order := _ordered(talk, "start")) is None:
        return
    if Path(order["folder"]).is_dir():
        os.chdir(order["folder"])
    Node(talk, Start(**order["start"])).see_through()


if __name__ == "__main__":
    main()
