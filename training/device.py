"""What a rank computes on."""

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
