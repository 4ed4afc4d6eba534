"""The preferences of a recipe: which of two answers is the better one is learned, and nothing else."""

import math
from dataclasses import dataclass
from typing import ClassVar

from support.errors import UserError


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, equation 7): rows are pairs of answers.

    `beta` is that of the equation: the higher, the nearer the model stays to the one that it begins with, which is the
    reference; 0: none.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    beta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise UserError(f"dpo.beta is {self.beta}; it must be above 0, or 0 for no preferences")
