"""Whole examples packed into samples, in an order that is a pure function of (seed, position).

An example, or a pair, never lies in two samples. What a sample has left is padding, which weighs nothing. Which
examples share a sample is decided once for a run; each epoch visits the samples in another order. So `consumed_samples`
is all the state there is, as where texts are packed.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.samples.sampling import Span, laid_out, shuffled
from data.tokens.beside import Beside
from data.tokens.shards import WEIGHTS, Shards
from support.errors import UserError

Ints = NDArray[np.int64]
ORDER = 2**32 - 1  # the number that stands in the place of an epoch where examples are drawn for their samples


class Packed(NamedTuple):
    """Samples of examples: tokens, their weights as labels, and the number of each token's example in its sample.

    Each is [N, seq_length + 1]. Padding has an example of its own, behind the others. Of pairs each side is an example:
    those of the pair p are 2 p, the chosen one, and 2 p + 1.
    """

    tokens: Ints
    weights: NDArray[np.uint8]
    examples: Ints


def sizes(weights: NDArray[np.uint8]) -> list[int]:
    """How many tokens an example with these weights has, or each side of a pair: the answer of the second weighs 2."""
    if weights[-1] < 2:
        return [len(weights)]
    chosen = int(np.flatnonzero(weights == 1)[-1]) + 1
    return [chosen, len(weights) - chosen]


def patterns(counts: Ints) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """How often which lengths share a sample: the longest that still fits goes in first (first fit, decreasing).

    `counts[n]` examples have n tokens, and a sample takes `len(counts) - 1`. Samples that would be filled alike come
    as one pattern, a list of lengths and how many of each: so it is fast for any number of examples.
    """
    left, room = counts.copy(), len(counts) - 1
    while left.any():
        space, pattern = room, []
        for length in np.flatnonzero(left)[::-1].tolist():
            if many := min(space // length, int(left[length])):
                pattern.append((length, many))
                space -= many * length
            if not space:
                break
        times = min(int(left[length]) // many for length, many in pattern)
        for length, many in pattern:
            left[length] -= times * many
        yield times, pattern


def pack(lengths: Ints, room: int, drawn: Ints) -> tuple[Ints, Ints]:
    """Examples of these lengths in samples of `room` tokens: [N] examples, and [samples + 1] where each sample begins.

    `drawn` is an order of the examples: of equally long ones the first goes into the first sample.
    """
    by_length = drawn[np.argsort(lengths[drawn], kind="stable")]
    counts = np.bincount(lengths, minlength=room + 1)
    taken = np.cumsum(counts) - counts  # where the examples of a length begin that are still to come
    order, sizes = [], []
    for times, pattern in patterns(counts):
        rows = []
        for length, many in pattern:
            first = taken[length]
            rows.append(by_length[first : first + times * many].reshape(times, many))
            taken[length] += times * many
        order.append(np.concatenate(rows, axis=1))
        sizes += [order[-1].shape[1]] * times
    return np.concatenate([each.ravel() for each in order]), np.cumsum([0, *sizes])


class PackedStream:
    """The samples of some weighted shards. Errors: `UserError` where there is no example, or one longer than a sample.

    `stream` is the number of a part in its blend, so that parts have orders of their own.
    """

    def __init__(self, shards: Shards, seq_length: int, seed: int, stream: int = 0) -> None:
        self.shards, self.seq_length, self.seed, self.stream = shards, seq_length, seed, stream
        self.weights = Beside(shards, WEIGHTS, np.uint8)
        lengths = shards.lengths.astype(np.int64)
        if (longest := int(lengths.max())) > seq_length + 1:
            raise UserError(
                f"data {shards.shards[0].prefix.parent} has an example of {longest:,} tokens, and a context of "
                f"{seq_length:,} takes {seq_length + 1:,}; give the model.seq_length that it was prepared for"
            )
        self.ends: Ints = np.cumsum(lengths)
        drawn = shuffled(np.arange(len(lengths)), len(lengths), self._keys(ORDER))
        self.order, self.begins = pack(lengths, seq_length + 1, drawn)

    def _keys(self, epoch: int) -> list[np.uint64]:
        return [*np.random.SeedSequence([self.seed, self.stream, epoch]).generate_state(6, np.uint64)]

    @property
    def samples_per_epoch(self) -> int:
        return len(self.begins) - 1

    @property
    def fullness(self) -> float:
        """Which share of the places in samples is no padding."""
        return float(self.ends[-1] / (self.samples_per_epoch * (self.seq_length + 1)))

    def spans(self, positions: Ints) -> list[list[Span]]:
        """The tokens that make up each sample at `positions` [N]: a span an example, in their order in it."""
        epochs, indices = np.divmod(positions, self.samples_per_epoch)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            indices[mine] = shuffled(indices[mine], self.samples_per_epoch, self._keys(int(epoch)))
        return [self.of(index) for index in indices.tolist()]

    def of(self, index: int) -> list[Span]:
        """The spans of a sample as they were packed, whatever the order of an epoch."""
        examples = self.order[self.begins[index] : self.begins[index + 1]]
        ends = self.ends[examples]
        starts = np.where(examples > 0, self.ends[examples - 1], 0)
        return list(zip(starts.tolist(), ends.tolist(), strict=True))

    def samples(self, positions: Ints) -> Ints:
        """The tokens of the samples at `positions` [N]: [N, seq_length + 1]."""
        return laid_out(self.spans(positions), self.shards, self.seq_length + 1).astype(np.int64)

    def beside(self, positions: Ints, rows: Beside) -> NDArray[Any]:
        """What lies beside the tokens of samples: [N, seq_length + 1, …], as `samples`; zeros beside padding."""
        return laid_out(self.spans(positions), rows, self.seq_length + 1)

    def packed(self, positions: Ints) -> Packed:
        """The samples at `positions` [N]."""
        return self.read(self.spans(positions))

    def read(self, spans: list[list[Span]]) -> Packed:
        """Samples of the given spans."""
        width = self.seq_length + 1
        examples = np.empty((len(spans), width), np.int64)
        for row, sample in zip(examples, spans, strict=True):
            each = [size for start, stop in sample for size in sizes(self.weights.read(start, stop))]
            row[:] = np.repeat(np.arange(len(each) + 1), [*each, width - sum(each)])
        tokens = laid_out(spans, self.shards, width).astype(np.int64)
        return Packed(tokens, laid_out(spans, self.weights, width), examples)
