"""Reading checkpoints, whatever layout has written them.

DeepSpeed 0.19.8 unpickles whatever it finds. Here sizes and hashes are checked first, and nothing is unpickled.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from model.checkpoint.format import (
    INDEX,
    WEIGHT,
    Fragment,
    completed,
    damage,
    index_of,
    manifest,
    tensor_key,
)
from model.checkpoint.zero import Flat, ZeroState, state_of
from model.engine import inside
from model.engine.engine import Engine
from model.parallel import Slice
from support.errors import UserError
from support.json_object import JsonObject


@dataclass(frozen=True)
class _Place:
    """Where a fragment was written."""

    file: str
    flat: int
    fragment: Fragment


class Reader:
    """Reads elements of parameters by name from a checkpoint that any layout has written.

    Check the checkpoint with `format.damage` first.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self._files: JsonObject = {}
        self._keys: dict[str, set[str]] = {}
        self._places: dict[str, list[_Place]] = {}
        for name in manifest(checkpoint)["files"]:
            self._files[name] = safe_open(str(checkpoint / name), framework="pt")
            self._keys[name] = set(self._files[name].keys())
            for flat, fragment in index_of(self._files[name].metadata()[INDEX]):
                self._places.setdefault(fragment.name, []).append(_Place(name, flat, fragment))

    def names(self) -> list[str]:
        """The parameters in this checkpoint."""
        return sorted(self._places)

    def has(self, name: str, key: str) -> bool:
        """Whether a moment was written. An optimiser has none before its first step."""
        return any(tensor_key(place.flat, key) in self._keys[place.file] for place in self._places.get(name, []))

    def read(self, wanted: Fragment, key: str = WEIGHT) -> Tensor:
        """The elements of a fragment's weight or moment, fp32, flat.

        Errors: `UserError` where the checkpoint does not hold all of them.
        """
        if all(place.fragment.cut != wanted.cut for place in self._places.get(wanted.name, [])):
            # Another tensor degree has written it: put the whole together, and cut that anew.
            part = self.whole(wanted.name, key)
            part = (wanted.cut.of(part) if wanted.cut else part).flatten()
            if part.numel() != math.prod(wanted.shape):
                raise self._another_shape(wanted.name, part.numel(), math.prod(wanted.shape))
            return part[wanted.start : wanted.start + wanted.numel]
        return self._range(wanted, key)

    def whole(self, name: str, key: str = WEIGHT) -> Tensor:
        """A parameter's weight or moment, whole. Errors: `UserError` where a part of it is missing."""
        places = self._places.get(name, [])
        if not places:
            raise self._another_shape(name, 0, 1)
        first = places[0].fragment
        size = first.cut.size if first.cut else 1
        parts = []
        for rank in range(size):
            cut = Slice(first.cut.dim, size, rank) if first.cut else None
            everything = Fragment(name, 0, math.prod(first.shape), 0, first.shape, cut)
            parts.append(self._range(everything, key).view(first.shape))
        return torch.cat(parts, first.cut.dim) if first.cut else parts[0]

    def _range(self, wanted: Fragment, key: str) -> Tensor:
        """Elements of a part of a parameter, where the writing layout cut it into the same parts."""
        result = torch.empty(wanted.numel)
        found, stop = 0, wanted.start + wanted.numel
        for place in self._places.get(wanted.name, []):
            piece = place.fragment
            low, high = max(wanted.start, piece.start), min(stop, piece.start + piece.numel)
            if piece.cut == wanted.cut and low < high:
                at = piece.offset + low - piece.start
                flat = self._files[place.file].get_slice(tensor_key(place.flat, key))
                result[low - wanted.start : high - wanted.start] = flat[at : at + high - low]
                found += high - low
        if found != wanted.numel or any(p.fragment.shape != wanted.shape for p in self._places[wanted.name]):
            raise self._another_shape(wanted.name, found, wanted.numel)
        return result

    def weights(self, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
        """All parameters, whole, fp32. Errors: `UserError` where the checkpoint is of another shape."""
        strangers = sorted(set(self.names()) ^ set(shapes))
        if strangers:
            raise self._another_shape(strangers[0], 0, 1)
        result = {name: self.whole(name) for name in shapes}
        for name, shape in shapes.items():
            if result[name].shape != shape:
                raise self._another_shape(name, result[name].numel(), shape.numel())
        return result

    def _another_shape(self, name: str, found: int, wanted: int) -> UserError:
        return UserError(
            f"checkpoint {self.checkpoint} holds {found} of {wanted} elements of {name}: it is of another model shape; "
            "use the recipe that wrote it"
        )


def load_newest(engine: Engine, root: Path, pass_over: Callable[[Path, str], None]) -> JsonObject | None:
    """Load the newest undamaged checkpoint below `root` into the engine; collective over all ranks.

    `pass_over` is told of each damaged one, and the reason. Returns the `state` that was saved with it, or None where
    nothing was saved yet. Errors: `UserError` where all that was saved is damaged.
    """
    for checkpoint in reversed(completed(root)):
        if not (reason := _damage_anywhere(checkpoint)):
            return _loaded(engine, checkpoint)
        pass_over(checkpoint, reason)
    if completed(root):
        raise UserError(f"every checkpoint below {root} is damaged; restore one, or start a new run")
    return None


def load_checked(engine: Engine, checkpoint: Path) -> JsonObject:
    """Load a checkpoint into the engine; collective. Returns its `state`. Errors: `UserError` where it is damaged."""
    if reason := _damage_anywhere(checkpoint):
        if not checkpoint.exists():
            raise UserError(f"{checkpoint} is gone: its run has kept newer ones since; begin again from one of those")
        raise UserError(f"checkpoint {checkpoint} cannot be read: {reason}; restore it, or take another")
    return _loaded(engine, checkpoint)


def _damage_anywhere(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, empty where nothing is; each rank looks at its share of the files."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    problems: list[str] = [""] * world
    torch.distributed.all_gather_object(problems, damage(checkpoint, rank, world))
    return next((p for p in problems if p), "")


def _loaded(engine: Engine, checkpoint: Path) -> JsonObject:
    load(engine, checkpoint)
    state: JsonObject = manifest(checkpoint)["state"]
    return state


@torch.no_grad()
def load(engine: Engine, checkpoint: Path) -> None:
    """Load a checkpoint into the engine, whatever layout wrote it; collective."""
    reader, numbers, held = Reader(checkpoint), manifest(checkpoint)["engine"], state_of(engine)
    for number, flat in enumerate(held.flats()):
        with held.in_memory(number):
            _fill(held, flat, reader, numbers["optimizer_step"])
            held.refresh(number)
    held.share()
    inside.set_counters(engine.deepspeed, numbers)


def _fill(held: ZeroState, flat: Flat, reader: Reader, steps: float) -> None:
    """Read the weights and moments of a flat tensor."""
    moments = held.start_moments(flat, steps)
    for fragment in flat.fragments:
        place = slice(fragment.offset, fragment.offset + fragment.numel)
        flat.tensor.view(-1)[place].copy_(reader.read(fragment))
        for key, values in moments.items():
            if reader.has(fragment.name, key):
                values.view(-1)[place].copy_(reader.read(fragment, key))
