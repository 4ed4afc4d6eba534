"""Each rule changes random scores as transformers' own processor does."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inference.decode import rules
from inference.decode.draw import Odds, chance
from inference.sampling import Sampling

B, V, LENGTH = 6, 50, 40
BIAS = {(7,): 2.5, (3, 4): -1.5, (1, 2, 3): 9.0, (8,): -float("inf"), tuple(range(45)): 4.0}
Rule = Callable[[Tensor, list[list[int]]], Tensor]


def scores(seed: int) -> Tensor:
    return torch.randn(B, V, generator=torch.Generator().manual_seed(seed)) * 3


def histories(seed: int) -> Tensor:
    """Rows of few ids, so that sequences occur twice; two of them end as a biased text begins."""
    past = torch.randint(0, 6, (B, LENGTH), generator=torch.Generator().manual_seed(seed))
    past[0, -1], past[1, -2:] = 3, torch.tensor([1, 2])
    return past


CASES: list[tuple[Rule, object]] = [
    (lambda s, h: rules.add_bias(s, h, BIAS), SequenceBiasLogitsProcessor(BIAS)),
    (lambda s, h: rules.penalise_repetition(s, h, 1.7), RepetitionPenaltyLogitsProcessor(1.7)),
    (lambda s, h: rules.penalise_repetition(s, h, 0.6), RepetitionPenaltyLogitsProcessor(0.6)),
    *((lambda s, h, n=n: rules.forbid_ngrams(s, h, n), NoRepeatNGramLogitsProcessor(n)) for n in (1, 2, 3, 4, 99)),
    *((lambda s, h, k=k: rules.keep_top_k(s, k), TopKLogitsWarper(k)) for k in (1, 5, 49, 80)),
    *((lambda s, h, p=p: rules.keep_top_p(s, p), TopPLogitsWarper(p)) for p in (0.01, 0.5, 0.9, 0.999)),
    *((lambda s, h, p=p: rules.keep_min_p(s, p), MinPLogitsWarper(p)) for p in (0.01, 0.3, 1.0)),
]


@pytest.mark.parametrize("number", range(len(CASES)))
def test_a_rule_is_that_of_transformers(number: int) -> None:
    ours, theirs = CASES[number]
    changed = 0
    for seed in range(5):
        given, past = scores(seed), histories(seed)
        before = given.clone()
        found = ours(given, past.tolist())
        assert torch.equal(found, theirs(past, given.clone()))  # type: ignore[operator]
        assert torch.equal(given, before)
        changed += int((found != given).sum())
    assert changed or number in (7, 11)  # 4-grams of 99 tokens, the 80 likeliest of 50


def test_all_rules_together_are_in_the_order_of_transformers() -> None:
    silent = torch.zeros(V)
    silent[[5, 9]] = -torch.inf
    sampling = Sampling(
        temperature=0.7, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.3, no_repeat_ngram=3, seed=1
    )
    bias = {(7,): 2.5, (3, 4): -1.5}
    odds = Odds(sampling, silent, bias, 0)
    theirs = LogitsProcessorList(
        [
            SequenceBiasLogitsProcessor(bias), RepetitionPenaltyLogitsProcessor(1.3), NoRepeatNGramLogitsProcessor(3),
            SuppressTokensLogitsProcessor([5, 9], device="cpu"), TemperatureLogitsWarper(0.7), TopKLogitsWarper(20),
            TopPLogitsWarper(0.9), MinPLogitsWarper(0.02),
        ]
    )  # fmt: skip
    for seed in range(20):
        given, past = scores(seed), histories(seed)
        padding = torch.full((B, 14), 99.0)  # rows that are no id of the tokeniser are far likelier
        assert torch.equal(odds.scores(torch.cat((given, padding), 1), past.tolist()), theirs(past, given))


def test_rows_of_several_lengths_have_each_their_own_history() -> None:
    given, past = scores(1), histories(1).tolist()
    short = [row[-(4 + number) :] for number, row in enumerate(past)]
    for rule in (CASES[0][0], CASES[1][0], CASES[4][0]):
        alone = [rule(given[row : row + 1], [short[row]]) for row in range(B)]
        assert torch.equal(rule(given, short), torch.cat(alone))


def test_ids_are_drawn_as_often_as_they_are_likely() -> None:
    """A binomial count stays within five deviations: by chance it does not once in 1.7 million."""
    count, logits = 4000, torch.tensor([[0.0, 1.0, -1.0, 2.0, 5.0]])
    silent = torch.tensor([0.0, 0.0, 0.0, 0.0, -torch.inf])
    odds = Odds(Sampling(temperature=1.0, top_k=0), silent, {}, 0)
    random = chance(3, [1, 2])
    drawn = Counter(int(odds.draw(logits, [[1]], [random])) for _ in range(count))
    for token, share in enumerate(logits[0, :4].softmax(-1).tolist()):
        assert abs(drawn[token] - share * count) < 5 * (share * (1 - share) * count) ** 0.5
    assert drawn[4] == 0


def test_chance_is_a_function_of_seed_and_prompt() -> None:
    def first(seed: int, prompt: list[int]) -> float:
        return float(chance(seed, prompt).standard_exponential())

    assert first(1, [2, 3]) == first(1, [2, 3])
    assert len({first(1, [2, 3]), first(2, [2, 3]), first(1, [23]), first(1, [3, 2]), first(12, [3])}) == 5


def test_a_text_ends_where_every_id_is_forbidden() -> None:
    odds = Odds(Sampling(top_k=0, no_repeat_ngram=1), torch.zeros(4), {}, 3)
    logits = torch.zeros(2, 4)
    found = odds.draw(logits, [[0, 1, 2, 3], [0, 1, 3]], [np.random.default_rng(1), np.random.default_rng(2)])
    assert found.tolist() == [3, 2]


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_one_line(value: float, greedy: bool) -> None:
    odds = Odds(Sampling(greedy=greedy, top_k=0), torch.zeros(4), {}, 3)
    logits = torch.tensor([[0.0, value, 1.0, 2.0]])
    with pytest.raises(ValueError, match="scores are not finite: its training has diverged; take an earlier"):
        odds.draw(logits, [[0]], [chance(1, [0])])
