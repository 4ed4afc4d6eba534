"""The teacher of a recipe: a model whose expectations a smaller one is trained on, beside the texts."""

import math
from dataclasses import dataclass
from typing import ClassVar

from support.errors import UserError


@dataclass(frozen=True)
class Teacher:
    """Distillation (Hinton et al. 2015, arXiv:1503.02531): learn what a trained model expects at each token.

    `model` is a run, one of its checkpoints, a folder, a hub id or `smollm2-135m-instruct`; empty: none. Preparing
    writes the odds of its `top_k` likeliest ids at each token, softened by `temperature`. `soft_share` of the loss is
    the divergence from them, the rest the cross entropy.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    model: str = ""
    top_k: int = 64
    temperature: float = 2.0
    soft_share: float = 0.5

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UserError(f"teacher.top_k is {self.top_k}; it must be at least 1")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"teacher.temperature is {self.temperature}; it must be above 0")
        if not 0 <= self.soft_share <= 1:
            raise UserError(f"teacher.soft_share is {self.soft_share}; it must be from 0 to 1")
