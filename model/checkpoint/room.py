"""Whether each machine has room in memory for a copy of what its ranks save."""

import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from model.checkpoint.together import gathered

SPARE = 1.2  # times what the copies take must be free: training goes on beside them
GROUPS, MINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def lack(need: int) -> str:
    """Which machine has too little memory for `need` more bytes of each of its ranks; collective.

    Rank 0 gets the answer, empty where all have room; the others get nothing.
    """
    needs: Counter[str] = Counter()
    rooms: dict[str, int] = {}
    for host, wanted, room in gathered((socket.gethostname(), need, free())):
        needs[host] += wanted
        rooms[host] = min(room, rooms.get(host, room))
    for host, wanted in needs.items():
        if rooms[host] < SPARE * wanted:
            return f"{host} has {rooms[host] / 1e9:,.1f} GB of memory free, and a copy takes {wanted / 1e9:,.1f} GB"
    return ""


def free() -> int:
    """Bytes that this machine has left, or the control groups of this process where they allow less."""
    return min([int(psutil.virtual_memory().available), *_left_in_groups()])


def _left_in_groups() -> Iterator[int]:
    """Bytes that are left in each control group (version 2) of this process that has a limit. Caches can be dropped."""
    with suppress(OSError):
        names = [line[3:] for line in MINE.read_text().splitlines() if line.startswith("0::")]
        for group in {
            each for name in names for each in (GROUPS / name.strip("/"), *(GROUPS / name.strip("/")).parents)
        }:
            with suppress(OSError, ValueError, KeyError):  # "max": no limit
                most, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield most - used + int(stat["active_file"]) + int(stat["inactive_file"])
