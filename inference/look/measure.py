"""From scores to guesses: odds, losses and ranks."""

import torch
from torch import Tensor

from inference.look.seen import Guesses
from inference.sampling import NOT_FINITE
from support.errors import UserError

SHOWN = 5  # of the likeliest tokens


def guesses(scores_SE: Tensor, labels: list[int | None]) -> Guesses:
    """What scores of the tokeniser's ids [S, E] say of each place, and of its label.

    Errors: `UserError` for scores that are no numbers.
    """
    log_odds_SE = scores_SE.float().log_softmax(-1)
    if not bool(log_odds_SE.isfinite().all()):
        raise UserError(NOT_FINITE)
    best = log_odds_SE.topk(min(SHOWN, log_odds_SE.size(1)))
    label_S = torch.tensor([label or 0 for label in labels], device=scores_SE.device)
    unknown_S = torch.tensor([label is None for label in labels], device=scores_SE.device)
    own_S1 = log_odds_SE.gather(1, label_S[:, None])
    rank_S = (log_odds_SE > own_S1).sum(1) + 1
    loss_S = (-own_S1[:, 0]).masked_fill(unknown_S, torch.nan)
    found = (best.indices, best.values.exp(), loss_S, rank_S.masked_fill(unknown_S, 0))
    return Guesses(*(tensor.cpu().numpy() for tensor in found))
