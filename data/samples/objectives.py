"""From packed samples to what a model sees and what it has to guess.

Every function takes samples [N, seq_length + 1] at run positions [N] and returns tokens, labels and weights
[N, seq_length]. The weights of a sample add up to 1. What is random is a function of (seed, position), so that a
resumed run and a run with another layout draw the same.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from support.errors import UserError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Tokens to show, labels to guess and their weights, [N, S]. `prefix` [N] are the prefixes' lengths, if any."""

    tokens: Ints
    labels: Ints
    weights: NDArray[np.float32]
    prefix: Ints | None = None


@dataclass(frozen=True)
class Masking:
    """BERT's masking (Devlin et al. 2019, arXiv:1810.04805, section 3.1): `share` of the tokens have to be guessed.

    `to_mask` of those become the mask token, `to_random` become a random token, and the rest stay as they are.
    """

    share: float = 0.10
    to_mask: float = 0.8
    to_random: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"the share of masked tokens is {self.share}; it must be in (0, 1]")
        if min(self.to_mask, self.to_random) < 0 or self.to_mask + self.to_random > 1:
            raise UserError(
                f"of the masked tokens {self.to_mask} become the mask and {self.to_random} a random token; "
                "the two must be at least 0 and together at most 1"
            )


def documents(tokens: Ints, end: int) -> Ints:
    """The number of the document that each token belongs to, from 0 in each sample, [N, S]. `end` closes a document."""
    ends = tokens == end
    return np.cumsum(ends, axis=1) - ends


def causal(samples: Ints) -> Examples:
    """Guess each next token."""
    labels = samples[:, 1:]
    return Examples(samples[:, :-1], labels, np.full(labels.shape, 1 / labels.shape[1], np.float32))


def masked(samples: Ints, positions: Ints, seed: int, masking: Masking, mask_token: int, entries: int) -> Examples:
    """Guess what was masked. Every sample has the same number of labels, at least one.

    All tokens, random ones too, are below `entries`, and `mask_token` is not: so it cannot be confused with a token.
    """
    shown, labels = samples[:, :-1].copy(), samples[:, :-1]
    length = labels.shape[1]
    count = max(1, round(masking.share * length))
    weights = np.zeros(labels.shape, np.float32)
    for row, position in enumerate(positions):
        random = np.random.Generator(np.random.Philox(key=[seed, int(position)]))
        chosen = random.permutation(length)[:count]
        weights[row, chosen] = 1 / count
        dice, stranger = random.random(count), random.integers(entries, size=count)
        shown[row, chosen[dice < masking.to_mask]] = mask_token
        swapped = (dice >= masking.to_mask) & (dice < masking.to_mask + masking.to_random)
        shown[row, chosen[swapped]] = stranger[swapped]
    return Examples(shown, labels, weights)


def prefix(samples: Ints, positions: Ints, seed: int) -> Examples:
    """Guess what follows a prefix of random length that all of its tokens see (Raffel et al. 2020, section 3.2.1)."""
    labels = samples[:, 1:]
    length = labels.shape[1]
    lengths = np.array(
        [np.random.Generator(np.random.Philox(key=[seed, int(p)])).integers(1, length + 1) for p in positions], np.int64
    )
    # Label i is token i + 1. It has to be guessed if that token is behind the prefix.
    counted = np.arange(1, length + 1) >= lengths[:, None]
    weights = counted / counted.sum(1, keepdims=True)
    return Examples(samples[:, :-1], labels, weights.astype(np.float32), lengths)
