"""What one rank reads to learn preferences: packed pairs of answers, with what the reference gave their tokens."""

from functools import partial

import numpy as np
from numpy.typing import NDArray

from data.samples.mixture import Mixture
from data.samples.packing import Packed
from model.engine.engine import MicroBatch
from model.loss import Reference
from recipes.recipe import Recipe
from training.source import Source, tensor
from training.tuned import TunedSource


class PreferredSource(TunedSource):
    """Micro-batches of pairs. The loss is the mean over all pairs of a global batch, wherever each lies.

    The weights of a pair's labels add up to that of its loss: to 1 in validation.
    """

    def __init__(self, recipe: Recipe, mixture: Mixture, data_from: int = 0) -> None:
        super().__init__(recipe, mixture, data_from)
        said = [each for each in mixture.taught if each]
        self.odds, held_out = ([each.rows[split] for each in said] for split in ("train", "validation"))
        most = recipe.intervals.final_samples
        self.held_out_odds = mixture.held_out_beside(recipe.model.seq_length, most, held_out)
        self.judged = partial(self.validation, beta=0.0)

    def training(self, first: int, count: int, among: tuple[int, int] | None = None) -> MicroBatch:
        """See `Source`. Without `among` the samples are a batch of their own."""
        odds = self.packed.beside(first - self.data_from, count, self.odds)
        weight = np.full(count, self._scale(*(among or (first, count))))
        return _batch(self._parts(first, count), odds, weight, self.recipe.dpo.beta)

    def _scale_of(self, first: int, count: int) -> float:
        """The weight of a pair in a batch of `count` samples: the mean over samples is one over pairs."""
        streams = self.packed.streams
        pairs = self.packed.gathered(
            first - self.data_from,
            count,
            lambda part, indices: np.array([len(spans) for spans in streams[part].spans(indices)]),
        )
        return float(count / pairs.sum())

    def validation(self, rows: list[int], beta: float | None = None) -> MicroBatch:
        """Rows of the validation set. A pair weighs 1; those of rows past the set's end weigh 0."""
        inside = np.array([row < len(self.samples) for row in rows])
        chosen = np.minimum(rows, len(self.samples) - 1)
        tokens, weights, examples = self.held_out
        parts = Packed(tokens[chosen], weights[chosen], examples[chosen])
        return _batch(parts, self.held_out_odds[chosen], inside, self.recipe.dpo.beta if beta is None else beta)


def _batch(parts: Packed, odds: NDArray[np.float32], weight: NDArray[np.generic], beta: float) -> MicroBatch:
    """Samples whose pairs weigh as much as `weight` [N] says of each."""
    answered, sides = parts.weights[:, 1:] > 0, parts.examples[:, 1:]
    place = (np.arange(len(sides))[:, None], sides // 2)
    labels = np.zeros(sides.shape)
    np.add.at(labels, place, answered)  # of each pair
    weights = answered * weight[:, None] / np.maximum(labels[place], 1)
    reference = Reference(tensor(odds[:, 1:]), tensor(sides), tensor(np.array([beta], np.float32)))
    shown, asked = tensor(parts.tokens[:, :-1]), tensor(parts.tokens[:, 1:])
    return MicroBatch(shown, asked, tensor(weights.astype(np.float32)), None, tensor(parts.examples[:, :-1]), reference)


def source_of(recipe: Recipe, mixture: Mixture, data_from: int = 0) -> Source:
    """What a rank of a run reads."""
    kind = PreferredSource if recipe.dpo.beta else TunedSource if recipe.data.tunes else Source
    return kind(recipe, mixture, data_from)
