"""The loss by hand, whole and in slices: columns that are no id of the tokeniser are as good as not there."""

import math

import pytest
import torch

from model.loss import Reference, Teacher, divergences, token_losses, weighted_loss
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


# A teacher that gives the ids 3 and 1 odds of 1/2 and 1/4, and all others together 1/4.
TEACHER = Teacher(torch.tensor([[[3, 1]]]), torch.tensor([[[1 / 2, 1 / 4, 1 / 4]]]).log(), torch.tensor([0.25, 1.0]))
# The model gives them 6/12 and 2/12, the others 4/12: 1/2 ln 1 + 1/4 ln (6/4) + 1/4 ln (3/4)
DIVERGENCE = math.log(3 / 2) / 4 + math.log(3 / 4) / 4
# the model's shares, less the teacher's; that of the others is shared as the model shares it: 1 to 3
PULL = [1 / 12 - 1 / 16, 2 / 12 - 1 / 4, 3 / 12 - 3 / 16, 6 / 12 - 1 / 2, 0, 0]


def test_a_divergence_by_hand() -> None:
    logits = torch.tensor([[LOGITS]], requires_grad=True)
    found = divergences(logits, TEACHER.ids_BSK, TEACHER.odds_BSR, torch.tensor(1.0), 4)
    found.sum().backward()
    assert found.item() == pytest.approx(DIVERGENCE, rel=1e-6) and logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx(PULL, rel=1e-6, abs=1e-7)


def test_hard_and_soft_loss_are_mixed_by_the_share() -> None:
    loss = weighted_loss(torch.tensor([[LOGITS]]), torch.tensor([[3]]), torch.ones(1, 1), 4, other=TEACHER)
    assert loss.item() == pytest.approx(0.75 * math.log(2) + 0.25 * DIVERGENCE, rel=1e-6)


def softened(top: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor, Teacher, torch.Tensor]:
    """Logits, labels, a teacher of whom `top` of 37 ids are known, and its logits; 80 columns."""
    generator = torch.Generator().manual_seed(3)
    logits, theirs = (3 * torch.randn(2, 5, 80, generator=generator) for _ in range(2))
    odds = (theirs[..., :37] / temperature).log_softmax(-1)
    known = odds.topk(top)
    others = odds.scatter(-1, known.indices, -torch.inf).logsumexp(-1, keepdim=True)
    labels = torch.randint(0, 37, (2, 5), generator=generator)
    teacher = Teacher(known.indices, torch.cat((known.values, others), -1), torch.tensor([0.6, temperature]))
    return logits, labels, teacher, theirs


def dense(logits: torch.Tensor, labels: torch.Tensor, teacher: Teacher) -> torch.Tensor:
    """Hinton's loss written out, over the teacher's ids and one outcome for all others."""
    share, temperature = teacher.soft.double()
    odds = (logits[..., :37] / temperature).softmax(-1)
    known = odds.gather(-1, teacher.ids_BSK)
    ours = torch.cat((known, odds.sum(-1, keepdim=True) - known.sum(-1, keepdim=True)), -1)
    p = teacher.odds_BSR.exp()
    soft = torch.where(p > 0, p * (teacher.odds_BSR - ours.clamp_min(1e-30).log()), 0.0).sum(-1)
    hard = torch.nn.functional.cross_entropy(logits[..., :37].flatten(0, 1), labels.flatten(), reduction="none")
    return ((1 - share) * hard.view(2, 5) + share * temperature**2 * soft).mean()


def compared(top: int, temperature: float) -> None:
    """The loss and its gradient, of this rank's columns, against the dense formula in fp64."""
    logits, labels, teacher, _ = softened(top, temperature)
    whole = logits.double().requires_grad_()
    right = dense(whole, labels, teacher._replace(odds_BSR=teacher.odds_BSR.double()))
    right.backward()
    assert whole.grad is not None
    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    rank = torch.distributed.get_rank() if world > 1 else 0
    axis = Axis(world, rank, torch.distributed.group.WORLD if world > 1 else None)
    mine = logits.chunk(world, -1)[rank].clone().requires_grad_()
    found = weighted_loss(mine, labels, torch.full((2, 5), 1 / 5), 37, axis, teacher)
    found.backward()
    assert found.item() == pytest.approx(right.item(), rel=1e-5) and mine.grad is not None
    torch.testing.assert_close(mine.grad.double(), whole.grad.chunk(world, -1)[rank], rtol=1e-4, atol=1e-6)


TEACHERS = [(5, 1.0), (5, 2.5), (37, 2.0)]


@pytest.mark.parametrize(("top", "temperature"), TEACHERS)
def test_a_teacher_as_the_dense_formula(top: int, temperature: float) -> None:
    compared(top, temperature)


def all_compared() -> None:
    for case in TEACHERS:
        compared(*case)


@pytest.mark.parametrize("world", [2, 4])
def test_a_teacher_on_tensor_ranks_as_the_dense_formula(world: int) -> None:
    """Of four ranks the last two hold no entry."""
    run_ranks(world, all_compared)


