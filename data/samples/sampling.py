"""Packed samples in an order that is a pure function of (seed, position).

The documents of the shards, each closed by its end-of-document token, form one stream of tokens. A sample is
`seq_length + 1` of them, wherever documents begin and end: all but the last are the inputs, all but the first the
labels. Nothing is remembered between samples, so `consumed_samples` is all the state there is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.samples.blend import Blend
from data.tokens.beside import Beside
from data.tokens.shards import Shards
from support.errors import UserError

Span = tuple[int, int]  # the first token of a stream's, and the one behind the last


class SampleOrder:
    """Maps a position in a run to a place in a token stream.

    Each epoch cuts the stream at another offset below `seq_length`, so that a small corpus gives other samples every
    time, and visits the samples in another order. In each epoch every token is a label once, but for the tokens before
    the offset and an incomplete sample at the end. `stream` is the number of a part in its blend, so that parts have
    orders of their own. Nothing is stored, however many samples there are.
    """

    def __init__(self, num_tokens: int, seq_length: int, seed: int, stream: int = 0) -> None:
        # One `seq_length` is kept free for the offset, so that all epochs have the same number of samples.
        self.samples_per_epoch = (num_tokens - seq_length) // seq_length
        if self.samples_per_epoch < 1:
            raise UserError(
                f"{num_tokens} tokens make no sample of {seq_length}: training needs at least {2 * seq_length}; "
                "give more text or a shorter model.seq_length"
            )
        self.seq_length, self.seed, self.stream = seq_length, seed, stream

    def starts(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token index at which the sample at each position of the run begins; same shape as `positions`."""
        result = np.empty_like(positions)
        epochs = positions // self.samples_per_epoch
        for epoch in np.unique(epochs):
            offset, *keys = np.random.SeedSequence([self.seed, self.stream, int(epoch)]).generate_state(7, np.uint64)
            chosen = epochs == epoch
            samples = shuffled(positions[chosen] % self.samples_per_epoch, self.samples_per_epoch, keys)
            result[chosen] = samples * self.seq_length + int(offset) % self.seq_length
        return result


def shuffled(indices: NDArray[np.int64], size: int, keys: Sequence[np.uint64]) -> NDArray[np.int64]:
    """Where a permutation of `range(size)` sends each of `indices`. `keys` choose the permutation; it is not stored.

    A Feistel network (Luby & Rackoff 1988) permutes the numbers below the next power of two. A number that lands at
    `size` or above is sent on until it lands below (Black & Rogaway 2002, "cycle walking"): less than twice on average.
    """
    result = indices.astype(np.uint64)
    walking = np.arange(len(result))
    while len(walking):
        result[walking] = _feistel(result[walking], max(2, (size - 1).bit_length()), keys)
        walking = walking[result[walking] >= size]
    return result.astype(np.int64)


def _feistel(values: NDArray[np.uint64], bits: int, keys: Sequence[np.uint64]) -> NDArray[np.uint64]:
    low_bits = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64((1 << bits // 2) - 1), np.uint64((1 << bits - bits // 2) - 1)
    low, high = values & low_mask, values >> low_bits
    for even, odd in zip(keys[::2], keys[1::2], strict=True):
        low ^= _mixed(high ^ even) & low_mask
        high ^= _mixed(low ^ odd) & high_mask
    return high << low_bits | low


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits, so that each depends on all bits of the value (the finaliser of SplitMix64, Steele et al. 2014)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


class TokenStream:
    """The training samples of some shards, in an order of their own."""

    def __init__(self, shards: Shards, seq_length: int, seed: int, stream: int = 0) -> None:
        self.shards, self.seq_length = shards, seq_length
        try:
            self.order = SampleOrder(shards.num_tokens, seq_length, seed, stream)
        except UserError as error:
            raise UserError(f"data {shards.shards[0].prefix.parent}: {error}") from None

    def samples(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Samples [N, seq_length + 1] at `positions` [N]."""
        return self.shards.gather(self.order.starts(positions), self.seq_length + 1)

    def spans(self, positions: NDArray[np.int64]) -> list[list[Span]]:
        """The tokens that make up each sample at `positions` [N], in their order in it."""
        return [[(start, start + self.seq_length + 1)] for start in self.order.starts(positions).tolist()]

    def beside(self, positions: NDArray[np.int64], rows: Beside) -> NDArray[Any]:
        """What lies beside the tokens of samples: [N, seq_length + 1, …], as `samples`."""
        return laid_out(self.spans(positions), rows, self.seq_length + 1)


def laid_out(samples: Sequence[Sequence[Span]], rows: Beside | Shards, width: int) -> NDArray[Any]:
    """Samples of the given spans, one span behind the other: [N, width, …], zeros behind the last."""
    row = rows.row if isinstance(rows, Beside) else ()
    result: NDArray[Any] = np.zeros((len(samples), width, *row), rows.dtype)
    for sample, spans in zip(result, samples, strict=True):
        filled = 0
        for start, stop in spans:
            sample[filled : filled + stop - start] = rows.read(start, stop)
            filled += stop - start
    return result


class BlendedStream:
    """The samples of a run, from several streams in the ratio of `shares`, which are whole numbers.

    `consumed_samples` is all its state: that number and the seed decide which samples a global batch has.
    """

    def __init__(self, streams: Sequence[TokenStream], shares: Sequence[int]) -> None:
        self.streams, self.blend = streams, Blend(shares)

    def batch(self, first: int, count: int) -> NDArray[np.int64]:
        """Samples [count, seq_length + 1] at positions `first … first + count` of the run."""
        parts, indices = self.blend.place(np.arange(first, first + count, dtype=np.int64))
        result = np.empty((count, self.streams[0].seq_length + 1), np.int64)
        for part in np.unique(parts):
            result[parts == part] = self.streams[part].samples(indices[parts == part])
        return result

    def beside(self, first: int, count: int, rows: Sequence[Beside]) -> NDArray[Any]:
        """What lies beside the tokens of `batch`: [count, seq_length + 1, …]. `rows` are those of each stream."""
        parts, indices = self.blend.place(np.arange(first, first + count, dtype=np.int64))
        result: NDArray[Any] = np.empty((count, self.streams[0].seq_length + 1, *rows[0].row), rows[0].dtype)
        for part in np.unique(parts):
            result[parts == part] = self.streams[part].beside(indices[parts == part], rows[part])
        return result


def windows(tokens: NDArray[np.generic], seq_length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Cut a token stream into consecutive samples for evaluation: every token but the first is a label exactly once.

    A caller that puts an end-of-document token in front of a text makes all of the text's own tokens labels.

    Returns samples [N, seq_length + 1] and a mask [N, seq_length] of the labels that count. Only the last sample has
    labels that do not count: they are padding.
    """
    labels = len(tokens) - 1
    count = -(-labels // seq_length)
    index = np.arange(count)[:, None] * seq_length + np.arange(seq_length + 1)
    mask = index[:, 1:] < len(tokens)
    samples = tokens[np.minimum(index, len(tokens) - 1)].astype(np.int64)
    return samples, mask
