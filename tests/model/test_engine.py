import math
from statistics import mean

import pytest
import torch
from torch import Tensor, nn

from model.engine import build_engine, evaluate, set_learning_rate, train_step
from model.loss import mean_loss
from tests.distributed import run_ranks
from tests.model import training
from tests.model.training import Reference, run_engine, run_plain

STEPS = 20
# Sums of fp32 numbers in another order differ by their rounding, about 1e-7 relative a sum; Adam divides a gradient by
# its own size and so passes the relative error on undiminished. Twenty steps of that stay below these.
LOSS_TOLERANCE = 5e-6
NORM_TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def plain() -> Reference:
    torch.set_num_threads(1)
    return run_plain(STEPS)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("micro", [2, 4])
def test_fp32_trains_like_plain_pytorch(plain: Reference, stage: int, world: int, micro: int) -> None:
    ranks = run_ranks(world, run_engine, f"zero{stage}_fp32", STEPS, micro)
    for step in range(STEPS):
        assert abs(mean(results[step].loss for results in ranks) - plain.losses[step]) <= LOSS_TOLERANCE
        for results in ranks:
            assert math.isclose(results[step].grad_norm, plain.norms[step], rel_tol=NORM_TOLERANCE)
    assert min(plain.norms) > training.CLIP, "clipping was not active"


@pytest.mark.parametrize("name", ["zero1_bf16", "zero2_bf16", "zero3_bf16", "zero1_fp16", "zero2_fp16", "zero3_fp16"])
def test_half_precision_follows_fp32(plain: Reference, name: str) -> None:
    """A weight rounded to p bits is off by 2^-p relative, and so is each activation.

    A logit is a sum over the residual stream that every block adds a rounded term to; the loss moves by at most the
    logits' error. With r = 2^-8 (bf16) or 2^-11 (fp16), logits of size about 1 and 2 layers of 2 additions each, plus
    embedding, final norm and head: 8 roundings, r each in the worst case.
    """
    bound = 8 * 2.0 ** (-8 if name.endswith("bf16") else -11)
    ranks = run_ranks(2, run_engine, name, STEPS)
    for step in range(STEPS):
        assert abs(mean(results[step].loss for results in ranks) - plain.losses[step]) <= bound
    assert not any(result.skipped for results in ranks for result in results)


class Line(nn.Module):
    """y = w x + b with unit weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 2))
        self.bias = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)


def one_step_of_a_line() -> tuple[list[float], list[float], float]:
    config = training.engine_json("zero1_fp32", 2, micro=4, gradient_clipping=0.0)
    config["optimizer"]["params"].update(lr=0.1, weight_decay=0.5)
    engine = build_engine(Line(), config)
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


def skips(rank_with_inf: int) -> list[tuple[bool, float, list[float]]]:
    engine = build_engine(training.model(), training.engine_json("zero1_fp16", 2))
    rank = torch.distributed.get_rank()
    seen = []
    for step, batch in enumerate(training.batches(4)):
        if step in (1, 2) and rank == rank_with_inf:
            engine.module.final_norm.bias.data[0] = math.inf
        result = train_step(engine, training.shares(batch, rank, 2))
        if step in (1, 2):
            engine.module.final_norm.bias.data[0] = 0.0
        seen.append((result.skipped, result.loss_scale, engine.module.embed.weight[0, :2].tolist()))
    return seen


def test_an_overflow_on_one_rank_is_skipped_by_all_and_lowers_the_scale() -> None:
    ranks = run_ranks(2, skips, 1)
    for results in ranks:
        assert [skipped for skipped, _, _ in results] == [False, True, True, False]
        # Hysteresis 2: the first overflow uses up a credit, the second halves the scale.
        assert [scale for _, scale, _ in results] == [65536.0, 65536.0, 32768.0, 32768.0]
        assert results[0][2] == results[1][2] == results[2][2] != results[3][2]
    assert [w for _, _, w in ranks[0]] == [w for _, _, w in ranks[1]]


def evaluated(name: str, count: int) -> tuple[float, float]:
    engine = build_engine(training.model(), training.engine_json(name, torch.distributed.get_world_size()))
    samples = training.batches(2).flatten(0, 1)[:count]
    mask = torch.ones(count, training.CONFIG.seq_length, dtype=torch.bool)
    mask[-1, 5:] = False
    return evaluate(engine, samples, mask, micro_batch=2), engine.training


@pytest.mark.parametrize("name", ["zero1_fp32", "zero3_fp32"])
@pytest.mark.parametrize("count", [1, 7, 16])
def test_evaluation_counts_each_label_once_whatever_the_ranks(name: str, count: int) -> None:
    model, samples = training.model(), training.batches(2).flatten(0, 1)[:count]
    with torch.no_grad():
        full = [mean_loss(model(s[None, :-1]), s[None, 1:], 500).item() * 32 for s in samples[:-1]]
        part = mean_loss(model(samples[-1:, :-1])[:, :5], samples[-1:, 1:6], 500).item() * 5
    expected = (sum(full) + part) / (32 * (count - 1) + 5)
    for loss, _ in run_ranks(2, evaluated, name, count):
        assert loss == pytest.approx(expected, abs=LOSS_TOLERANCE)


def after_rate(rate: float) -> list[float]:
    engine = build_engine(training.model(), training.engine_json("zero1_bf16", 1))
    before = engine.module.embed.weight.clone()
    set_learning_rate(engine, rate)
    train_step(engine, training.shares(training.batches(1)[0], 0, 1))
    return [float(engine.get_lr()[0]), float((engine.module.embed.weight - before).abs().max())]


def test_the_rate_that_is_set_is_the_rate_that_is_used() -> None:
    ((rate, moved),) = run_ranks(1, after_rate, 0.0)
    assert rate == moved == 0.0
    ((rate, moved),) = run_ranks(1, after_rate, 0.25)
    assert rate == 0.25 and moved > 0.2
