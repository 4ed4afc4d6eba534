"""What a rank computes on, and how much of its memory it takes."""

import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path

import torch

CPU_FACTS = ("cpu family", "model", "stepping", "cache size", "flags", "CPU part", "Features")  # of /proc/cpuinfo


def device_name() -> str:
    """The GPU's name, else the CPU's."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()  # arm64 gives its CPUs no name there


def memory_bytes() -> int:
    """On a GPU the most that torch has had allocated there so far, on a CPU the resident size of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def kernels() -> str:
    """A hash of what decides by which kernels this CPU computes. A name such as "AMD EPYC" is that of many CPUs."""
    known = [torch.backends.cpu.get_cpu_capability(), os.environ.get("ONEDNN_MAX_CPU_ISA", ""), platform.machine()]
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        known += [line for line in first if line.split("\t")[0] in CPU_FACTS]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
