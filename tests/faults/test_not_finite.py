"""A loss or a gradient of one rank that is not finite: all ranks skip the step in every precision, stage and layout."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from model.checkpoint.zero import state_of
from model.engine.engine import Engine, StepResult
from model.layout import Layout
from model.parallel import slice_of
from tests.distributed import run_ranks
from tests.model import training

SHARDED = ("zero0_fp32", *(f"zero{stage}_{kind}" for stage in (1, 2, 3) for kind in ("fp32", "bf16", "fp16")))
PIPELINED = ("pipeline_fp32", "pipeline_bf16", "pipeline_fp16")
BATTERY = {
    "data": (2, Layout(), (*SHARDED, "zero2_offload_bf16", "zero3_offload_bf16")),
    "tensor": (2, Layout(tp=2), SHARDED),
    "ulysses": (2, Layout(ulysses=2), ("zero1_fp32", "zero3_bf16")),
    "pipeline": (2, Layout(pp=2), PIPELINED),
    "pipeline and tensor": (4, Layout(tp=2, pp=2), ("pipeline_bf16",)),
}
KEPT_SCALE = {"enabled": True, "hysteresis": 9}  # so many overflows leave the scale as it is


def is_last() -> bool:
    """Whether this is the rank that goes wrong: the last one, which in a pipeline computes the loss."""
    return torch.distributed.get_rank() == torch.distributed.get_world_size() - 1


def state(subject: Engine) -> list[Tensor]:
    """All weights of this rank, those that compute too, and the optimiser's moments; copies."""
    held = state_of(subject)
    computing = [getattr(p, "ds_tensor", p) for p in subject.names]
    stored = [tensor for flat in held.flats() for tensor in (flat.tensor, *held.moments(flat).values())]
    return [tensor.detach().clone() for tensor in (*computing, *stored)]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Equal to the bit; a NaN is equal to nothing."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def bad_loss(subject: Engine, samples: Tensor) -> StepResult:
    """A step in which the second of a rank's micro-batches has a loss of NaN."""
    batches = training.micro_batches(samples, subject.grid.dp_rank, subject.grid.dp)
    if is_last():
        batches[1] = dataclasses.replace(batches[1], weights_BS=batches[1].weights_BS * math.nan)
    return subject.train_step(batches)


@contextmanager
def spoilt(parameter: nn.Parameter, factor: float) -> Iterator[None]:
    """While it lasts, the last rank's gradient of a parameter is multiplied."""
    handle = parameter.register_hook(lambda grad: grad * (factor if is_last() else 1.0))
    yield
    handle.remove()


def bad_gradient(of_slice: bool, factor: float) -> Callable[[Engine, Tensor], StepResult]:
    """A step in which one gradient of a rank goes wrong: of what tensor ranks slice, or of what they hold alike."""

    def step(subject: Engine, samples: Tensor) -> StepResult:
        chosen = [p for p, name in subject.names.items() if bool(slice_of(p)) == of_slice and "blocks" in name]
        with spoilt(chosen[-1] if chosen else next(iter(subject.names)), factor):
            return training.step(subject, samples)

    return step


SPOILS = (bad_loss, bad_gradient(False, math.nan), bad_gradient(True, math.inf))


def survives(name: str, layout: Layout) -> list[str]:
    """What goes wrong where three of five steps are bad on one rank; nothing should."""
    changes = {"fp16": KEPT_SCALE} if name.endswith("fp16") else {}
    if name == "zero2_bf16":
        changes = {"bf16": {"enabled": True, "check_grad_overflow": False}, "data_types": {}}
    subject, untouched = (training.trainer(name, layout, train_batch_size=8, **changes) for _ in range(2))
    first, second, other = training.batches(3)[:, :8]
    training.step(subject, first)
    before, wrong = state(subject), []
    for number, spoil in enumerate(SPOILS):
        result = spoil(subject, other)
        if not result.skipped:
            wrong.append(f"{name} {number}: not skipped")
        if math.isfinite(result.loss) == (spoil is bad_loss):
            wrong.append(f"{name} {number}: a loss of {result.loss}")
        if math.isfinite(result.grad_norm):
            wrong.append(f"{name} {number}: a norm of {result.grad_norm}")
        if not same(before, state(subject)):
            wrong.append(f"{name} {number}: the weights or the optimiser changed")
    after = training.step(subject, second)
    training.step(untouched, first)
    expected = training.step(untouched, second)
    if after != expected or not same(state(subject), state(untouched)):
        wrong.append(f"{name}: the next step differs from that of a run without bad steps: {after}, {expected}")
    return wrong


def all_survive(layout: Layout, names: tuple[str, ...]) -> list[str]:
    return [wrong for name in names for wrong in survives(name, layout)]


@pytest.mark.parametrize("axis", BATTERY)
def test_a_rank_that_is_not_finite_is_skipped_by_all(axis: str) -> None:
    world, layout, names = BATTERY[axis]
    assert run_ranks(world, all_survive, layout, names) == [[]] * world
