"""Over which ranks a model is cut to write, and how many copies of it write, as a launcher has started them.

Imports no torch before it loads.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from model.layout import Layout
from run.checkpoints import Chosen, choose
from run.directory import read_recipe
from support.errors import UserError

if TYPE_CHECKING:
    from inference.writers import RunWriter
    from model.parallel import Axis

T = TypeVar("T")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Loading:
    """Which checkpoint of a run, over how many tensor ranks and pipeline stages, and in which precision.

    `replicas` copies of the model write different prompts.
    """

    which: str | None = None
    tensor: int = 1
    pipeline: int = 1
    precision: str = PRECISIONS[0]
    replicas: int = 1

    def __post_init__(self) -> None:
        for flag, degree in (("--tensor", self.tensor), ("--pipeline", self.pipeline)):
            if degree < 1:
                raise UserError(f"{flag} must be at least 1")

    def check(self) -> None:
        """Errors: `UserError` where another number of ranks was started."""
        world = started()
        if self.ranks != world:
            raise UserError(
                f"--tensor {self.tensor} x --pipeline {self.pipeline} are {self.ranks} ranks, but {world} were "
                f"started; start them with torchrun --nproc-per-node {self.ranks} -m -- commands generate …"
            )

    def over(self, world: int) -> "Loading":
        """The same in as many copies as so many ranks have room for.

        Errors: `UserError` where they do not divide.
        """
        each = self.tensor * self.pipeline
        if world % each:
            raise UserError(
                f"--tensor {self.tensor} x --pipeline {self.pipeline} are {each} ranks a copy of the model, which do "
                f"not divide {world}; give --ranks {each} or a multiple"
            )
        return replace(self, replicas=world // each)

    @property
    def ranks(self) -> int:
        """How many ranks hold all copies of the model together."""
        return self.tensor * self.pipeline * self.replicas


def started() -> int:
    """How many ranks the launcher has started; one where there was none."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Whether this is the rank that prints and writes files."""
    return os.environ.get("RANK", "0") == "0"


def told_by_first(ranks: int, find: Callable[[], T]) -> T:
    """What the first rank finds, on all ranks; collective where there are several."""
    if ranks == 1:
        return find()
    from model.checkpoint.together import told

    return told(find() if leads() else None)  # type: ignore[return-value]


def all_ranks() -> "Axis":
    """The ranks of a model that each of them holds whole; collective where there are several."""
    from model.parallel import Axis

    if started() == 1:
        return Axis()
    import torch.distributed as dist

    from model.engine.build import start_process_group

    start_process_group()
    return Axis(dist.get_world_size(), dist.get_rank(), dist.group.WORLD)


def load_run(run: Path, loading: Loading) -> "tuple[RunWriter, Chosen]":
    """A run's model, or this rank's part of it: then collective, and the first rank alone checks the checkpoint.

    Errors: `UserError` where there is no such checkpoint, or the model cannot be cut so or go on from a text.
    """
    import torch

    from inference.decode.decoder import Line, line_of
    from inference.decode.stage import load_stage
    from inference.export import load_tokeniser
    from inference.writers import RunWriter
    from model.engine.precision import DTYPES
    from model.parallel import SOLO, Axis

    config, parallel, line, shares = read_recipe(run).model, SOLO, Line(), Axis()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if loading.ranks > 1:
        from model.engine.build import start_process_group
        from model.grid import make_grid

        layout = Layout(tp=loading.tensor, pp=loading.pipeline)
        layout.check(config)
        start_process_group()
        grid, line = make_grid(layout), line_of(layout)
        parallel, shares = grid.parallel, grid.data
    checkpoint = told_by_first(loading.ranks, lambda: choose(run, loading.which))
    if leads():
        checkpoint.tell()
    dtype = DTYPES[loading.precision]
    stage = load_stage(config, checkpoint.path, parallel, loading.pipeline, line.stage, dtype, device)
    return RunWriter(stage, load_tokeniser(run), line, shares), checkpoint
