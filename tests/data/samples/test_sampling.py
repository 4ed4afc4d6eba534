from pathlib import Path

import numpy as np
import pytest

from data.samples.sampling import BlendedStream, SampleOrder, TokenStream, shuffled, windows
from data.tokens.shards import Shards
from tests.data.tokens.test_shards import write as write_shard


def write(prefix: Path, documents: list[list[int]]) -> Shards:
    return Shards([write_shard(prefix, documents).prefix])


def starts(order: SampleOrder, first: int, count: int) -> list[int]:
    return order.starts(np.arange(first, first + count)).tolist()


def test_the_order_is_a_function_of_seed_and_position() -> None:
    one, two = SampleOrder(1000, 10, seed=3), SampleOrder(1000, 10, seed=3)
    whole = starts(one, 0, 500)
    assert [starts(two, position, 1)[0] for position in (499, 0, 250)] == [whole[499], whole[0], whole[250]]
    assert starts(two, 90, 30) == whole[90:120]  # across an epoch boundary
    assert starts(SampleOrder(1000, 10, seed=4), 0, 500) != whole


def test_an_epoch_visits_every_sample_once_and_cuts_anew() -> None:
    order = SampleOrder(1000, 10, seed=3)
    epochs = [sorted(starts(order, e * order.samples_per_epoch, order.samples_per_epoch)) for e in range(3)]
    for epoch in epochs:
        assert np.diff(epoch).tolist() == [10] * (order.samples_per_epoch - 1)
        assert 0 <= epoch[0] < 10 and epoch[-1] + 10 + 1 <= 1000
    assert len({epoch[0] for epoch in epochs}) > 1


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 64, 1000])
def test_shuffling_is_a_permutation_that_the_keys_draw(size: int) -> None:
    drawn = {
        tuple(shuffled(np.arange(size), size, np.random.SeedSequence(seed).generate_state(6, np.uint64)).tolist())
        for seed in range(50)
    }
    assert all(sorted(order) == list(range(size)) for order in drawn)
    assert len(drawn) == {1: 1, 2: 2, 3: 6}.get(size, len(drawn)) and (size < 17 or len(drawn) == 50)


def test_shuffling_sends_an_index_anywhere_alike() -> None:
    keys = [np.random.SeedSequence(seed).generate_state(6, np.uint64) for seed in range(3000)]
    places = [int(shuffled(np.array([7]), 10, key)[0]) for key in keys]
    expected = len(keys) / 10
    chi_squared = sum((places.count(place) - expected) ** 2 / expected for place in range(10))
    assert chi_squared < 27.9  # nine degrees of freedom: exceeded once in a thousand draws


def test_a_trillion_samples_take_no_memory() -> None:
    order = SampleOrder(2048 * 10**12, 2048, seed=1)
    found = starts(order, 10**11, 3)
    assert len(set(found)) == 3 and max(found) > 10**12
    assert starts(order, 10**11 + 1, 1)[0] == found[1]


def test_the_parts_of_a_blend_are_cut_each_in_an_order_of_its_own(tmp_path: Path) -> None:
    shards = [write(tmp_path / name, [list(range(start, start + 99))]) for name, start in (("a", 0), ("b", 100))]
    blended = BlendedStream([TokenStream(s, 4, seed=0, stream=n) for n, s in enumerate(shards)], [3, 1])
    samples = blended.batch(0, 40)
    assert (samples[:, 0] >= 100).sum() == 10
    alone = TokenStream(shards[1], 4, seed=0, stream=1).samples(np.arange(10))
    assert np.array_equal(samples[samples[:, 0] >= 100], alone)
    assert not np.array_equal(alone - 100, TokenStream(shards[0], 4, seed=0).samples(np.arange(10)))


def test_a_sample_is_packed_across_documents(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", [[1, 2, 0], [3, 4, 5, 0], [6, 0], [7, 8, 9, 10, 11, 0]])
    stream = TokenStream(shard, seq_length=4, seed=0)
    tokens = [1, 2, 0, 3, 4, 5, 0, 6, 0, 7, 8, 9, 10, 11, 0]
    for sample in stream.samples(np.arange(20)).tolist():
        assert any(tokens[i : i + 5] == sample for i in range(11))


def test_a_batch_does_not_depend_on_how_it_is_cut(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", [list(range(1, 200))])
    stream = BlendedStream([TokenStream(shard, 8, seed=0), TokenStream(shard, 8, seed=0, stream=1)], [2, 1])
    whole = stream.batch(16, 8)
    assert whole.shape == (8, 9)
    assert np.array_equal(whole, np.concatenate([stream.batch(16 + i, 2) for i in (0, 2, 4, 6)]))


def test_too_few_tokens_are_refused(tmp_path: Path) -> None:
    shard = write(tmp_path / "a", [list(range(15))])
    with pytest.raises(ValueError, match="15 tokens make no sample of 8: training needs at least 16"):
        TokenStream(shard, seq_length=8, seed=0)
    TokenStream(write(tmp_path / "b", [list(range(16))]), seq_length=8, seed=0)


@pytest.mark.parametrize("length", [2, 5, 8, 9, 10, 33])
def test_windows_count_every_label_once(length: int) -> None:
    tokens = np.arange(100, 100 + length)
    samples, mask = windows(tokens, 4)
    assert samples[:, 1:][mask].tolist() == tokens[1:].tolist()
    assert samples[:, :-1][mask].tolist() == tokens[:-1].tolist()
    assert mask.sum() == length - 1
