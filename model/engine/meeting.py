"""Whether the ranks that met are those of one launch."""

import os
import socket
from collections.abc import Sequence

import torch

from support.errors import CrashedError

# Launchers that start each rank themselves, by a variable that they set: DeepSpeed's and torchrun. Then the parent of
# a rank is the launcher. Others may put a shell of its own before each rank.
PARENT_LAUNCHES = ("CROSS_RANK", "TORCHELASTIC_RUN_ID")


def check_one_launch() -> None:
    """Compare which launcher started each rank. Collective. Errors: `CrashedError` where two launches met.

    Two launchers on a host have the same port where nobody gives them one, and the ranks of one may join the other's.
    """
    known = any(name in os.environ for name in PARENT_LAUNCHES)
    told: list[tuple[str, int | None]] = [("", None)] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(told, (socket.gethostname(), os.getppid() if known else None))
    if found := two_launches(told):
        raise CrashedError(
            f"ranks of two launches met at port {os.environ.get('MASTER_PORT')}: {found}; give one of the launchers "
            "another --master_port"
        )


def two_launches(told: Sequence[tuple[str, int | None]]) -> str | None:
    """The launchers in words, where ranks of one host have different ones. `told` is host and launcher of each rank."""
    first: dict[str, tuple[int, int]] = {}
    for rank, (host, launcher) in enumerate(told):
        if launcher is not None:
            before, other = first.setdefault(host, (rank, launcher))
            if other != launcher:
                return f"on {host} process {other} started rank {before}, and process {launcher} rank {rank}"
    return None
