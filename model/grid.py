"""Where this rank stands in the layout, and the process groups of each axis."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from model.layout import Layout
from model.parallel import Axis, Parallel


@dataclass(frozen=True)
class Grid:
    """This rank's place on every axis.

    `data` spans all ranks that hold the same parameters: the data ranks and, inside them, the Ulysses ranks. Ulysses
    ranks have the same samples but different gradients. DeepSpeed is told that this axis is its data axis. It then
    averages the gradients rightly in every ZeRO stage. Its own sequence groups would add them up in stages 1 and 2
    (DeepSpeed 0.19.8, runtime/engine.py:3884).
    """

    layout: Layout
    world_size: int
    tp: Axis
    ulysses: Axis
    data: Axis
    stage: int

    @property
    def dp(self) -> int:
        """The data degree: how many different micro-batches are computed at once."""
        return self.data.size // self.layout.ulysses

    @property
    def dp_rank(self) -> int:
        """Which of these micro-batches is this rank's."""
        return self.data.rank // self.layout.ulysses

    @property
    def parallel(self) -> Parallel:
        """What the layers need to know."""
        return Parallel(self.tp, self.ulysses, self.layout.sequence_parallel)

    # DeepSpeed asks a "model parallel unit" by these names.
    def get_model_parallel_rank(self) -> int:
        return self.tp.rank

    def get_model_parallel_world_size(self) -> int:
        return self.tp.size

    def get_model_parallel_group(self) -> Any:
        return self.tp.group

    def get_data_parallel_rank(self) -> int:
        return self.data.rank

    def get_data_parallel_world_size(self) -> int:
        return self.data.size

    def get_data_parallel_group(self) -> Any:
        return self.data.group


def make_grid(layout: Layout) -> Grid:
    """Place the ranks of the running process group in the layout, and make the groups; collective.

    Errors: `UserError` where the layout does not divide the world.
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    groups = layout.groups(world)
    return Grid(
        layout=layout,
        world_size=world,
        tp=_axis(groups["tensor"], rank),
        ulysses=_axis(groups["ulysses"], rank),
        # DeepSpeed asks for the group of this axis, also where there is a single rank on it.
        data=_axis(groups["data"], rank, always=True),
        stage=rank // (world // layout.pp),
    )


def _axis(groups: list[list[int]], rank: int, always: bool = False) -> Axis:
    """This rank's place on an axis; its group where there is somebody else on it."""
    ranks = next(ranks for ranks in groups if rank in ranks)
    return Axis(len(ranks), ranks.index(rank), split(groups) if always or len(ranks) > 1 else None)


def split(groups: list[list[int]]) -> Any:
    """Make this rank's group of an axis, whose groups hold every rank once. Collective.

    A rank that makes every group of a world of 2,240, as torch.distributed.new_group asks for, makes thousands. NCCL
    splits its communicator once for all the groups together; gloo's ranks meet their own group alone. Its name counts
    the groups that a rank has made before (torch 2.13), so all must have made as many.
    """
    world = dist.group.WORLD
    if world is not None and dist.get_backend() == "nccl" and world.bound_device_id is not None:
        return dist.split_group(split_ranks=groups)
    mine = next(ranks for ranks in groups if dist.get_rank() in ranks)
    return dist.new_group(mine, use_local_synchronization=True)
