"""How a process ended, in words: by which signal or status, and whether the memory had run out."""

import signal
from contextlib import suppress
from pathlib import Path

from run.members import stat_of

EXIT_CODE = 49  # where `/proc/PID/stat` has it, counted from the state
CGROUPS, MINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def exit_of(pid: int) -> int | None:
    """How a process ended: its status, or minus the signal that killed it. None where somebody waited for it already.

    It need not be a child of this process: until its parent waits for it, the kernel shows how it ended.
    """
    fields = stat_of(pid)
    if fields is None or fields[0] not in "ZX":
        return None
    code = int(fields[EXIT_CODE])
    return -(code & 0x7F) if code & 0x7F else code >> 8


def told(code: int | None, out_of_memory: bool = False) -> str:
    """An end in words, after the name of what ended."""
    if code is None:
        return "ended, nobody knows how"
    if code >= 0:
        return f"ended with status {code}"
    name = signal_name(-code)
    return f"was killed by {name}" + (": out of memory" if out_of_memory and -code == signal.SIGKILL else "")


def signal_name(number: int) -> str:
    """SIGKILL for 9."""
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def kills_for_memory() -> int:
    """How many processes the kernel has killed so far because the memory of this process's control group ran out.

    0 where that cannot be read.
    """
    with suppress(OSError):
        for line in MINE.read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers in ("", "memory"):
                file = "memory.oom_control" if controllers else "memory.events"
                root = CGROUPS / "memory" if controllers else CGROUPS
                for folder in (root / group.lstrip("/"), root):  # in a container the root is its own group
                    with suppress(OSError):
                        words = dict(each.split() for each in (folder / file).read_text().splitlines())
                        return int(words["oom_kill"])
    return 0
