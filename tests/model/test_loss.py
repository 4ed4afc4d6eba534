"""The loss by hand, whole and in slices: columns that are no id of the tokeniser are as good as not there."""

import math

import pytest
import torch

from model.loss import token_losses, weighted_loss
from model.parallel import Axis
from tests.distributed import run_ranks

# Odds 1 : 2 : 3 : 6 for the ids 0 to 3; the rest is louder than all of them.
LOGITS = [math.log(1), math.log(2), math.log(3), math.log(6), 100.0, 100.0]
CASES = [
    # entries, label, loss, gradient: the odds' shares, less one at the label
    (2, 0, math.log(3), [1 / 3 - 1, 2 / 3, 0, 0, 0, 0]),  # a second rank holds none of these entries
    (4, 3, math.log(2), [1 / 12, 2 / 12, 3 / 12, 6 / 12 - 1, 0, 0]),
]


@pytest.mark.parametrize(("entries", "label", "loss", "gradient"), CASES)
def test_by_hand(entries: int, label: int, loss: float, gradient: list[float]) -> None:
    logits = torch.tensor([[LOGITS]], requires_grad=True)
    losses = token_losses(logits, torch.tensor([[label]]), entries)
    losses.sum().backward()
    assert losses.item() == pytest.approx(loss, rel=1e-6) and logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx(gradient, rel=1e-6)


def test_the_weighted_loss_of_a_uniform_model_is_the_log_of_its_entries() -> None:
    logits, labels = torch.zeros(2, 3, 128), torch.randint(0, 100, (2, 3))
    thirds = torch.full((2, 3), 1 / 3)
    assert weighted_loss(logits, labels, thirds, 100).item() == pytest.approx(math.log(100), rel=1e-6)


def test_a_loss_that_is_not_finite_has_no_finite_gradient() -> None:
    """The odds of the label are nothing: the loss is infinite, and its gradient by the book is 1 / 2, -1, 1 / 2."""
    logits = torch.tensor([[[0.0, -math.inf, 0.0]]], requires_grad=True)
    loss = weighted_loss(logits, torch.tensor([[1]]), torch.ones(1, 1), 3)
    loss.backward()
    assert not loss.isfinite() and logits.grad is not None and logits.grad.isnan().all()


def in_slices() -> list[tuple[float, list[float]]]:
    rank, found = torch.distributed.get_rank(), []
    for entries, label, *_ in CASES:
        logits = torch.tensor([[LOGITS[3 * rank : 3 * rank + 3]]], requires_grad=True)
        losses = token_losses(logits, torch.tensor([[label]]), entries, Axis(2, rank, torch.distributed.group.WORLD))
        losses.sum().backward()
        assert logits.grad is not None
        found.append((losses.item(), logits.grad.flatten().tolist()))
    return found


def test_by_hand_on_two_tensor_ranks() -> None:
    for rank, found in enumerate(run_ranks(2, in_slices)):
        for (loss, gradient), (_, _, right, whole) in zip(found, CASES, strict=True):
            assert loss == pytest.approx(right, rel=1e-6)
            assert gradient == pytest.approx(whole[3 * rank : 3 * rank + 3], rel=1e-6)
