"""What is seen in a model that has read a text. Imports no torch.

Axes: L layers, N heads, S tokens (a place is one of them), K guesses.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from support.errors import UserError

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

MOST_BYTES = 48 * 10**6  # of the attention in a page: what a browser opens in a moment


@dataclass(frozen=True)
class Guesses:
    """What is guessed at each place: the likeliest ids [S, K] with their odds [S, K], and how the true one does.

    `loss` [S] is in nats, `rank` [S] counts from 1. Where nobody knows the true token they are NaN and 0.
    """

    ids: Ints
    odds: Floats
    loss: Floats
    rank: Ints


@dataclass(frozen=True)
class Seen:
    """A text and what a model does with it.

    `attention` [L, N, S, S] has a row for each token: how much it looks at each one; a row adds up to 1. `lens` has the
    guesses from the embedding and from each layer, L + 1 of them, the model's own the last; where a model's head cannot
    be asked so, that one alone. A place guesses the token `ahead` of it: 1 is the next one, 0 is itself, masked.
    """

    tokens: list[int]
    attention: Floats
    lens: list[Guesses]
    ahead: int
    both_sides: bool
    entries: int
    notes: tuple[str, ...] = ()

    @property
    def losses(self) -> list[float | None]:
        """The loss of each token in nats; None for the first one, which is there from the start."""
        own = self.lens[-1].loss
        return [None, *(float(own[place - self.ahead]) for place in range(1, len(self.tokens)))]

    @property
    def mean_loss(self) -> float | None:
        """The mean over the tokens that have a loss; None where none has."""
        known = [loss for loss in self.losses if loss is not None]
        return sum(known) / len(known) if known else None


def labels(tokens: list[int], ahead: int) -> list[int | None]:
    """The token that each place is to guess; None where there is none behind it, and for the first token itself."""
    return [*tokens[1:], None] if ahead else [None, *tokens[1:]]


def cells(tokens: int, both_sides: bool) -> int:
    """How many weights a head has: the left ones where the others are 0."""
    return tokens**2 if both_sides else tokens * (tokens + 1) // 2


def check_size(layers: int, heads: int, tokens: int, both_sides: bool) -> None:
    """Errors: `UserError` where the attention of a text would make a page that no browser likes to open."""

    def size(count: int) -> int:
        return layers * heads * cells(count, both_sides) * 4 // 3  # base64

    if size(tokens) > MOST_BYTES:
        most = next(count for count in range(tokens, -1, -1) if size(count) <= MOST_BYTES)
        raise UserError(
            f"the attention of {tokens} tokens in {layers} layers of {heads} heads would make a page of "
            f"{size(tokens) / 1e6:,.0f} MB; give a prompt of at most {most} tokens, the one in front included"
        )
