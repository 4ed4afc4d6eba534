"""Which part of a blend each sample of a run comes from: right to within one sample at any time, without an index.

Weights are rational, so the order repeats. One period of it is worked out, at most a million entries, and a position of
the run is looked up in it. After k samples a part of weight w has given more than kw - 1 and fewer than kw + 1 of them.
"""

import heapq
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from support.errors import UserError

BLOCK = 1024  # entries of a period
FINEST = 1_000_000  # weights are kept to a millionth, so that a period is never longer than this


def shares(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the ratio of `weights`, as small as they can be.

    Weights that would need a longer period than `FINEST` are rounded to a millionth of their sum (largest remainders).
    Errors: `UserError` for a weight that is less than that.
    """
    exact = [Fraction(repr(weight)) for weight in weights]  # 0.1 as people mean it, and not its nearest binary number
    total = sum(exact)
    exact = [weight / total for weight in exact]
    period = int(np.lcm.reduce(np.array([weight.denominator for weight in exact], dtype=object)))
    if period <= FINEST:
        return [int(weight * period) for weight in exact]
    if min(exact) * FINEST < 1:
        raise UserError(
            f"a part of the blend weighs {float(min(exact)):.2g} of the whole, and weights are kept to a millionth; "
            "give it more, or leave it out"
        )
    floors = [int(weight * FINEST) for weight in exact]
    remainders = [weight * FINEST - floor for weight, floor in zip(exact, floors, strict=True)]
    largest = sorted(range(len(exact)), key=lambda part: -remainders[part])
    for part in largest[: FINEST - sum(floors)]:
        floors[part] += 1
    return floors


class Blend:
    """An order in which samples of several parts alternate, in the ratio of `shares`, which are whole numbers."""

    def __init__(self, shares: Sequence[int]) -> None:
        self._shares = np.asarray(shares, np.int64)
        self._part = _period(shares)
        # How many samples of the same part precede each entry of the period.
        self._earlier = np.empty(len(self._part), np.int64)
        for part, share in enumerate(shares):
            self._earlier[self._part == part] = np.arange(share)
        # How many of each part precede each whole block of the period, so that `counts` need not read all of it.
        blocks = self._part[: len(self._part) // BLOCK * BLOCK].reshape(-1, BLOCK)
        each = np.stack([np.count_nonzero(blocks == part, axis=1) for part in range(len(shares))], axis=1)
        self._before = np.concatenate((np.zeros((1, len(shares)), np.int64), np.cumsum(each, axis=0)))

    def place(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The part that each position of the run reads, and which sample of that part; both have `positions`' shape."""
        periods, entries = np.divmod(positions, len(self._part))
        parts = self._part[entries].astype(np.int64)
        return parts, periods * self._shares[parts] + self._earlier[entries]

    def counts(self, position: int) -> list[int]:
        """How many of the first `position` samples of the run come from each part."""
        periods, entries = divmod(position, len(self._part))
        block = entries // BLOCK
        rest = np.bincount(self._part[block * BLOCK : entries], minlength=len(self._shares))
        return [int(count) for count in periods * self._shares + self._before[block] + rest]


def _period(shares: Sequence[int]) -> NDArray[np.uint16]:
    """The parts in order over one period, by the earliest deadline.

    Take a part with share s of a period D. Its n-th sample (from 0) may not come before position nD/s, and must have
    come by (n + 1)D/s: else the part would be a whole sample ahead or behind. To take always the earliest deadline, of
    those that may come, meets all deadlines (Steiner & Yeomans 1993, level schedules for just-in-time processes).
    """
    period = sum(shares)
    order = np.empty(period, np.uint16)
    arriving: dict[int, list[int]] = {0: list(range(len(shares)))}
    taken, ready = [0] * len(shares), list[tuple[int, int]]()
    for position in range(period):
        for part in arriving.pop(position, ()):
            heapq.heappush(ready, (-(-(taken[part] + 1) * period // shares[part]), part))
        deadline, part = heapq.heappop(ready)
        assert position < deadline
        order[position] = part
        taken[part] += 1
        if taken[part] < shares[part]:
            release = max(position + 1, taken[part] * period // shares[part])
            arriving.setdefault(release, []).append(part)
    return order
