"""Reading checkpoints, whatever layout has written them.

DeepSpeed 0.19.8 unpickles whatever it finds. Here sizes and hashes are checked first, and nothing is unpickled.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from model.checkpoint.base import Base
from model.checkpoint.format import (
    Accepts,
    Tie,
    completed,
    damage,
    folder_of,
    manifest,
    read_index,
    seal,
    step_of,
    wrong_size,
)
from model.checkpoint.index import WEIGHT, Fragment, Place, tensor_key
from model.checkpoint.together import anywhere, gathered, told
from model.checkpoint.weights import UNTRAINED
from model.checkpoint.zero import Flat, ZeroState, state_of
from model.engine.engine import Engine
from model.engine.held import set_counters
from model.parallel import Slice
from support.errors import UserError
from support.json_object import JsonObject


class Reader:
    """Reads elements of parameters by name from a checkpoint that any layout has written.

    It opens a file when it reads of it. Check the checkpoint with `format.damage` first.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self.opened: dict[str, Any] = {}
        self._keys: dict[str, set[str]] = {}
        self._index = read_index(checkpoint, manifest(checkpoint))
        self._places: dict[str, list[Place]] = {}

    def names(self) -> list[str]:
        """The parameters in this checkpoint."""
        return sorted(self._index.parameters)

    def fragment(self, name: str) -> Fragment:
        """A fragment of a parameter. Errors: `UserError` where the checkpoint holds none."""
        if not (places := self._of(name)):
            raise self._another_shape(name, 0, 1)
        return places[0].fragment

    def has(self, wanted: Fragment, key: str) -> bool:
        """Whether a moment of a fragment was written. An optimiser has none before its first step."""
        return any(tensor_key(place.flat, key) in self._keys_of(place.file) for place in self._holding(wanted))

    def files(self, wanted: Iterable[Fragment]) -> set[str]:
        """The files that hold fragments."""
        return {place.file for fragment in wanted for place in self._holding(fragment)}

    def read(self, wanted: Fragment, key: str = WEIGHT) -> Tensor:
        """The elements of a fragment's weight or moment, fp32, flat.

        Errors: `UserError` where the checkpoint does not hold all of them.
        """
        if not self._cut_alike(wanted):
            # Another tensor degree has written it: put the whole together, and cut that anew.
            part = self.whole(wanted.name, key)
            part = (wanted.cut.of(part) if wanted.cut else part).flatten()
            if part.numel() != math.prod(wanted.shape):
                raise self._another_shape(wanted.name, part.numel(), math.prod(wanted.shape))
            return part[wanted.start : wanted.start + wanted.numel]
        return self._range(wanted, key)

    def whole(self, name: str, key: str = WEIGHT) -> Tensor:
        """A parameter's weight or moment, whole. Errors: `UserError` where a part of it is missing."""
        first = self.fragment(name)
        if not first.cut:
            return self._range(Fragment(name, 0, math.prod(first.shape), 0, first.shape, None), key).view(first.shape)
        dim, size = first.cut.dim, first.cut.size
        share = first.shape[dim]
        result = torch.empty(*first.shape[:dim], share * size, *first.shape[dim + 1 :])
        for rank in range(size):  # part after part: a matrix of the largest models is gigabytes
            everything = Fragment(name, 0, math.prod(first.shape), 0, first.shape, Slice(dim, size, rank))
            result.narrow(dim, rank * share, share).copy_(self._range(everything, key).view(first.shape))
        return result

    def _of(self, name: str) -> list[Place]:
        if name not in self._places:
            self._places[name] = self._index.places(name)
        return self._places[name]

    def _file(self, name: str) -> Any:
        if name not in self.opened:
            self.opened[name] = safe_open(str(self.checkpoint / name), framework="pt")
        return self.opened[name]

    def _keys_of(self, name: str) -> set[str]:
        if name not in self._keys:
            self._keys[name] = set(self._file(name).keys())
        return self._keys[name]

    def _cut_alike(self, wanted: Fragment) -> bool:
        return any(place.fragment.cut == wanted.cut for place in self._of(wanted.name))

    def _holding(self, wanted: Fragment) -> list[Place]:
        """Where the elements of a fragment lie; where another tensor degree has written it, all of the parameter."""
        places = self._of(wanted.name)
        return [each for each in places if each.overlaps(wanted)] if self._cut_alike(wanted) else places

    def _range(self, wanted: Fragment, key: str) -> Tensor:
        """Elements of a part of a parameter, where the writing layout cut it into the same parts."""
        result = torch.empty(wanted.numel)
        found, stop = 0, wanted.start + wanted.numel
        for place in self._of(wanted.name):
            if place.overlaps(wanted):
                piece = place.fragment
                low, high = max(wanted.start, piece.start), min(stop, piece.start + piece.numel)
                at = piece.offset + low - piece.start
                flat = self._file(place.file).get_slice(tensor_key(place.flat, key))
                result[low - wanted.start : high - wanted.start] = flat[at : at + high - low]
                found += high - low
        if found != wanted.numel or any(place.fragment.shape != wanted.shape for place in self._of(wanted.name)):
            raise self._another_shape(wanted.name, found, wanted.numel)
        return result

    def weights(self, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
        """All parameters, whole, fp32. Errors: `UserError` where the checkpoint is of another shape."""
        self.check(shapes)
        return {name: self.named(name, shapes) for name in shapes}

    def check(self, shapes: dict[str, torch.Size]) -> None:
        """Whether it has the parameters of such a model. Errors: `UserError` for one too many or too few."""
        strangers = sorted(set(self.names()) ^ set(shapes))
        if strangers:
            raise self._another_shape(strangers[0], 0, 1)

    def named(self, name: str, shapes: dict[str, torch.Size]) -> Tensor:
        """A parameter of such a model, whole, fp32. Errors: `UserError` where it has another shape."""
        value = self.whole(name)
        if value.shape != shapes[name]:
            raise self._another_shape(name, value.numel(), shapes[name].numel())
        return value

    def _another_shape(self, name: str, found: int, wanted: int) -> UserError:
        return UserError(
            f"checkpoint {self.checkpoint} holds {found} of {wanted} elements of {name}: it is of another model shape; "
            "use the recipe that wrote it"
        )


def load_newest(
    engine: Engine,
    root: Path,
    pass_over: Callable[[Path, str], None],
    tie: Tie | None = None,
    accepts: Accepts = dict,
) -> JsonObject | None:
    """Load the newest undamaged checkpoint below `root` into the engine; collective over all ranks.

    It is one that all ranks see alike, that has this `tie`, and whose `state` the function `accepts` takes.
    `pass_over` is told of each other one, and the reason. Returns the `state` that was saved with it, or None where
    nothing was saved yet. Errors: `UserError` where something was saved and none of it can be used.
    """
    mine = {step_of(path): seal(path, tie or {}, accepts) for path in completed(root)}
    everyone = gathered(mine)
    known = told([(step, _disagreement(everyone, step, root)) for step in _newest_first(everyone)])
    reason = ""
    for step, reason in known:
        checkpoint = folder_of(root, step)
        if not (reason := reason or _damage_anywhere(engine, checkpoint)):
            return _loaded(engine, checkpoint)
        pass_over(checkpoint, reason)
    if known:
        raise UserError(f"no checkpoint below {root} can be used: {reason}; restore one, or start a new run")
    return None


def load_checked(
    engine: Engine, checkpoint: Path, tie: Tie | None = None, accepts: Accepts = dict, weights_alone: bool = False
) -> JsonObject:
    """Load a checkpoint into the engine; collective. Returns its `state`.

    With `weights_alone` the optimiser stays as it is before its first step.

    Errors: `UserError` where it is damaged, has another tie, or is not the same for all ranks.
    """
    _check_for_all(engine, checkpoint, tie, accepts)
    return _loaded(engine, checkpoint, weights_alone)


@torch.no_grad()
def load_base(engine: Engine, base: Base, weights_alone: bool = False) -> JsonObject:
    """Load the frozen weights that adapters lie on, whatever layout wrote them; collective. Returns their `state`.

    The engine counts on from them, or with `weights_alone` from nothing. Errors: `UserError` where the checkpoint is
    damaged, or is not the same for all ranks.
    """
    checkpoint = Path(base.path)
    _check_for_all(engine, checkpoint, None, dict)
    reader, held, found = Reader(checkpoint), state_of(engine), manifest(checkpoint)
    for fragment, values in held.frozen():
        values.copy_(reader.read(fragment))
    held.share()
    set_counters(engine.deepspeed, UNTRAINED if weights_alone else found["engine"])
    engine.base = base
    state: JsonObject = found["state"]
    return state


def _check_for_all(engine: Engine, checkpoint: Path, tie: Tie | None, accepts: Accepts) -> None:
    step = step_of(checkpoint)
    everyone = gathered({step: seal(checkpoint, tie or {}, accepts)} if checkpoint.exists() else {})
    if not told(any(everyone)):
        raise UserError(f"{checkpoint} is gone: its run has kept newer ones since; begin again from one of those")
    differs = told(_disagreement(everyone, step, checkpoint.parent) if everyone else "")
    if reason := differs or _damage_anywhere(engine, checkpoint):
        raise UserError(f"checkpoint {checkpoint} cannot be read: {reason}; restore it, or take another")


def _newest_first(everyone: list[dict[int, tuple[str, str]]]) -> list[int]:
    return sorted(set().union(*everyone), reverse=True)


def _disagreement(everyone: list[dict[int, tuple[str, str]]], step: int, root: Path) -> str:
    """Why ranks cannot all read the checkpoint of a step, empty where nothing speaks against it.

    It takes what each rank sees: by step the hash of a manifest, and what is wrong with it.
    """
    seals = [seen.get(step) for seen in everyone]
    for rank, found in enumerate(seals):
        if found and found[1]:
            return found[1] if all(seals) and len(set(seals)) == 1 else f"rank {rank}: {found[1]}"
        if not found:
            sees = ", ".join(map(str, sorted(everyone[rank]))) or "none"
            return f"rank {rank} does not see it (of the checkpoints below {root} it sees {sees})"
        if found != seals[0]:
            return f"rank {rank} sees another checkpoint of that step than rank 0"
    return ""


def _damage_anywhere(engine: Engine, checkpoint: Path) -> str:
    """What is wrong with a checkpoint, empty where nothing is; collective.

    Each rank looks at the hashes of its share of the files, and whether those are there that it will read.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return anywhere(damage(checkpoint, rank, world) or _out_of_reach(engine, checkpoint))


def _out_of_reach(engine: Engine, checkpoint: Path) -> str:
    """Which file this rank would read in vain, as far as sizes tell; empty where there is none."""
    held = state_of(engine)
    fragments = [fragment for flat in held.flats() for fragment in flat.fragments]
    fragments += [fragment for fragment, _ in held.frozen()]
    try:
        facts = manifest(checkpoint)["files"]
        needed = sorted(Reader(checkpoint).files(fragments))
        return next(filter(None, (wrong_size(checkpoint / name, facts[name]["bytes"]) for name in needed)), "")
    except (UserError, OSError) as error:
        return str(error)


def _loaded(engine: Engine, checkpoint: Path, weights_alone: bool = False) -> JsonObject:
    load(engine, checkpoint, weights_alone)
    state: JsonObject = manifest(checkpoint)["state"]
    return state


@torch.no_grad()
def load(engine: Engine, checkpoint: Path, weights_alone: bool = False) -> Reader:
    """Load a checkpoint into the engine, whatever layout wrote it; collective. Returns what has read it."""
    reader, held = Reader(checkpoint), state_of(engine)
    numbers = UNTRAINED if weights_alone else manifest(checkpoint)["engine"]
    for number, flat in enumerate(held.flats()):
        with held.in_memory(number):
            _fill(held, flat, reader, numbers["optimizer_step"])
            held.refresh(number)
    held.share()
    set_counters(engine.deepspeed, numbers)
    return reader


def _fill(held: ZeroState, flat: Flat, reader: Reader, steps: float) -> None:
    """Read the weights and moments of a flat tensor."""
    moments = held.start_moments(flat, steps)
    for fragment in flat.fragments:
        place = slice(fragment.offset, fragment.offset + fragment.numel)
        flat.tensor.view(-1)[place].copy_(reader.read(fragment))
        for key, values in moments.items():
            if reader.has(fragment, key):
                values.view(-1)[place].copy_(reader.read(fragment, key))
