"""DeepSpeed alone, past all of our checks, around a model whose gradient is its input."""

from typing import Any

import torch
from torch import Tensor, nn


class Slope(nn.Module):
    """w x with w = 1, 1, …: the loss's gradient is x."""

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return (self.weight * x).sum()


def config(stage: int, precision: str = "", **more: Any) -> dict[str, Any]:
    """A JSON as DeepSpeed takes it: one sample a rank, plain gradient descent with a rate of a half."""
    result = {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "SGD", "params": {"lr": 0.5}},
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage},
        "steps_per_print": 2**31 - 1,
    }
    return {**result, **({precision: {"enabled": True}} if precision else {}), **more}


def engine(json: dict[str, Any], model: nn.Module | None = None, mpu: Any = None) -> Any:
    import deepspeed

    model = model or Slope()
    return deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=json, mpu=mpu)[0]


def step(subject: Any, *gradient: float) -> None:
    """One step with this gradient on this rank."""
    dtype = next(subject.module.parameters()).dtype
    subject.backward(subject(torch.tensor(gradient, dtype=dtype)))
    subject.step()
