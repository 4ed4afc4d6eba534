"""Where the elements of each parameter lie in the files of a checkpoint: its `index.json`, one for all files.

A file holds flat fp32 tensors (weights and optimiser moments) as ZeRO keeps them. Who reads asks for elements by the
parameter's name, and opens only the files that hold them. So the number of ranks, the layout and the ZeRO stage may
differ between writing and reading.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from model.parallel import Slice

FILE = "index.json"
WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")

Piece = tuple[int, int, int, int, int]  # number of the file, number of the flat tensor, start, numel, offset
Part = tuple[tuple[int, ...], tuple[int, int, int] | None, list[Piece]]  # shape, cut, what lies where


@dataclass(frozen=True)
class Fragment:
    """Elements `start … start + numel` of a parameter, at `offset` of a flat tensor.

    They are counted in this rank's part of the flattened parameter. The part is the whole parameter, or the slice `cut`
    of it where tensor slicing cuts it. `shape` is the shape of the part.
    """

    name: str
    start: int
    numel: int
    offset: int
    shape: tuple[int, ...]
    cut: Slice | None


@dataclass(frozen=True)
class Place:
    """Where a fragment was written: in flat tensor number `flat` of a file."""

    file: str
    flat: int
    fragment: Fragment

    def overlaps(self, wanted: Fragment) -> bool:
        """Whether it holds elements of a fragment that is cut alike."""
        mine, cut = self.fragment, self.fragment.cut == wanted.cut
        return cut and max(mine.start, wanted.start) < min(mine.start + mine.numel, wanted.start + wanted.numel)


def tensor_key(flat: int, kind: str) -> str:
    """The name, in a file, of the weights or a moment of flat tensor number `flat`."""
    return f"{flat}.{kind}"


@dataclass(frozen=True)
class Index:
    """The index of a checkpoint, as its JSON holds it: names once, numbers for the rest."""

    files: list[str]
    parameters: dict[str, list[Part]]

    def places(self, name: str) -> list[Place]:
        """Where a parameter lies, empty where it was not written."""
        found = []
        for shape, cut, pieces in self.parameters.get(name, []):
            part = (tuple(shape), Slice(*cut) if cut else None)
            found += [
                Place(self.files[file], flat, Fragment(name, start, numel, offset, *part))
                for file, flat, start, numel, offset in pieces
            ]
        return found


def index_text(written: Mapping[str, Iterable[tuple[int, Fragment]]]) -> str:
    """The JSON of an index. For each file it takes the fragments in it, with the numbers of their flat tensors."""
    files = sorted(written)
    parameters: dict[str, dict[str, Part]] = {}
    for number, file in enumerate(files):
        for flat, f in written[file]:
            cut = dataclasses.astuple(f.cut) if f.cut else None
            alike = parameters.setdefault(f.name, {})
            _, _, pieces = alike.setdefault(f"{f.shape} {cut}", (f.shape, cut, []))
            pieces.append((number, flat, f.start, f.numel, f.offset))
    content = {"files": files, "parameters": {name: list(parts.values()) for name, parts in parameters.items()}}
    return json.dumps(content) + "\n"


def index_of(text: bytes) -> Index:
    """What `index_text` has written. Errors: `ValueError` where it is something else."""
    from pydantic import TypeAdapter

    found = TypeAdapter(Index).validate_json(text, strict=True)
    parts = chain.from_iterable(found.parameters.values())
    if any(not 0 <= piece[0] < len(found.files) for _, _, pieces in parts for piece in pieces):
        raise ValueError("it names a file that it does not have")
    return found
