"""From scores to the token that is drawn: what changes the odds, in the order of transformers.

Each rule takes scores [B, V] and returns new ones. A history is all tokens of a row so far, its prompt included.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

History = Sequence[int]


def add_bias(scores_BV: Tensor, histories: Sequence[History], bias: Mapping[tuple[int, ...], float]) -> Tensor:
    """Add to the score of a sequence's last token where the tokens before it have just been written."""
    scores_BV = scores_BV.clone()
    for tokens, value in bias.items():
        before = list(tokens[:-1])
        rows = [row for row, past in enumerate(histories) if not before or list(past[-len(before) :]) == before]
        scores_BV[rows, tokens[-1]] += value
    return scores_BV


def penalise_repetition(scores_BV: Tensor, histories: Sequence[History], penalty: float) -> Tensor:
    """Divide positive scores of written tokens by the penalty, multiply negative ones (Keskar et al. 2019, 4.1)."""
    scores_BV = scores_BV.clone()
    for row, past in enumerate(histories):
        seen = torch.tensor(sorted(set(past)), device=scores_BV.device)
        scores = scores_BV[row, seen]
        scores_BV[row, seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return scores_BV


def forbid_ngrams(scores_BV: Tensor, histories: Sequence[History], size: int) -> Tensor:
    """No sequence of `size` tokens is written twice."""
    scores_BV = scores_BV.clone()
    for row, past in enumerate(histories):
        tokens = list(past)
        last = tokens[len(tokens) - size + 1 :]
        starts = range(len(tokens) - size + 1)
        scores_BV[row, [tokens[i + size - 1] for i in starts if tokens[i : i + size - 1] == last]] = -torch.inf
    return scores_BV


def keep_top_k(scores_BV: Tensor, k: int) -> Tensor:
    """The k likeliest tokens, and those that are as likely as the last of them."""
    least_B1 = scores_BV.topk(min(k, scores_BV.size(1))).values[:, -1:]
    return scores_BV.masked_fill(scores_BV < least_B1, -torch.inf)


def keep_top_p(scores_BV: Tensor, p: float) -> Tensor:
    """The fewest likeliest tokens whose odds together reach p (Holtzman et al. 2020, arXiv:1904.09751)."""
    sorted_BV, id_BV = scores_BV.sort()
    gone_BV = sorted_BV.softmax(-1).cumsum(-1) <= 1 - p
    gone_BV[:, -1] = False
    return scores_BV.masked_fill(gone_BV.scatter(1, id_BV, gone_BV), -torch.inf)


def keep_min_p(scores_BV: Tensor, p: float) -> Tensor:
    """The tokens at least p times as likely as the likeliest (Nguyen et al. 2024, arXiv:2407.01082)."""
    odds_BV = scores_BV.softmax(-1)
    return scores_BV.masked_fill(odds_BV < p * odds_BV.amax(-1, keepdim=True), -torch.inf)
