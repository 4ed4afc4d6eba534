"""The loss, also where the vocabulary is sliced. Axes as in `model/gpt.py`."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from model.parallel import SOLO, Axis


def token_losses(logits_BSV: Tensor, labels_BS: Tensor, entries: int, tp: Axis = SOLO.tp) -> Tensor:
    """Cross entropy of every label in nats [B, S], fp32. Columns from `entries` on are left out.

    `entries` is the number of ids of the tokeniser. The other columns are padding, or ids that are never a label.
    With the vocabulary sliced over `tp`, each rank holds its columns only and no rank ever sees all logits (Shoeybi et
    al. 2019, section 3).
    """
    first = tp.rank * logits_BSV.size(-1)
    scores = logits_BSV[..., : max(0, entries - first)].float()
    if tp.size == 1:
        return F.cross_entropy(scores.flatten(0, 1), labels_BS.flatten(), reduction="none").view_as(labels_BS)
    return _SlicedCrossEntropy.apply(scores, labels_BS - first, tp)  # type: ignore[no-any-return,no-untyped-call]


class _SlicedCrossEntropy(Function):
    """Cross entropy over columns that are spread over the ranks: three all-reduces of [B, S]."""

    @staticmethod
    def forward(ctx: Any, scores_BSV: Tensor, labels_BS: Tensor, tp: Axis) -> Tensor:
        width = scores_BSV.size(-1)  # 0 on a rank that holds no entry
        highest = scores_BSV.amax(-1) if width else scores_BSV.new_full(labels_BS.shape, -torch.inf)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=tp.group)
        odds_BSV = (scores_BSV - highest.unsqueeze(-1)).exp()
        total = odds_BSV.sum(-1)
        dist.all_reduce(total, group=tp.group)
        here = (labels_BS >= 0) & (labels_BS < width)
        index = labels_BS.where(here, 0).unsqueeze(-1)
        own = scores_BSV.gather(-1, index).squeeze(-1) - highest if width else torch.zeros_like(total)
        label = own.where(here, 0.0)
        dist.all_reduce(label, group=tp.group)
        ctx.save_for_backward(odds_BSV, total, index, here)
        return total.log() - label

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        odds_BSV, total, index, here = ctx.saved_tensors
        grad = odds_BSV / total.unsqueeze(-1)
        if grad.size(-1):
            grad.scatter_add_(-1, index, -here.to(grad.dtype).unsqueeze(-1))
        return grad * grads[0].unsqueeze(-1), None, None


def weighted_loss(
    logits_BSV: Tensor, labels_BS: Tensor, weights_BS: Tensor, entries: int, tp: Axis = SOLO.tp
) -> Tensor:
    """What is trained on: the mean over samples of the weighted sum of each sample's losses.

    In training the weights of a sample add up to 1 over the whole sequence. So every sample counts the same, whatever
    is masked and whatever the layout. The gradient of a loss that is not finite is not finite either: so every rank
    sees it in the gradients, and skips the step.
    """
    loss = (token_losses(logits_BSV, labels_BS, entries, tp) * weights_BS).sum() / labels_BS.size(0)
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
