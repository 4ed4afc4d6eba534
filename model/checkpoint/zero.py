"""The state that an engine holds, as flat fp32 tensors: one class for each way in which ZeRO keeps it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from model.checkpoint.index import MOMENTS, Fragment
from model.engine import held, inside
from model.engine.engine import Engine
from model.parallel import slice_of
from support.json_object import JsonObject

TIED = "embed.weight"  # the first and the last stage of a pipeline hold it


@dataclass(frozen=True)
class Flat:
    """One flat fp32 tensor of the optimiser that this rank owns, and what lies in it."""

    tensor: Tensor
    fragments: tuple[Fragment, ...]


class ZeroState:
    """An engine's state in ZeRO stage 0: every data rank has all of it, a flat tensor a parameter."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.optimizer = held.torch_optimizer(engine.deepspeed)

    def flats(self) -> list[Flat]:
        """The flat fp32 tensors of this rank with their contents."""
        return [self._flat(p, [held.Piece(p, 0, p.numel(), 0)]) for p in self.engine.trained]

    def frozen(self) -> Iterator[tuple[Fragment, Tensor]]:
        """What does not train: which elements this rank has, and the flat tensor that it has them in."""
        for p, name in self.engine.names.items():
            if not p.requires_grad:
                yield Fragment(name, 0, p.numel(), 0, tuple(p.shape), slice_of(p)), p.data.view(-1)

    def moments(self, flat: Flat) -> dict[str, Tensor]:
        """The moments of a flat tensor that the optimiser has; none before its first step."""
        state = self.optimizer.state[flat.tensor]
        return {key: state[key] for key in MOMENTS if key in state}

    def steps(self) -> float:
        """The optimiser's own count of steps, which Adam corrects its moments by."""
        counts = [state["step"] for state in self.optimizer.state.values() if "step" in state]
        return float(counts[0]) if counts else 0.0

    def start_moments(self, flat: Flat, steps: float) -> dict[str, Tensor]:
        """Give a flat tensor moments of zero, to be filled, as an optimiser has them after that many steps."""
        if not steps:
            return {}
        state: JsonObject = self.optimizer.state[flat.tensor]
        for key in MOMENTS:
            state[key] = torch.zeros_like(flat.tensor)
        # torch's fused Adam keeps its count on the device of the weights; every other Adam keeps it on the CPU.
        fused = any(group.get("fused") or group.get("capturable") for group in self.optimizer.param_groups)
        state["step"] = torch.tensor(steps, device=flat.tensor.device if fused else "cpu")
        return {key: state[key] for key in MOMENTS}

    def writes(self, fragment: Fragment) -> bool:
        """Whether this rank writes a fragment that several ranks hold: the first of them does."""
        grid = self.engine.grid
        if fragment.cut is None and grid.tp.rank > 0:
            return False  # every tensor rank holds it whole
        if fragment.name == TIED and grid.stage > 0:
            return False  # the last stage's copy of the embedding
        return self._owns(grid.data.rank)

    def is_swapped(self, number: int) -> bool:
        """Whether the state of flat tensor `number` lies in files and not in memory."""
        return False

    def in_memory(self, number: int) -> AbstractContextManager[None]:
        """Have the state of flat tensor `number` in memory for a while; what is changed of it is kept."""
        return nullcontext()

    def refresh(self, number: int) -> None:
        """Copy the fp32 weights of flat tensor `number` into this rank's weights that compute."""

    def share(self) -> None:
        """Make the weights that compute the same on all ranks that hold them; collective."""

    def _owns(self, data_rank: int) -> bool:
        """Whether this data rank writes what it holds."""
        return data_rank == 0

    def _flat(self, tensor: Tensor, pieces: Iterable[held.Piece]) -> Flat:
        names, fragments = self.engine.names, []
        for piece in pieces:
            p = piece.parameter
            place = (piece.start, piece.numel, piece.offset)
            fragments.append(Fragment(names[p], *place, inside.shape_of(p), slice_of(p)))
        return Flat(tensor, tuple(fragments))


class PartitionedState(ZeroState):
    """ZeRO stages 1 and 2: each data rank has its own part of the optimiser's state."""

    def flats(self) -> list[Flat]:
        return [self._flat(*flat) for flat in held.flats_of_stages_1_and_2(self.engine.deepspeed)]

    def share(self) -> None:
        held.refresh_stages_1_and_2(self.engine.deepspeed)

    def _owns(self, data_rank: int) -> bool:
        return True


class PartitionedModelState(PartitionedState):
    """ZeRO stage 3: each data rank has its own part of the weights too, in sub-groups that may lie in files."""

    def flats(self) -> list[Flat]:
        return [self._flat(*flat) for flat in held.flats_of_stage_3(self.engine.deepspeed)]

    def frozen(self) -> Iterator[tuple[Fragment, Tensor]]:
        for p, name in self.engine.names.items():
            if not p.requires_grad:
                start, part = held.part_of_stage_3(p)
                yield Fragment(name, start, part.numel(), 0, inside.shape_of(p), slice_of(p)), part

    def is_swapped(self, number: int) -> bool:
        return held.is_swapped(self.engine.deepspeed, number)

    def in_memory(self, number: int) -> AbstractContextManager[None]:
        return held.swapped_in(self.engine.deepspeed, number) if self.is_swapped(number) else nullcontext()

    def refresh(self, number: int) -> None:
        held.refresh_stage_3(self.engine.deepspeed, number)

    def share(self) -> None:
        held.share_stage_3(self.engine.deepspeed)


STAGES: tuple[Callable[[Engine], ZeroState], ...] = (
    ZeroState,
    PartitionedState,
    PartitionedState,
    PartitionedModelState,
)


def state_of(engine: Engine) -> ZeroState:
    """The state of an engine, by its ZeRO stage."""
    return STAGES[engine.zero_stage](engine)
