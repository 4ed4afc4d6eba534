"""Preferences: the loss is the mean over the pairs of a global batch, packed or not, whatever the layout."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from data.samples.packing import PackedStream
from data.samples.sampling import BlendedStream
from data.tokens.beside import Beside
from data.tokens.shards import Shards
from model.layout import Layout
from model.loss import Reference, token_losses
from recipes.preference import DPO
from tests.distributed import run_ranks
from tests.model import training
from tests.training.test_tuned import BATCH, LENGTH, STEPS, Example, recipe, written
from training.preferred import PreferredSource

BETA, SUFFIX = 0.5, ".reference"
RECIPE = dataclasses.replace(recipe(), dpo=DPO(beta=BETA))


def pairs() -> list[Example]:
    """Short ones, of which several fit into a sample, and long ones."""
    random = np.random.default_rng(6)
    found = []
    for number in range(300):
        prompt, answers = int(random.integers(1, 4)), random.integers(1, 10 if number % 3 else 3, 2).tolist()
        asked, tokens, weights = random.integers(1, training.ENTRIES, prompt).tolist(), [], []
        for side, answer in enumerate(answers, start=1):
            tokens += [*asked, *random.integers(1, training.ENTRIES, answer).tolist(), 0]
            weights += [0] * prompt + [side] * (answer + 1)
        found.append((tokens, weights))
    return found


def opened(prefix: Path, data_from: int = 0) -> PreferredSource:
    shards = Shards([prefix])
    stream, odds = PackedStream(shards, LENGTH, RECIPE.seed), Beside(shards, SUFFIX, np.float32)
    few = [stream.of(index) for index in range(5)]
    places = np.arange(0)
    made: Any = SimpleNamespace(
        tuning=lambda *_: BlendedStream([stream], [1]),
        held_out_examples=lambda *_: stream.read(few),
        held_out_beside=lambda *_: np.zeros((5, LENGTH + 1), np.float32),
        taught=[SimpleNamespace(rows={"train": odds, "validation": places})],
        entries=training.ENTRIES,
    )
    return PreferredSource(RECIPE, made, data_from)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs, and what some reference gave them: near what a model that knows nothing gives."""
    given = pairs()
    path = written(tmp_path_factory.mktemp("preferred") / "s", given)
    noise = np.random.default_rng(7).normal(scale=0.5, size=sum(len(tokens) for tokens, _ in given))
    Path(f"{path}{SUFFIX}").write_bytes((noise - math.log(training.ENTRIES)).astype(np.float32).tobytes())
    return path


def test_sides_weights_and_scale_by_hand(tmp_path: Path) -> None:
    """Two samples: two pairs in one, and a long one in the other. Each pair counts a third of the loss."""
    small = ([7, 5, 0, 7, 6, 6, 0], [0, 1, 1, 0, 2, 2, 2])
    large = ([8, *[3] * 12, 0, 8, *[4] * 14, 0], [0, *[1] * 13, 0, *[2] * 15])
    path = written(tmp_path / "s", [small, small, large])
    Path(f"{path}{SUFFIX}").write_bytes(np.arange(44, dtype=np.float32).tobytes())
    shards = Shards([path])
    stream = PackedStream(shards, LENGTH, 1)
    found = stream.read([stream.of(index) for index in range(stream.samples_per_epoch)])
    packed = next(row for row, tokens in enumerate(found.tokens) if tokens[0] == 7)
    assert found.examples[packed].tolist() == [0] * 3 + [1] * 4 + [2] * 3 + [3] * 4 + [4] * 19
    source: Any = SimpleNamespace(tuning=lambda *_: BlendedStream([stream], [1]), entries=training.ENTRIES)
    source.held_out_examples = lambda *_: found
    source.held_out_beside = lambda *_: np.zeros(found.tokens.shape, np.float32)
    source.taught = [SimpleNamespace(rows={"train": Beside(shards, SUFFIX, np.float32), "validation": None})]
    batch = PreferredSource(RECIPE, source).training(0, 2)
    assert isinstance(batch.other, Reference) and batch.other.beta.tolist() == [BETA]
    row = next(row for row, tokens in enumerate(batch.tokens_BS) if tokens[0] == 7)
    third = 2 / 3 / 5  # the mean over two samples halves it; five labels share it
    one = [third, third, 0, third, third, third]
    assert batch.weights_BS[row].tolist() == pytest.approx([*one, 0, *one, *[0] * 19])
    assert batch.other.sides_BS[row, :14].tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4]
    assert batch.weights_BS[1 - row].sum().item() == pytest.approx(2 / 3)
    assert batch.other.odds_BS[1 - row, :29].tolist() == list(range(15, 44))
    alone = [PreferredSource(RECIPE, source).training(place, 1, (0, 2)) for place in range(2)]
    assert torch.equal(torch.cat([each.weights_BS for each in alone]), batch.weights_BS)


