"""Whole examples in samples: by hand, and that nothing is lost, cut, or seen from beside."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from data.samples.packing import PackedStream, pack
from data.samples.sampling import BlendedStream
from data.tokens.shards import WEIGHTS, Shards
from support.errors import UserError
from tests.data.tokens.test_shards import write


def stream(prefix: Path, documents: list[list[int]], seq_length: int, seed: int = 0, number: int = 0) -> PackedStream:
    """Examples whose first token weighs nothing, and all others one."""
    shards = Shards([write(prefix, documents).prefix])
    weights = b"".join(bytes([0] + [1] * (len(document) - 1)) for document in documents)
    Path(f"{prefix}{WEIGHTS}").write_bytes(weights)
    return PackedStream(shards, seq_length, seed, number)


def test_packing_by_hand() -> None:
    order, begins = pack(np.array([2, 5, 3, 2, 4, 2]), 6, np.arange(6))
    assert [order[a:b].tolist() for a, b in itertools.pairwise(begins)] == [[1], [4, 0], [2, 3], [5]]
    order, begins = pack(np.array([3, 3, 3, 3, 1, 1, 1]), 7, np.array([6, 5, 4, 3, 2, 1, 0]))
    assert [order[a:b].tolist() for a, b in itertools.pairwise(begins)] == [[3, 2, 6], [1, 0, 5], [4]]


def test_nothing_is_lost_or_cut_and_little_room_is_left() -> None:
    random = np.random.default_rng(3)
    lengths = np.minimum(random.geometric(0.02, 20_000) + 3, 513)
    order, begins = pack(lengths, 513, random.permutation(20_000))
    assert sorted(order.tolist()) == list(range(20_000))
    filled = np.add.reduceat(lengths[order], begins[:-1])
    assert filled.max() <= 513 and filled.mean() / 513 > 0.99


def test_a_sample_by_hand(tmp_path: Path) -> None:
    packed = stream(tmp_path / "s", [[1, 2, 9], [3, 4, 5, 9], [6, 9]], seq_length=6)
    assert packed.samples_per_epoch == 2 and packed.fullness == 9 / 14
    first, second = (packed.read([packed.of(n)]) for n in range(2))
    assert first.tokens.tolist() == [[3, 4, 5, 9, 1, 2, 9]]
    assert first.weights.tolist() == [[0, 1, 1, 1, 0, 1, 1]]
    assert first.examples.tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert second.tokens.tolist() == [[6, 9, 0, 0, 0, 0, 0]]
    assert second.weights.tolist() == [[0, 1, 0, 0, 0, 0, 0]]
    assert second.examples.tolist() == [[0, 0, 1, 1, 1, 1, 1]]


def test_each_epoch_visits_every_example_once_in_another_order(tmp_path: Path) -> None:
    documents = [[100 + n] * (n % 5 + 1) + [9] for n in range(60)]
    packed = stream(tmp_path / "s", documents, seq_length=9)
    count = packed.samples_per_epoch
    epochs = [packed.spans(np.arange(epoch * count, (epoch + 1) * count)) for epoch in range(3)]
    for epoch in epochs:
        assert sorted(span for spans in epoch for span in spans) == sorted(
            span for n in range(count) for span in packed.of(n)
        )
    assert epochs[0] != epochs[1] != epochs[2]
    places = np.arange(3 * count)
    whole = packed.packed(places)
    for place in (0, 1, count, 2 * count + 1):  # a position decides alone, whatever is asked with it
        one = packed.packed(places[place : place + 1])
        assert all((mine[0] == all_of[place]).all() for mine, all_of in zip(one, whole, strict=True))
    assert stream(tmp_path / "t", documents, 9, seed=1).spans(places) != packed.spans(places)


def test_a_blend_of_examples_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    parts = [
        stream(tmp_path / name, [[first + n] * (n % 4 + 1) + [9] for n in range(40)], 7, number=number)
        for number, (name, first) in enumerate((("a", 100), ("b", 200)))
    ]
    blend = BlendedStream(parts, [3, 1])
    whole = blend.batch(0, 60)
    assert (blend.batch(23, 14) == whole[23:37]).all()
    assert [int(sample[0] >= 200) for sample in whole[:40]].count(1) == 10
    assert (blend.filled(0, 60) == np.count_nonzero(whole, axis=1)).all()
    weights = blend.beside(0, 60, [part.weights for part in parts])
    assert weights.dtype == np.uint8 and (weights[whole == 9] == 1).all() and (weights[whole == 0] == 0).all()
    packed = [
        blend.streams[part].packed(index[None]) for part, index in zip(*blend.blend.place(np.arange(60)), strict=True)
    ]
    assert (np.concatenate([each.tokens for each in packed]) == whole).all()


def test_an_example_that_no_longer_fits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has an example of 5 tokens, and a context of 3 takes 4"):
        stream(tmp_path / "s", [[1, 2, 3, 4, 9], [1, 9]], seq_length=3)
