"""All ranks skip a step where a loss or a gradient of any rank is not finite, in every precision, stage and layout.

DeepSpeed does so where its norm is not finite. What it misses is added here, inside of it: fields and methods that it
does not promise to keep, as in `inside.py`. They were read in DeepSpeed 0.19.8, in the files of its optimisers:
runtime/zero/stage_1_and_2.py, runtime/zero/stage3.py, runtime/bf16_optimizer.py, and for stage 0 runtime/engine.py.
Shown by test_a_rank_that_is_not_finite_is_skipped_by_all.

Only gradients are looked at: `weighted_loss` gives a loss that is not finite a gradient that is not finite.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor


def look_at_every_gradient(engine: Any) -> None:
    """Have DeepSpeed's engine look at every gradient of every rank before it steps. Without ZeRO see `skipped`.

    The norm leaves out what tensor ranks hold alike, on all of them but the first: a NaN there went into the weights.
    In bf16 the JSON can switch the look off; fp32, stage 3 and fp32 sums have the norm alone.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "bf16_groups"):
        optimizer.get_grads_for_norm = partial(_for_norm, optimizer.get_grads_for_norm)
    elif engine.zero_optimization_stage() == 3:
        optimizer._overflow_check_and_loss_scale_update = partial(_look_in_stage_3, optimizer)
    elif engine.zero_optimization_stage():
        optimizer.check_grad_overflow = True
        optimizer.reset_cpu_buffers = partial(_forget, optimizer, optimizer.reset_cpu_buffers)


def _for_norm(original: Callable[..., Any], for_clipping: bool = False) -> Any:
    """What a norm is taken of: a NaN on every rank where any gradient of any rank is not finite; collective."""
    everything: list[Tensor] = original(for_clipping=True)
    if for_clipping:
        return everything
    largest = torch.stack(torch._foreach_norm(everything, torch.inf))
    found = (~largest.isfinite().all(0, keepdim=True)).float()
    torch.distributed.all_reduce(found)
    gradients, of_experts = original()
    return ([found * torch.nan] if found.item() else gradients), of_experts


def _look_in_stage_3(optimizer: Any, update_scale: bool) -> bool:
    """DeepSpeed's own look, which it keeps for fp16, in every precision; collective."""
    optimizer.overflow = False
    optimizer.check_overflow()
    return bool(optimizer.overflow)


def _forget(optimizer: Any, original: Callable[[], None]) -> None:
    """Empty the buffers of a CPU offload, the sums of a skipped step too: each later step was added to its NaN."""
    original()
    optimizer.averaged_gradients = dict.fromkeys(optimizer.averaged_gradients)


@contextmanager
def skipped(engine: Any) -> Iterator[None]:
    """Have the next step of an engine without ZeRO change nothing, and count as skipped."""
    optimizer = engine.optimizer
    step = optimizer.step
    optimizer.step, optimizer.overflow = (lambda: None), True
    try:
        yield
    finally:
        optimizer.step = step
        del optimizer.overflow
