"""The loss of a model on a text, under the objective that it was trained with."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.samples import objectives
from data.samples.objectives import Examples, Ints, Masking
from data.samples.sampling import windows
from inference.measuring.texts import Text
from model.loss import token_losses
from support.errors import UserError

BATCH_TOKENS = 16_384  # tokens evaluated at once: large enough to keep a GPU busy, small enough for a laptop
BATCH_SCORES = 2**30  # scores of ids that are held at once: 4 GB in fp32

Scores = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]  # as `GPT`: tokens, prefixes, documents


@dataclass(frozen=True)
class Objective:
    """What a model was trained to guess: next tokens, those behind a prefix, or those that a mask token hides.

    `seed` decides which prefixes and masks a text gets. With `separate` its documents do not see each other.
    """

    name: str = "causal"
    seed: int = 0
    masking: Masking = field(default_factory=Masking)
    mask_token: int = -1
    separate: bool = False

    def examples(self, samples: Ints, positions: Ints, entries: int) -> Examples:
        """What samples [N, S + 1] at `positions` [N] of a text show and ask, as in the validation of a training."""
        if self.name == "masked":
            return objectives.masked(samples, positions, self.seed, self.masking, self.mask_token, entries)
        return objectives.prefix(samples, positions, self.seed) if self.name == "prefix" else objectives.causal(samples)


@dataclass(frozen=True)
class Measured:
    """A model: the `scores` that it gives, of `width` ids, and how many tokens it sees.

    The tokeniser's ids are below `entries`. `end` closes each document; `begin` stands in front of a text.
    """

    scores: Scores
    width: int
    context: int
    entries: int
    begin: int
    end: int
    device: torch.device
    objective: Objective = Objective()

    @property
    def rows(self) -> int:
        """How many windows are read at once."""
        return max(1, min(BATCH_TOKENS, BATCH_SCORES // self.width) // self.context)

    def losses(self, tokens: Ints, labels: Ints, prefix: Ints | None = None, documents: Ints | None = None) -> Tensor:
        """The loss of each label in nats, [N, S]."""
        shown, asked = (torch.from_numpy(np.ascontiguousarray(each)).to(self.device) for each in (tokens, labels))
        prefix_B, apart_BS = (
            None if each is None else torch.from_numpy(each).to(self.device) for each in (prefix, documents)
        )
        with torch.no_grad():
            return token_losses(self.scores(shown, prefix_B, apart_BS), asked, self.entries)

    def documents(self, tokens: Ints) -> Ints | None:
        """The number of each token's document, where documents do not see each other."""
        return objectives.documents(tokens, self.end) if self.objective.separate else None

    def check(self, name: str, tokens: NDArray[np.generic]) -> None:
        """Errors: `UserError` for a token that the tokeniser does not have."""
        if int(tokens.max()) >= self.entries:
            raise UserError(
                f"{name} holds token {tokens.max()} but the model's tokeniser has {self.entries}: another tokeniser "
                "made it"
            )


@dataclass(frozen=True)
class Loss:
    """The mean over tokens in nats, and of how many tokens."""

    mean: float
    tokens: int


def mean_loss(model: Measured, text: Text) -> Loss:
    """The loss of a text, read about `BATCH_TOKENS` at a time. A token of its own stands in front of the first.

    Of a causal model every token is predicted once. Else the tokens are those that a training's validation asks of the
    same text. Errors: `UserError` for a token that the tokeniser does not have, and where the loss is not finite.
    """
    total = torch.zeros(2, dtype=torch.float64, device=model.device)
    step = model.rows * model.context
    last = model.begin
    for first in range(0, text.num_tokens, step):
        tokens = np.insert(text.read(first, first + step), 0, last)
        last = int(tokens[-1])
        model.check(text.name, tokens)
        samples, mask = windows(tokens, model.context)
        if model.objective.name == "masked":  # its labels are the inputs: every token, not the one in front
            samples = np.roll(samples, -1, axis=1)
        positions = np.arange(first, first + step, model.context)[: len(samples)] // model.context
        examples = model.objective.examples(samples, positions, model.entries)
        losses = model.losses(examples.tokens, examples.labels, examples.prefix, model.documents(samples[:, :-1]))
        counted = torch.from_numpy((examples.weights > 0) & mask).to(model.device)
        total += torch.stack(((losses.double() * counted).sum(), counted.sum()))
    return Loss(finite(text.name, float(total[0] / total[1])), int(total[1]))


def finite(name: str, loss: float) -> float:
    """Errors: `UserError` for a loss that is none."""
    if not math.isfinite(loss):
        raise UserError(
            f"the loss on {name} is not finite: the model's training has diverged, or its weights are damaged; take an "
            "earlier checkpoint, or another model"
        )
    return loss
