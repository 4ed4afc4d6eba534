"""Pseudo-perplexity: how well a masked model guesses each token from all others (Salazar et al. 2020, arXiv:1910.14659,
section 2.3)."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from inference.measuring.losses import Measured, finite
from inference.measuring.texts import Text

DEFAULT_TOKENS = 1000


@dataclass(frozen=True)
class PseudoLoss:
    """The mean in nats over the `tokens` that were hidden, one in each pass, and its standard error beside all."""

    mean: float
    error: float
    tokens: int


def pseudo_loss(model: Measured, text: Text, most: int) -> PseudoLoss:
    """Hide one token of a window at a time, and guess it from all others; of at most `most` tokens of a text.

    These are spread evenly over the text, so that the same command asks the same ones. A window is a whole context, cut
    as for the loss, and the last one ends with the text. Errors: `UserError` as `mean_loss`.
    """
    length, count = min(model.context, text.num_tokens), min(most, text.num_tokens)
    places = (2 * np.arange(count) + 1) * text.num_tokens // (2 * count)
    starts = np.minimum(places // length * length, text.num_tokens - length)
    found = []
    for first in range(0, count, model.rows):
        some = slice(first, first + model.rows)
        tokens = np.stack([text.read(start, start + length).astype(np.int64) for start in starts[some].tolist()])
        model.check(text.name, tokens)
        rows, hidden = np.arange(len(tokens)), places[some] - starts[some]
        shown = tokens.copy()
        shown[rows, hidden] = model.objective.mask_token
        losses = model.losses(shown, tokens, documents=model.documents(tokens))
        found.append(losses[torch.from_numpy(rows), torch.from_numpy(hidden)].double().cpu())
    values = torch.cat(found)
    left = 1 - count / text.num_tokens  # nothing is left to chance where every token was asked
    error = math.sqrt(float(values.var(correction=min(1, count - 1))) / count * left)
    return PseudoLoss(finite(text.name, float(values.mean())), error, count)
