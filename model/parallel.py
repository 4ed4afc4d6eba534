"""Tensor slicing, sequence parallelism and Ulysses: where a rank is, and the collectives with their derivatives.

`SOLO` is a rank by itself. With it every function here returns its input, so the layers need no case for degree 1.
Sources: Shoeybi et al. 2019 (arXiv:1909.08053), section 3, f and g; Korthikanti et al. 2022 (arXiv:2205.05198), section
4.2.2, g and g-bar; Jacobs et al. 2023 (arXiv:2309.14509), section 3.1, the all-to-all.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

SEQUENCE = 1  # the axis of [B, S, H] that sequence parallelism cuts


@dataclass(frozen=True)
class Axis:
    """One axis of the layout as a rank sees it: its degree, this rank's place on it, and the group."""

    size: int = 1
    rank: int = 0
    group: Any = None


@dataclass(frozen=True)
class Parallel:
    """What the layers need to know of the layout."""

    tp: Axis = Axis()
    ulysses: Axis = Axis()
    sequence_parallel: bool = False


SOLO = Parallel()


@dataclass(frozen=True)
class Slice:
    """Which part of a whole parameter a rank holds: the `rank`-th of `size` equal parts along axis `dim`."""

    dim: int
    size: int
    rank: int

    def of(self, whole: Tensor) -> Tensor:
        """This part of a whole tensor."""
        return whole.chunk(self.size, self.dim)[self.rank]


def mark_slice(parameter: Tensor, dim: int, axis: Axis) -> None:
    """Say that a parameter is a slice: for the initial weights, checkpoints, and DeepSpeed's gradient norm.

    DeepSpeed takes a parameter without this mark for a copy and counts it once for all tensor ranks. A slice without
    its mark makes the norm wrong, and nothing warns.
    """
    if axis.size > 1:
        parameter.slice = Slice(dim, axis.size, axis.rank)  # type: ignore[attr-defined]
        parameter.tensor_model_parallel = True  # type: ignore[attr-defined]


def slice_of(parameter: Tensor) -> Slice | None:
    """How a parameter is sliced, None where it is whole."""
    found: Slice | None = getattr(parameter, "slice", None)
    return found


# --- Collectives with derivatives ------------------------------------------------------------------------------------


def _all_reduce(x: Tensor, axis: Axis) -> Tensor:
    result = x.contiguous().clone()
    dist.all_reduce(result, group=axis.group)
    return result


def _gather(x: Tensor, axis: Axis) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(axis.size)]
    dist.all_gather(parts, x.contiguous(), group=axis.group)
    return torch.cat(parts, SEQUENCE)


def _reduce_scatter(x: Tensor, axis: Axis) -> Tensor:
    parts = torch.stack([part.contiguous() for part in x.chunk(axis.size, SEQUENCE)])
    result = torch.empty_like(parts[0])
    dist.reduce_scatter_tensor(result, parts.flatten(0, 1), group=axis.group)
    return result


class _Enter(Function):
    """f: the identity forward, all-reduce backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(grads[0], ctx.axis), None


class _Leave(Function):
    """g: all-reduce forward, the identity backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return _all_reduce(x, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def added(x: Tensor, axis: Axis) -> Tensor:
    """The sum over the ranks of an axis, of which each goes on with an equal share of what it makes of it.

    All-reduce forward, and backward too: the gradient of every rank's share flows into each rank's part.
    """
    return x if axis.size == 1 else _Leave.apply(_Enter.apply(x, axis), axis)  # type: ignore[no-any-return]


class _GatherSequence(Function):
    """g-bar's counterpart: gather along the sequence forward, reduce-scatter backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _gather(x, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter(grads[0], ctx.axis), None


class _ScatterSequence(Function):
    """g-bar: reduce-scatter along the sequence forward, gather backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return _reduce_scatter(x, axis)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _gather(grads[0], ctx.axis), None


def enter(x_BSH: Tensor, parallel: Parallel) -> Tensor:
    """Into a sliced region: every tensor rank gets the whole sequence."""
    if parallel.tp.size == 1:
        return x_BSH
    function = _GatherSequence if parallel.sequence_parallel else _Enter
    return function.apply(x_BSH, parallel.tp)  # type: ignore[no-any-return]


def leave(x_BSH: Tensor, parallel: Parallel) -> Tensor:
    """Out of a sliced region: the ranks' partial sums are added up.

    Under sequence parallelism a rank gets the sums for its share of the sequence only.
    """
    if parallel.tp.size == 1:
        return x_BSH
    function = _ScatterSequence if parallel.sequence_parallel else _Leave
    return function.apply(x_BSH, parallel.tp)  # type: ignore[no-any-return]


def replicated(parameter: Tensor, parallel: Parallel) -> Tensor:
    """A parameter that every tensor rank holds whole. Its gradients are added up over the ranks under sequence
    parallelism, because each rank then sees only its share of the sequence."""
    return _Enter.apply(parameter, parallel.tp) if parallel.sequence_parallel else parameter  # type: ignore[no-any-return]


class _AllToAll(Function):
    """Send each rank a part of `x`, cut along axis `scatter`; join the received parts along axis `gather`.

    The backward pass does the reverse.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, scatter: int, gather: int) -> Tensor:
        ctx.axis, ctx.scatter, ctx.gather = axis, scatter, gather
        sent = torch.stack([part.contiguous() for part in x.chunk(axis.size, scatter)])
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=axis.group)
        return torch.cat(list(received), gather)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _AllToAll.apply(grads[0], ctx.axis, ctx.gather, ctx.scatter), None, None, None  # type: ignore[no-untyped-call]


def all_to_all(x: Tensor, axis: Axis, scatter: int, gather: int) -> Tensor:
    """Exchange a cut along axis `gather` for a cut along axis `scatter`."""
    return x if axis.size == 1 else _AllToAll.apply(x, axis, scatter, gather)  # type: ignore[no-any-return,no-untyped-call]


# --- Random streams --------------------------------------------------------------------------------------------------


@contextmanager
def sliced_random(parallel: Parallel, active: bool) -> Iterator[None]:
    """A random stream of this tensor rank's own, for dropout on what is sliced.

    Outside of it the tensor ranks of one replica draw the same numbers. Its seed is drawn from the stream outside.
    So a forward pass that is computed again draws the same numbers again.
    """
    if not active or parallel.tp.size == 1:
        yield
        return
    seed = int(torch.randint(2**62, ()))
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed + parallel.tp.rank)
        yield
