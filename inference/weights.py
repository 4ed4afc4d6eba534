"""The weights of a run, a tensor at a time."""

from pathlib import Path
from typing import TYPE_CHECKING

from run.checkpoints import Chosen
from run.directory import read_recipe

if TYPE_CHECKING:
    from torch import Tensor


class Weights:
    """The weights of a run's checkpoint of any layout, each whole: they need not fit in memory together.

    Errors: `UserError` where the checkpoint is of another shape than the run's model; it names the tensor.
    """

    def __init__(self, run: Path, checkpoint: Chosen) -> None:
        from model.checkpoint.overlay import reader_of
        from model.huggingface import shapes

        self.config = read_recipe(run).model
        self.shapes = shapes(self.config)
        self.reader = reader_of(checkpoint.path)
        self.reader.check(self.shapes)

    def read(self, name: str) -> "Tensor":
        """A parameter, fp32."""
        return self.reader.named(name, self.shapes)
