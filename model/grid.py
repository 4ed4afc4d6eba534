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
        data=_axis(groups["data"], rank),
        stage=rank // (world // layout.pp),
    )


def _axis(groups: list[list[int]], rank: int) -> Axis:
    """Make the groups of an axis and keep this rank's. Every rank has to make all groups, in the same order."""
    made = [(dist.new_group(ranks), ranks) for ranks in groups]
    group, ranks = next(pair for pair in made if rank in pair[1])
    return Axis(len(ranks), ranks.index(rank), group)
