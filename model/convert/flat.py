"""The fp32 weights that ZeRO keeps, flat and over data ranks, of one model rank; each is put together when asked for.

With ZeRO-1 and 2, all parameters of a group lie one after the other, and the whole is cut into as many parts as there
are data ranks. With ZeRO-3 each parameter is cut, and a rank has its part of every one.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.convert.foreign import Read
from support.errors import UserError

GROUPS, PARTITIONS = "single_partition_of_fp32_groups", "fp32_flat_groups"
PADDINGS = "param_alignment_paddings"

Shapes = Sequence[Mapping[str, Sequence[int]]]


def weights(where: Path, shapes: Shapes, states: Sequence[Mapping[str, Any]]) -> dict[str, Read]:
    """The parameters that the optimizer states of all data ranks hold, in their order, by name.

    `shapes` are those of each group of parameters. Errors: `UserError` where the states hold others.
    """
    if all(PARTITIONS in state for state in states):
        return _cut_one_by_one(where, shapes, [state[PARTITIONS] for state in states])
    if all(GROUPS in state for state in states):
        return _cut_as_a_whole(where, shapes, [state[GROUPS] for state in states], states[0].get(PADDINGS))
    raise UserError(f"{where}: the optimizer states beside it hold no weights of ZeRO's; fetch them again")


def _cut_as_a_whole(where: Path, shapes: Shapes, held: list[list[Tensor]], paddings: Any) -> dict[str, Read]:
    result: dict[str, Read] = {}
    if {len(groups) for groups in held} != {len(shapes)}:
        raise _disagree(where)
    for group, named in enumerate(shapes):
        parts, place = [groups[group] for groups in held], 0
        after = paddings[group] if paddings else [0] * len(named)
        if len(after) != len(named):
            raise _disagree(where)
        for (name, shape), padding in zip(named.items(), after, strict=True):
            result[name] = partial(_whole, [parts], place, math.prod(shape), tuple(shape))
            place += math.prod(shape) + padding
        align = 2 * len(held)  # DeepSpeed fills each group up to a multiple of that
        if -(-place // align) != -(-sum(map(len, parts)) // align):
            raise _disagree(where)
    return result


def _cut_one_by_one(where: Path, shapes: Shapes, held: list[list[Tensor]]) -> dict[str, Read]:
    result: dict[str, Read] = {}
    place = 0
    for name, shape in (pair for named in shapes for pair in named.items()):
        count = -(-math.prod(shape) // len(held))
        result[name] = partial(_whole, held, place, count, tuple(shape))
        place += count
    if any(sum(map(len, parts)) != place for parts in held):
        raise _disagree(where)
    return result


def _whole(ranks: Sequence[Sequence[Tensor]], start: int, count: int, shape: tuple[int, ...]) -> Tensor:
    """A tensor of `count` numbers of each rank, which lie from `start` in its parts as if they were one."""
    pieces: list[Tensor] = []
    for parts in ranks:
        first = start
        for part in parts:
            pieces.append(part[max(first, 0) : max(first + count, 0)])
            first -= len(part)
    return torch.cat(pieces).detach()[: math.prod(shape)].view(shape)


def _disagree(where: Path) -> UserError:
    return UserError(f"{where} and the optimizer states beside it are of several models or layouts; fetch them again")
