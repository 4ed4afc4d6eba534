"""What a rank knows of its machine that has to be the same on all machines. It makes no GPU's context."""

import hashlib
import importlib.metadata
import json
import os
import platform
import socket
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from recipes.registry import ROOT
from training.device import kernels

PACKAGES = ("torch", "deepspeed", "numpy")
ROOMS = ("commands", "launch", "training", "inference", "run", "planner", "model", "data", "support")
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Facts:
    """A rank, its host, and by name what is to be alike everywhere."""

    rank: int
    host: str
    alike: dict[str, str] = field(default_factory=dict)


def host_name() -> str:
    """This machine."""
    return socket.gethostname()


def facts(**more: str) -> Facts:
    """Those of this rank, whose number stands in the environment; `more` is to be alike too."""
    import torch

    known = {name: importlib.metadata.version(name) for name in PACKAGES}
    known |= {"python": platform.python_version(), "Stagecraft's sources": sources(), **more}
    if torch.cuda.is_available():
        known |= {"CUDA driver": driver(), "NCCL": ".".join(map(str, torch.cuda.nccl.version()))}
    else:
        known["CPU kernels"] = kernels()
    return Facts(int(os.environ.get("RANK", "0")), host_name(), known)


def driver() -> str:
    """The version of NVIDIA's kernel module; empty where there is none."""
    with suppress(OSError):
        words = DRIVER.read_text().split()
        return next((word for word in words if word[:1].isdigit() and "." in word), "")
    return ""


def sources() -> str:
    """A hash of this project's code: a commit says nothing of what was changed since."""
    every = hashlib.sha256()
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            every.update(str(file.relative_to(ROOT)).encode() + b"\0" + file.read_bytes())
    return every.hexdigest()[:16]


def hashed(value: object) -> str:
    """A hash of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
