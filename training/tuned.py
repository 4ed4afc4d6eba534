"""What one rank reads to tune a model: packed examples, of which only the answers are learned."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data.samples.mixture import Mixture
from data.samples.packing import Packed
from model.engine.engine import MicroBatch
from recipes.recipe import Recipe
from training.source import Source, tensor


class TunedSource(Source):
    """Micro-batches of examples. The loss is the mean over all tokens of answers in a global batch.

    So a token counts the same wherever it lies: the samples of one rank may have many, and those of another few. Every
    rank reads the weights of the whole global batch, a byte a token, and scales its own by their sum. Nothing has to be
    sent, and the gradient is the same whatever the layout.
    """

    def __init__(self, recipe: Recipe, mixture: Mixture, data_from: int = 0) -> None:
        self.recipe, self.data_from, self.entries = recipe, data_from, mixture.entries
        self.packed = mixture.tuning(recipe.model.seq_length, recipe.seed)
        self.held_out = mixture.held_out_examples(recipe.model.seq_length, recipe.intervals.final_samples)
        self.samples = self.held_out.tokens
        self._scale = lru_cache(4)(self._scale_of)

    def training(self, first: int, count: int, among: tuple[int, int] | None = None) -> MicroBatch:
        """See `Source`. Without `among` the samples are a batch of their own."""
        parts = self._parts(first, count)
        return _batch(parts, parts.weights[:, 1:] * np.float32(self._scale(*(among or (first, count)))))

    def _parts(self, first: int, count: int) -> Packed:
        streams = self.packed.streams
        columns = self.packed.gathered(
            first - self.data_from, count, lambda part, indices: np.stack(streams[part].packed(indices), axis=-1)
        )
        return Packed(columns[..., 0], columns[..., 1].astype(np.uint8), columns[..., 2])

    def _scale_of(self, first: int, count: int) -> float:
        """What a weight is multiplied by, in a batch of `count` samples: the mean over samples is one over tokens."""
        rows = [stream.weights for stream in self.packed.streams]
        weights = self.packed.beside(first - self.data_from, count, rows)
        return float(count / weights.sum(dtype=np.int64))

    def samples_by_part(self, consumed_samples: int) -> list[int]:
        return self.packed.blend.counts(consumed_samples - self.data_from)

    def validation(self, rows: list[int]) -> MicroBatch:
        """Rows of the validation set. A token of an answer weighs 1; rows past the set's end weigh 0."""
        inside = np.array([row < len(self.samples) for row in rows])
        chosen = np.minimum(rows, len(self.samples) - 1)
        held = self.held_out
        parts = Packed(held.tokens[chosen], held.weights[chosen], held.examples[chosen])
        return _batch(parts, (parts.weights[:, 1:] * inside[:, None]).astype(np.float32))


def _batch(parts: Packed, weights: NDArray[np.float32]) -> MicroBatch:
    shown, asked = parts.tokens[:, :-1], parts.tokens[:, 1:]
    return MicroBatch(tensor(shown), tensor(asked), tensor(weights), None, tensor(parts.examples[:, :-1]))
