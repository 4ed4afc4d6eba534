import numpy as np
import pytest

from data.samples.objectives import Masking, causal, documents, masked, prefix

SAMPLES = np.arange(1, 67).reshape(2, 33)
POSITIONS = np.array([10, 11])
MASK, ENTRIES = 100, 90


def test_causal_guesses_each_next_token() -> None:
    examples = causal(SAMPLES)
    assert (examples.labels == examples.tokens + 1).all()
    assert examples.weights == pytest.approx(1 / 32) and examples.prefix is None


def test_masked_guesses_its_share_and_nothing_else() -> None:
    examples = masked(SAMPLES, POSITIONS, 0, Masking(share=0.25), MASK, ENTRIES)
    counted = examples.weights > 0
    assert counted.sum(1).tolist() == [8, 8] and examples.weights.sum(1) == pytest.approx([1, 1])
    assert (examples.labels == SAMPLES[:, :-1]).all()
    assert (examples.tokens == examples.labels)[~counted].all()


def test_masked_tokens_become_the_mask_a_stranger_or_stay() -> None:
    samples = np.tile(np.arange(2001), (50, 1)) % 90
    examples = masked(samples, np.arange(50), 0, Masking(), MASK, ENTRIES)
    counted = examples.weights > 0
    assert counted.sum() == 50 * 200
    shown, truth = examples.tokens[counted], examples.labels[counted]
    # Shares of 10,000 draws: five standard deviations are 5 sqrt(p (1 - p) / 10,000).
    assert (shown == MASK).mean() == pytest.approx(0.8, abs=0.02)
    assert ((shown != MASK) & (shown != truth)).mean() == pytest.approx(0.1 * 0.99, abs=0.015)
    assert shown[shown != MASK].max() < ENTRIES  # a stranger is an id that the tokeniser has
    everything = masked(samples, np.arange(50), 0, Masking(1.0, 1.0, 0.0), MASK, ENTRIES)
    assert (everything.tokens == MASK).all()


def test_prefix_guesses_what_follows_the_prefix() -> None:
    examples = prefix(SAMPLES, POSITIONS, 0)
    assert examples.prefix is not None
    for row, length in enumerate(examples.prefix):
        counted = examples.weights[row] > 0
        guessed = examples.labels[row][counted]
        assert guessed.tolist() == SAMPLES[row, length:].tolist()  # all tokens past the prefix, and none of it
        assert examples.weights[row].sum() == pytest.approx(1)


@pytest.mark.parametrize("make", [lambda s, p: masked(s, p, 3, Masking(), MASK, ENTRIES), lambda s, p: prefix(s, p, 3)])
def test_what_is_drawn_depends_on_the_position_alone(make: object) -> None:
    both = make(SAMPLES, POSITIONS)  # type: ignore[operator]
    alone = make(SAMPLES[1:], POSITIONS[1:])  # type: ignore[operator]
    assert (both.tokens[1] == alone.tokens[0]).all() and (both.weights[1] == alone.weights[0]).all()
    elsewhere = make(SAMPLES[1:], POSITIONS[:1])  # type: ignore[operator]
    assert (elsewhere.weights != alone.weights).any()


@pytest.mark.parametrize("wrong", [(0.0, 0.8, 0.1), (1.1, 0.8, 0.1), (0.1, 0.8, 0.3), (0.1, -0.1, 0.1)])
def test_shares_that_cannot_be_are_refused(wrong: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="masked tokens"):
        Masking(*wrong)


def test_documents_by_hand() -> None:
    tokens = np.array([[5, 0, 6, 7, 0, 0, 8], [1, 2, 3, 4, 5, 6, 7]])
    assert documents(tokens, 0).tolist() == [[0, 0, 1, 1, 1, 2, 3], [0] * 7]
