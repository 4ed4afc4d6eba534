"""What a rank computes on, and how much of its memory it takes."""

import os
import platform
from pathlib import Path

import torch


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