def test_over_all_ids_the_divergence_is_that_of_the_softened_odds() -> None:
    logits, _, teacher, theirs = softened(37, 2.0)
    found = divergences(logits, teacher.ids_BSK, teacher.odds_BSR, torch.tensor(2.0), 37)
    ours, right = ((each[..., :37] / 2).log_softmax(-1) for each in (logits, theirs))
    torch.testing.assert_close(found, (right.exp() * (right - ours)).sum(-1), rtol=1e-4, atol=1e-5)


def test_others_that_a_model_gives_nothing_make_no_infinite_loss() -> None:
    """The model's other ids have odds below what fp32 can say."""
    logits = torch.tensor([[[0.0, 200.0, -200.0, 200.0]]], requires_grad=True)
    loss = weighted_loss(logits, torch.tensor([[3]]), torch.ones(1, 1), 4, other=TEACHER)
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


# The chosen side's label has odds of 1/2, the rejected one's of 1/6. The reference gave them 1/4 and 1/3: so one gained
# ln 2 and the other lost as much. With a beta of 1/2 that is a margin of ln 2, whose sigmoid is 2/3.
PAIR = torch.tensor([[3, 1]])
GAVE = Reference(torch.tensor([[1 / 4, 1 / 3]]).log(), torch.tensor([[0, 1]]), torch.tensor([0.5]))
BETTER = [n / 72 for n in (1, 2, 3, -6, 0, 0)]  # (1 - 2/3) of beta: 1/6 of the odds' shares, less 1 at the label
WORSE = [n / 72 for n in (-1, 10, -3, -6, 0, 0)]


def preferred(place: slice, ulysses: Axis, beta: float = 0.5) -> tuple[float, list[list[float]]]:
    logits = torch.tensor([[LOGITS, LOGITS]])[:, place].clone().requires_grad_()
    reference = Reference(GAVE.odds_BS[:, place], GAVE.sides_BS[:, place], torch.tensor([beta]))
    weights = torch.tensor([[0.25, 0.75]])[:, place]  # those of a pair add up to its own
    loss = weighted_loss(logits, PAIR[:, place], weights, 4, other=reference, ulysses=ulysses)
    loss.backward()
    assert logits.grad is not None
    return loss.item(), logits.grad[0].tolist()


def test_a_preference_by_hand() -> None:
    loss, (better, worse) = preferred(slice(2), Axis())
    assert loss == pytest.approx(math.log(3 / 2), rel=1e-6)
    assert better == pytest.approx(BETTER, rel=1e-5) and worse == pytest.approx(WORSE, rel=1e-5)
    assert preferred(slice(2), Axis(), beta=0.0)[0] == 1  # the chosen side gained more


def in_parts() -> tuple[float, list[list[float]]]:
    rank = torch.distributed.get_rank()
    return preferred(slice(rank, rank + 1), Axis(2, rank, torch.distributed.group.WORLD))


def test_a_preference_by_hand_where_each_side_lies_on_a_rank_of_its_own() -> None:
    (one, (better,)), (other, (worse,)) = run_ranks(2, in_parts)
    assert one == other == pytest.approx(math.log(3 / 2) / 2, rel=1e-6)
    assert better == pytest.approx(BETTER, rel=1e-5) and worse == pytest.approx(WORSE, rel=1e-5)


def test_of_several_pairs_each_counts_by_its_weight_and_padding_not_at_all() -> None:
    """Pairs of unequal lengths in two samples, packed, against each alone; with labels that are not learned."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 9, 12, generator=generator).requires_grad_()
    labels = torch.randint(0, 12, (2, 9), generator=generator)
    odds = -torch.rand(2, 9, generator=generator)
    sides = torch.tensor([[0, 0, 0, 1, 2, 2, 3, 3, 4], [0, 0, 1, 1, 1, 1, 1, 2, 2]])
    answers = torch.tensor([[0, 1, 1, 1, 0, 1, 1, 1, 0], [0, 1, 0, 0, 1, 1, 1, 0, 0]])
    scale = torch.tensor([[0.5], [2.0]])
    pairs = [(0, slice(0, 4), 3), (0, slice(4, 8), 3), (1, slice(0, 7), 4)]
    weights = torch.zeros(2, 9)
    for row, place, count in pairs:
        weights[row, place] = answers[row, place] * scale[row] / count
    loss = weighted_loss(logits, labels, weights, 12, other=Reference(odds, sides, torch.tensor([0.3])))
    loss.backward()
    alone = logits.detach().double().requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for row, place, _ in pairs:
        gains = alone[row, place].log_softmax(-1).gather(-1, labels[row, place, None])[:, 0] - odds[row, place]
        first = sides[row, place] == sides[row, place][0]
        margin = (gains * answers[row, place] * torch.where(first, 1, -1)).sum()
        total = total - scale[row, 0] * (0.3 * margin).sigmoid().log() / 2
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-6) and logits.grad is not None and alone.grad is not None
    torch.testing.assert_close(logits.grad.double(), alone.grad, rtol=1e-5, atol=1e-7)
