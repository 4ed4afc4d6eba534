"""The loss, also where the vocabulary is sliced, with a teacher, and of preferences. Axes as in `model/gpt.py`.

K counts the ids of which a teacher's odds are known; R is one more, all other ids together. P counts the pairs of a
sample, as many as there can be.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from model.parallel import SOLO, Axis, added


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


class Teacher(NamedTuple):
    """What a teacher expected in the place of each label.

    `ids_BSK` are its likeliest ids, each below the tokeniser's entries and none twice; `odds_BSR` the logarithms of
    their probabilities at the temperature, and at last of that of all others together, in any precision. `soft` [2]
    holds the share of the loss that the teacher has, and the temperature.
    """

    ids_BSK: Tensor
    odds_BSR: Tensor
    soft: Tensor


def divergences(
    logits_BSV: Tensor, ids_BSK: Tensor, odds_BSR: Tensor, temperature: Tensor, entries: int, tp: Axis = SOLO.tp
) -> Tensor:
    """The Kullback-Leibler divergence of the model from its teacher for every label in nats [B, S], fp32.

    Both are softened by the temperature (Hinton et al. 2015, arXiv:1503.02531, section 2). It is taken over K + 1
    outcomes: the teacher's K likeliest ids, and any other id. That is a lower bound of the divergence over all ids,
    and the same where K is their number. `entries` and `tp` are as in `token_losses`.
    """
    first = tp.rank * logits_BSV.size(-1)
    scores = logits_BSV[..., : max(0, entries - first)].float() / temperature
    odds = odds_BSR.float().softmax(-1)
    return _SlicedDivergence.apply(scores, ids_BSK.long() - first, odds, tp)  # type: ignore[no-any-return,no-untyped-call]


class _SlicedDivergence(Function):
    """The divergence over columns that may be spread over the ranks: an all-reduce of [B, S], and one of [3, B, S]."""

    @staticmethod
    def forward(ctx: Any, scores_BSV: Tensor, ids_BSK: Tensor, teacher_BSR: Tensor, tp: Axis) -> Tensor:
        width = scores_BSV.size(-1)
        if not width:  # a rank that holds no entry: no id is here
            scores_BSV = F.pad(scores_BSV, (0, 1), value=-torch.inf)
        highest = scores_BSV.amax(-1, keepdim=True)
        if tp.size > 1:
            dist.all_reduce(highest, dist.ReduceOp.MAX, group=tp.group)
        odds_BSV = (scores_BSV - highest).exp_()
        here = (ids_BSK >= 0) & (ids_BSK < width)
        index = ids_BSK.where(here, 0)
        known = odds_BSV.gather(-1, index).where(here, 0.0)
        agreed = ((scores_BSV.gather(-1, index) - highest).where(here, 0.0) * teacher_BSR[..., :-1]).sum(-1)
        odds_BSV.scatter_add_(-1, index, -known)  # what is left are the others, without the loss of a difference
        sums = torch.stack((odds_BSV.sum(-1), known.sum(-1), agreed))
        if tp.size > 1:
            dist.all_reduce(sums, group=tp.group)
        others, total = sums[0].clamp_min(torch.finfo(sums.dtype).tiny), sums[0] + sums[1]
        ctx.save_for_backward(odds_BSV, known, teacher_BSR, index, here, others, total)
        ctx.width = width
        return total.log() - sums[2] - teacher_BSR[..., -1] * others.log() - torch.special.entr(teacher_BSR).sum(-1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        odds_BSV, known, teacher_BSR, index, here, others, total = ctx.saved_tensors
        grad = odds_BSV * (1 / total - teacher_BSR[..., -1] / others).unsqueeze(-1)
        mine = known / total.unsqueeze(-1) - teacher_BSR[..., :-1]
        grad.scatter_add_(-1, index, mine.where(here, 0.0))
        return (grad * grads[0].unsqueeze(-1))[..., : ctx.width], None, None, None


class Reference(NamedTuple):
    """What the reference of pairs gave each label: the logarithm of its probability, fp32.

    `sides_BS` is the number of the side that a label belongs to: those of the pair p of a sample are 2 p, the chosen
    one, and 2 p + 1. `beta` [1] is that of direct preference optimisation; with 0 the pairs are counted.
    """

    odds_BS: Tensor
    sides_BS: Tensor
    beta: Tensor


def other_of(tensors: Sequence[Tensor]) -> Teacher | Reference | None:
    """What these tensors are: a pipeline hands on tensors alone."""
    if not tensors:
        return None
    return Teacher(*tensors) if tensors[0].dim() > 2 else Reference(*tensors)


def preferences(losses_BS: Tensor, weights_BS: Tensor, reference: Reference, ulysses: Axis = SOLO.ulysses) -> Tensor:
    """The loss of each pair times its weight, which is the sum of those of its labels: [B, P], a rank's equal share.

    It is -log sigmoid(beta (gain of the chosen side - gain of the rejected one)), where the gain of a side is how much
    likelier its answer became than it was to the reference, in nats (Rafailov et al. 2023, arXiv:2305.18290, equation
    7). With a beta of 0 it is 1 where the chosen side gained more, and else 0. Ulysses ranks have parts of a sample,
    which are added up first.
    """
    odds_BS, sides_BS, beta = reference
    pairs = sides_BS.size(1) * ulysses.size // 2 + 1  # padding is one of them
    gains_BS = torch.where(weights_BS > 0, -losses_BS - odds_BS, 0.0) * (1 - 2 * (sides_BS % 2))
    # A mask, because a GPU adds up in another order each time where many numbers go to one place.
    mine_BSP = (sides_BS // 2).unsqueeze(-1) == torch.arange(pairs, device=sides_BS.device)
    parts = [torch.where(mine_BSP, each.unsqueeze(-1), 0.0).sum(1) for each in (gains_BS, weights_BS)]
    margins_BP, weights_BP = added(torch.stack(parts), ulysses)
    losses_BP = torch.where(beta > 0, F.softplus(-beta * margins_BP), (margins_BP > 0).float())
    return losses_BP * weights_BP / ulysses.size


def weighted_loss(
    logits_BSV: Tensor,
    labels_BS: Tensor,
    weights_BS: Tensor,
    entries: int,
    tp: Axis = SOLO.tp,
    other: Teacher | Reference | None = None,
    ulysses: Axis = SOLO.ulysses,
) -> Tensor:
    """What is trained on: the mean over samples of the weighted sum of each sample's losses.

    With a teacher of share a at temperature T the loss of a label is (1 - a) x its cross entropy + a x T^2 x its
    divergence: T^2 keeps the gradients of both alike in size (Hinton et al. 2015, section 2). With a reference labels
    are those of pairs, see `preferences`.

    In training the weights of a sample add up to 1 over the whole sequence. So every sample counts the same, whatever
    is masked and whatever the layout. The gradient of a loss that is not finite is not finite either: so every rank
    sees it in the gradients, and skips the step.
    """
    losses = token_losses(logits_BSV, labels_BS, entries, tp)
    if isinstance(other, Reference):
        total = preferences(losses, weights_BS, other, ulysses).sum()
    else:
        if other:
            share, temperature = other.soft
            soft = divergences(logits_BSV, other.ids_BSK, other.odds_BSR, temperature, entries, tp)
            losses = (1 - share) * losses + share * temperature**2 * soft
        total = (losses * weights_BS).sum()
    loss = total / labels_BS.size(0)
    return loss * torch.where(loss.detach().isfinite(), 1.0, torch.nan)
