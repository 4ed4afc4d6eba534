"""What the first rank of a machine tells of it. Everything here is read; nothing heavy is imported, no GPU touched."""

import os
import shutil
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from launch.preflight.nvidia import Boards, boards
from support.files import NO_ROOM

WRITE_SECONDS = 2.0  # that a measured write may take, besides what the disk keeps back
PIECE = 16 * 2**20  # bytes of one write


@dataclass(frozen=True)
class Network:
    """How a machine is called and reached. `addresses` are those of its own name, `master` those of rank 0's."""

    addresses: tuple[str, ...] = ()
    master: tuple[str, ...] = ()
    interface: str = ""
    mtu: int = 0


@dataclass(frozen=True)
class Node:
    """A machine: its ranks, GPUs, network, and free memory in bytes."""

    host: str
    ranks: int
    gpus: Boards = field(default_factory=Boards)
    network: Network = field(default_factory=Network)
    memory: int = 0


@dataclass(frozen=True)
class Storage:
    """What a machine found in the run's folder: why it is of no use, free bytes, bytes written in how many seconds."""

    problem: str = ""
    free: int = 0
    written: int = 0
    seconds: float = 0.0
    missing: tuple[str, ...] = ()  # prepared data that it does not see


def this_node(host: str, master: str) -> Node:
    """This machine; how many ranks it has is known when all have told."""
    import psutil

    return Node(host, 0, boards(), network(host, master), int(psutil.virtual_memory().available))


def addresses(name: str) -> tuple[str, ...]:
    """Those that a name stands for; none where it stands for nothing."""
    try:
        return tuple(dict.fromkeys(str(each[4][0]) for each in socket.getaddrinfo(name, None)))
    except OSError:
        return ()


def network(host: str, master: str) -> Network:
    """This machine's, with the interface that leads to rank 0."""
    import psutil

    target = addresses(master)
    own = ""
    if target:
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((target[0], 9))  # sends nothing
            own = str(probe.getsockname()[0])
    interfaces = psutil.net_if_addrs().items()
    name = next((name for name, each in interfaces if any(address.address == own for address in each)), "")
    state = psutil.net_if_stats().get(name)
    return Network(addresses(host), target, name, state.mtu if state else 0)


def storage(folder: Path, problem: str, size: int, name: str, data: list[str]) -> Storage:
    """What the run's folder is good for: write up to `size` bytes there, in a file `name` that is removed again."""
    missing = tuple(path for path in data if not Path(path).is_dir())
    if problem:
        return Storage(problem, missing=missing)
    file, written, began = folder / name, 0, time.monotonic()
    try:
        with open(file, "wb", buffering=0) as stream:
            piece = memoryview(bytearray(b"\x5a" * PIECE))
            while written < size and time.monotonic() < began + WRITE_SECONDS:
                written += stream.write(piece[: size - written])
            os.fsync(stream.fileno())
        seconds = time.monotonic() - began
        return Storage("", shutil.disk_usage(folder).free, written, seconds, missing)
    except OSError as error:
        full = "; free some room" if error.errno in NO_ROOM else ""
        return Storage(f"it cannot be written to: {error.strerror}{full}", missing=missing)
    finally:
        with suppress(OSError):
            file.unlink(missing_ok=True)
