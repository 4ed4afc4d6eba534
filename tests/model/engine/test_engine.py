import math

import pytest
import torch
from torch import Tensor, nn

from model.engine.build import initialize
from model.engine.engine import MicroBatch
from model.layout import Layout
from model.loss import token_losses
from tests.distributed import run_ranks
from tests.model import training


class Line(nn.Module):
    """y = w x + b with unit weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 2))
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)


def one_step_of_a_line() -> tuple[list[float], list[float], float]:
    config = training.engine_json("zero1_fp32", 2, micro=8, gradient_clipping=0.0)
    config["optimizer"]["params"].update(lr=0.1, weight_decay=0.5)
    engine = initialize(Line(), config)
    loss = engine(torch.tensor([[3.0, -4.0]])).sum()
    engine.backward(loss)
    engine.step()
    return engine.module.weight.flatten().tolist(), engine.module.bias.tolist(), float(engine.get_global_grad_norm())


def test_one_adamw_step_by_hand() -> None:
    # Gradients: 3, -4 for the weights, 1 for the bias; norm sqrt(9 + 16 + 1). Adam's first step is lr times the sign.
    # Weights: 1 (1 - 0.1 * 0.5) - 0.1 = 0.85 and 0.95 + 0.1 = 1.05; the bias does not decay: 1 - 0.1 = 0.9.
    for weight, bias, norm in run_ranks(2, one_step_of_a_line):
        assert weight == pytest.approx([0.85, 1.05], abs=1e-6)
        assert bias == pytest.approx([0.9], abs=1e-6)
        assert norm == pytest.approx(math.sqrt(26), rel=1e-6)


def first_step(name: str) -> tuple[float, dict[str, Tensor]]:
    subject = training.trainer(name)
    result = training.step(subject, training.batches(1)[0])
    return result.grad_norm, {name: p.detach().clone() for p, name in subject.names.items()}


@pytest.mark.parametrize("name", ["zero0_fp32", "zero1_fp32"])
def test_the_first_norm_and_update_are_those_of_fp64(name: str) -> None:
    """Of two ranks. A sum of 16 x 32 terms or fewer in fp32 is off by some sqrt(512) roundings of 6e-8, 1.4e-6.

    Adam's first update is the rate times g / (|g| + eps): where |g| is above 1e-5, the gradient's errors of at most
    1e-9 move it by a millionth of the rate; the weight itself is rounded by 6e-8 of it.
    """
    plain, samples = training.model().double(), training.batches(1)[0]
    before = {name: p.detach().clone() for name, p in plain.named_parameters()}
    logits = plain(samples[:, :-1])[..., : training.ENTRIES]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), samples[:, 1:].flatten()).backward()
    norm = float(torch.nn.utils.clip_grad_norm_(plain.parameters(), training.CLIP))
    training.plain_optimizer(plain).step()
    for recorded, weights in run_ranks(2, first_step, name):
        assert recorded == pytest.approx(norm, rel=1.4e-6)
        for name, parameter in plain.named_parameters():
            assert parameter.grad is not None and logits.dtype == torch.float64
            clear = parameter.grad.abs() > 1e-5
            moved, expected = (w - before[name] for w in (weights[name].double(), parameter.detach()))
            assert (moved - expected)[clear].abs().max() < 1e-5 * training.LEARNING_RATE + 1.2e-7


def skips(name: str, layout: Layout, rank_with_inf: int) -> list[tuple[bool, float]]:
    subject = training.trainer(name, layout)
    rank = torch.distributed.get_rank()
    seen = []
    for number, samples in enumerate(training.batches(4)):
        # An infinite gradient on one rank: it comes out of the backward pass of one of its parameters.
        parameter = next(iter(subject.names))
        bad = number in (1, 2) and rank == rank_with_inf
        hook = parameter.register_hook(lambda grad: grad * math.inf) if bad else None
        result = training.step(subject, samples)
        if hook:
            hook.remove()
        seen.append((result.skipped, result.loss_scale))
    return seen


OVERFLOWS = [("zero1_fp16", Layout()), ("zero2_fp16", Layout()), ("zero3_fp16", Layout()), ("zero1_fp16", Layout(tp=2))]
OVERFLOWS += [("pipeline_fp16", Layout(pp=2))]


@pytest.mark.parametrize(("name", "layout"), OVERFLOWS)
def test_an_overflow_on_one_rank_is_skipped_by_all_and_lowers_the_scale(name: str, layout: Layout) -> None:
    for results in run_ranks(2, skips, name, layout, 1):
        assert [skipped for skipped, _ in results] == [False, True, True, False]
        # Hysteresis 2: the first overflow uses up a credit, the second halves the scale of the step after it.
        assert [scale for _, scale in results] == [65536.0, 65536.0, 65536.0, 32768.0]


def evaluated(name: str, layout: Layout, count: int) -> float:
    subject = training.trainer(name, layout)
    grid, length = subject.grid, training.CONFIG.seq_length
    samples = training.batches(2).flatten(0, 1)
    weights = torch.ones(16, length)
    weights[count - 1, 5:] = 0
    weights[count:] = 0
    mine = []
    for first in range(grid.dp_rank * 2, 16, 2 * grid.dp):
        rows = slice(first, first + 2)
        mine.append(MicroBatch(samples[rows, :-1], samples[rows, 1:], weights[rows]))
    return subject.evaluate(mine)


EVALUATIONS = [("zero1_fp32", Layout()), ("zero3_fp32", Layout()), ("zero1_fp32", Layout(tp=2, sequence_parallel=True))]
EVALUATIONS += [("zero1_fp32", Layout(ulysses=2)), ("pipeline_fp32", Layout(pp=2))]


@pytest.mark.parametrize(("name", "layout"), EVALUATIONS)
@pytest.mark.parametrize("count", [1, 15])
def test_evaluation_counts_each_label_once_in_every_layout(name: str, layout: Layout, count: int) -> None:
    model, samples = training.model(), training.batches(2).flatten(0, 1)[:count]
    with torch.no_grad():
        losses = token_losses(model(samples[:, :-1]), samples[:, 1:], training.ENTRIES)
    expected = float(losses[:-1].sum() + losses[-1, :5].sum())
    for total in run_ranks(2, evaluated, name, layout, count):
        assert total == pytest.approx(expected, rel=1e-6)


def ramped(sizes: list[int]) -> list[tuple[float, bool]]:
    subject = training.trainer("zero1_fp32")
    results = []
    for size, samples in zip(sizes, training.batches(len(sizes)), strict=True):
        subject.set_global_batch(size)
        results.append(training.step(subject, samples[:size]))
    return [(result.loss, result.skipped) for result in results]


def test_a_growing_batch_trains_like_plain_pytorch() -> None:
    sizes = [4, 4, 4, 8, 8, 12, 16, 16]
    plain = training.model()
    optimizer = training.plain_optimizer(plain)
    expected = []
    for size, samples in zip(sizes, training.batches(len(sizes)), strict=True):
        optimizer.zero_grad()
        loss = training.mean_loss(plain, samples[:size])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), training.CLIP)
        optimizer.step()
        expected.append(loss.item())
    for results in run_ranks(2, ramped, sizes):
        assert not any(skipped for _, skipped in results)
        assert [loss for loss, _ in results] == pytest.approx(expected, abs=5e-6)


def after_rate(rate: float) -> list[float]:
    subject = training.trainer("zero1_bf16")
    weight = subject.deepspeed.module.embed.weight
    before = weight.clone()
    subject.set_learning_rate(rate)
    training.step(subject, training.batches(1)[0])
    return [float(subject.deepspeed.get_lr()[0]), float((weight - before).abs().max())]


def test_the_rate_that_is_set_is_the_rate_that_is_used() -> None:
    ((rate, moved),) = run_ranks(1, after_rate, 0.0)
    assert rate == moved == 0.0
    ((rate, moved),) = run_ranks(1, after_rate, 0.25)
    assert rate == 0.25 and moved > 0.2