def test_ranks_share_one_batch_and_validation_counts_pairs(prefix: Path) -> None:
    source = opened(prefix)
    (whole,) = source.share(BATCH, 0, 1, 32, BATCH)
    split = [source.share(2, rank, 4, 32, BATCH) for rank in range(4)]
    together = torch.cat([split[(n // 2) % 4][n // 8].weights_BS[n % 2] for n in range(BATCH)]).view(BATCH, -1)
    assert torch.equal(together, whole.weights_BS)
    assert math.isclose(float(whole.weights_BS.sum()), BATCH, rel_tol=1e-6)
    sums = [float(sum(each.weights_BS.sum() for each in parts)) for parts in split]
    assert max(sums) > 1.2 * min(sums), "the ranks must have unequal shares of the pairs"
    again = opened(prefix, data_from=7).training(39, 3, (39, BATCH))  # a branch that begins at 7
    assert torch.equal(again.weights_BS, source.training(32, 3, (32, BATCH)).weights_BS)
    batch = source.validation([3, 4, 5])
    _, weights, sides = source.held_out
    held = sum(len(np.unique(sides[row][weights[row] == 2])) for row in (3, 4))
    assert batch.weights_BS.sum().item() == pytest.approx(held) and batch.weights_BS[2].sum() == 0


def margin(model: torch.nn.Module, tokens: Any, weights: Any, odds: Any) -> torch.Tensor:
    """How much more the chosen side gained, each side alone: neither packed nor padded nor masked."""
    cut, gains = int(np.flatnonzero(weights == 1)[-1]) + 1, []
    for side in (slice(cut), slice(cut, None)):
        example = torch.from_numpy(tokens[side].astype(np.int64))[None]
        counted = torch.from_numpy(weights[side][1:] > 0)
        losses = token_losses(model(example[:, :-1]), example[:, 1:], training.ENTRIES)[0]
        gains.append((-losses - torch.from_numpy(odds[side][1:].copy()))[counted].sum())
    return gains[0] - gains[1]


def plain_steps(prefix: Path) -> list[tuple[float, float, float]]:
    """The loss and the norm of each step in plain PyTorch, and the share of pairs that were right before it."""
    source, model = opened(prefix), training.model()
    stream, odds = source.packed.streams[0], source.odds[0]
    optimizer = training.plain_optimizer(model)
    results = []
    for step in range(STEPS):
        spans = [span for sample in stream.spans(np.arange(step * BATCH, (step + 1) * BATCH)) for span in sample]
        margins = torch.stack(
            [margin(model, *(each.read(*span) for each in (stream.shards, stream.weights, odds))) for span in spans]
        )
        loss = -(BETA * margins).sigmoid().log().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), training.CLIP))
        optimizer.step()
        results.append((loss.item(), norm, float((margins > 0).float().mean())))
    return results


# One set of processes for each kind of engine: DeepSpeed keeps the groups of the first one that it was given.
KINDS = {
    "data": [("zero0_fp32", Layout(), 1), ("zero1_fp32", Layout(), 2), ("zero2_fp32", Layout(), 4)],
    "partitioned": [("zero3_fp32", Layout(), 2)],
    "ulysses": [("zero2_fp32", Layout(ulysses=2), 4), ("zero3_fp32", Layout(ulysses=2), 2)],
    "tensor": [("zero1_fp32", Layout(tp=2), 4)],
    "sequence": [("zero1_fp32", Layout(tp=2, sequence_parallel=True), 2)],
    "pipeline": [("pipeline_fp32", Layout(pp=2), 1), ("pipeline_fp32", Layout(pp=2), 4)],
    "both": [("pipeline_fp32", Layout(tp=2, pp=2), 4)],
    "staged": [("pipeline_fp32", Layout(pp=2, ulysses=2), 4)],
}


def preferred_steps(prefix: Path, cases: list[tuple[str, Layout, int]]) -> list[list[tuple[float, float, float]]]:
    found = []
    for name, layout, micro in cases:
        source, subject = opened(prefix), training.trainer(name, layout, micro)
        grid, results = subject.grid, []
        for step in range(STEPS):
            batches = source.share(micro, grid.dp_rank, grid.dp, step * BATCH, BATCH)
            judged = [
                dataclasses.replace(each, other=each.other._replace(beta=torch.zeros(1)))
                for each in batches
                if isinstance(each.other, Reference)
            ]
            right = subject.evaluate(judged) / BATCH
            result = subject.train_step(batches)
            results.append((result.loss, result.grad_norm, right))
        found.append(results)
    return found


@pytest.fixture(scope="module")
def plain(prefix: Path) -> list[tuple[float, float, float]]:
    torch.set_num_threads(1)
    return plain_steps(prefix)


@pytest.mark.parametrize("kind", KINDS)
def test_one_gradient_whatever_the_layout(prefix: Path, plain: list[tuple[float, float, float]], kind: str) -> None:
    """Data ranks, accumulation, tensor slices, sequence, stages and ZeRO: all as each side alone in plain PyTorch."""
    assert all(0.2 < right < 0.8 for *_, right in plain)
    for runs in run_ranks(4, preferred_steps, prefix, KINDS[kind]):
        for case, results in zip(KINDS[kind], runs, strict=True):
            for (loss, norm, right), (wanted, wanted_norm, share) in zip(results, plain, strict=True):
                assert abs(loss - wanted) <= 5e-6, case
                assert math.isclose(norm, wanted_norm, rel_tol=2e-5), case
                assert abs(right - share) <= 1e-6, case
