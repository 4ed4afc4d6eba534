"""Reading a checkpoint of adapters as if all weights of the model were in it: its base, with the adapters merged."""

import hashlib
import math
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint.base import Base, base_of
from model.checkpoint.format import manifest
from model.checkpoint.index import WEIGHT, Fragment
from model.checkpoint.read import Reader
from model.lora import of_layer
from model.parallel import Slice
from support.errors import UserError


class MergedReader(Reader):
    """Reads what the adapters in `checkpoint` make of the weights in `base`."""

    def __init__(self, checkpoint: Path, base: Base) -> None:
        super().__init__(Path(base.path))
        self.adapters, self.scale = Reader(checkpoint), base.scale
        self._adapted = set(self.adapters.names())

    def read(self, wanted: Fragment, key: str = WEIGHT) -> Tensor:
        found = super().read(wanted, key)
        # What another tensor degree has written was put together by `whole`, which merges.
        return self._with(found, wanted, key) if self._cut_alike(wanted) else found

    def whole(self, name: str, key: str = WEIGHT) -> Tensor:
        value = super().whole(name, key)
        return self._with(value, Fragment(name, 0, value.numel(), 0, tuple(value.shape), None), key)

    def _with(self, values: Tensor, wanted: Fragment, key: str) -> Tensor:
        a_name, b_name = of_layer(wanted.name)
        if a_name not in self._adapted or key != WEIGHT:
            return values
        a, b, cut = self.adapters.whole(a_name), self.adapters.whole(b_name), wanted.cut
        if cut:
            a, b = (a, cut.of(b)) if cut.dim == 0 else (cut.of(a), b)
        gained = (b @ a).flatten()[wanted.start : wanted.start + wanted.numel]
        return values.add_(gained.view(values.shape), alpha=self.scale)


def reader_of(checkpoint: Path) -> Reader:
    """What reads all weights of a checkpoint, adapters merged. Check it with `format.damage` first.

    Errors: `UserError` where its adapters lie on a base that is not there, or is another one.
    """
    base = base_of(manifest(checkpoint))
    if base is None:
        return Reader(checkpoint)
    check_base(Path(base.path), base.fingerprint, f"the adapters of {checkpoint}")
    return MergedReader(checkpoint, base)


def check_base(checkpoint: Path, wanted: str, who: str) -> None:
    """Whether a checkpoint is the base that `who` lie on. Errors: `UserError` where it is gone, or another one."""
    if not checkpoint.is_dir():
        raise UserError(f"{checkpoint} is gone, on which {who} lie; restore it")
    if (found := fingerprint(checkpoint)) != wanted:
        raise UserError(
            f"{who} lie on another base: its fingerprint is {wanted[:16]}, that of {checkpoint} {found[:16]}; give "
            "the base that they were trained on"
        )


def fingerprint(checkpoint: Path) -> str:
    """The SHA-256 of names, shapes and first rows of all parameters, as 32 digits; the same in every layout.

    Training changes all rows, and merged adapters those of each layer that they stand beside. To read all would take
    as long as to read the model. Errors: `UserError` where the checkpoint cannot be read.
    """
    reader, digest = Reader(checkpoint), hashlib.sha256()
    for name in reader.names():
        shape, row = first_row(reader, name)
        digest.update(f"{name} {shape} ".encode() + row.numpy().tobytes())
    return digest.hexdigest()[:32]


def first_row(reader: Reader, name: str) -> tuple[tuple[int, ...], Tensor]:
    """The shape of a parameter, and its first elements: of a matrix a row, else all."""
    first = reader.fragment(name)
    shape, cut, size = list(first.shape), first.cut, first.cut.size if first.cut else 1
    length = math.prod(shape[1:]) if len(shape) > 1 else shape[0]
    dim = cut.dim if cut else 0
    ranks = range(size if dim or len(shape) == 1 else 1)
    cuts = [Slice(dim, size, rank) if cut else None for rank in ranks]
    parts = [reader.read(Fragment(name, 0, length, 0, first.shape, each)) for each in cuts]
    shape[dim] *= size
    return tuple(shape), torch.cat(parts)
