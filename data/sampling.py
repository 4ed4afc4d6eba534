"""Packed samples in an order that is a pure function of (seed, epoch, position).

The documents of a shard, each closed by its end-of-document token, form one stream of tokens. A sample is
`seq_length + 1` of them, wherever documents begin and end: the first `seq_length` are the inputs, the last ones the
labels. Nothing is remembered between samples, so `consumed_samples` is all the state there is.
"""

import numpy as np
from numpy.typing import NDArray

from data.shards import Shard


class SampleOrder:
    """Maps a position in a run to a place in a token stream.

    Each epoch starts its first sample at another offset below `seq_length` (so that small corpora are cut
    differently every time) and visits its samples in another order. Every token but those
    before the offset and an incomplete sample at the end is a label once an epoch.
    """

    def __init__(self, num_tokens: int, seq_length: int, seed: int) -> None:
        # One `seq_length` is kept free for the offset, so that all epochs have the same number of samples.
        self.samples_per_epoch = (num_tokens - seq_length) // seq_length
        if self.samples_per_epoch < 1:
            raise ValueError(
                f"{num_tokens} tokens make no sample of {seq_length}: training needs at least {2 * seq_length}; "
                "give more text or a shorter model.seq_length"
            )
        self.seq_length, self.seed = seq_length, seed
        self._epoch = -1
        self._starts: NDArray[np.int64] = np.empty(0, np.int64)

    def starts(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token index at which the sample at each position of the run begins; same shape as `positions`."""
        result = np.empty_like(positions)
        epochs = positions // self.samples_per_epoch
        for epoch in np.unique(epochs):
            self._enter(int(epoch))
            chosen = epochs == epoch
            result[chosen] = self._starts[positions[chosen] % self.samples_per_epoch]
        return result

    def _enter(self, epoch: int) -> None:
        if epoch == self._epoch:
            return
        random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        offset = int(random.integers(self.seq_length))
        self._starts = random.permutation(self.samples_per_epoch) * self.seq_length + offset
        self._epoch = epoch


class TokenStream:
    """Samples of a shard for training: `batch(first, count)` is the samples at positions `first … first + count`."""

    def __init__(self, shard: Shard, seq_length: int, seed: int) -> None:
        self.shard, self.seq_length = shard, seq_length
        try:
            self.order = SampleOrder(shard.num_tokens, seq_length, seed)
        except ValueError as error:
            raise ValueError(f"shard {shard.prefix}: {error}") from None

    def batch(self, first: int, count: int) -> NDArray[np.int64]:
        """Samples [count, seq_length + 1]."""
        starts = self.order.starts(np.arange(first, first + count, dtype=np.int64))
        return self.shard.tokens[starts[:, None] + np.arange(self.seq_length + 1)].astype(np.int64)


def windows(tokens: NDArray[np.generic], seq_length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Cut a token stream into consecutive samples for evaluation: every token but the first is a label exactly once.

    Returns samples [N, seq_length + 1] and a mask [N, seq_length] of the labels that count; only the last sample has
    labels that do not (they are padding).
    """
    labels = len(tokens) - 1
    count = -(-labels // seq_length)
    index = np.arange(count)[:, None] * seq_length + np.arange(seq_length + 1)
    mask = index[:, 1:] < len(tokens)
    samples = tokens[np.minimum(index, len(tokens) - 1)].astype(np.int64)
    return samples, mask
