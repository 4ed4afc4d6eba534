"""What ranks tell each other about a checkpoint. Rank 0 hears all and tells all: n ranks, 2 n messages."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """The value of each rank on rank 0, nothing on the others; collective."""
    rank = torch.distributed.get_rank()
    found: list[Any] | None = [None] * torch.distributed.get_world_size() if rank == 0 else None
    torch.distributed.gather_object(value, found)
    return found or []


def told(value: T) -> T:
    """Rank 0's value on all ranks; collective."""
    values: list[Any] = [value]
    torch.distributed.broadcast_object_list(values)
    result: T = values[0]
    return result


def first_of(problems: Sequence[str]) -> str:
    """The first thing that went wrong on any rank, with the rank's number; empty where nothing did."""
    return next((f"rank {rank}: {problem}" for rank, problem in enumerate(problems) if problem), "")


def anywhere(problem: str) -> str:
    """What went wrong on the first rank where something did, the same on all; collective."""
    return told(first_of(gathered(problem)))
