"""Tuning: the loss is the mean over the answers of a global batch, packed or not, whatever the layout."""

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
from data.tokens.shards import WEIGHTS, Shards
from model.layout import Layout
from model.loss import token_losses
from recipes.recipe import Data, Recipe
from recipes.registry import load
from tests.data.tokens.test_shards import write
from tests.distributed import run_ranks
from tests.model import training
from training.tuned import TunedSource

STEPS, BATCH, LENGTH = 3, training.GLOBAL_BATCH, training.CONFIG.seq_length
Example = tuple[list[int], list[int]]  # tokens, weights


def examples() -> list[Example]:
    """Of two kinds: long prompts with an answer of one token, and short prompts with long answers."""
    random = np.random.default_rng(5)
    found = []
    for number in range(300):
        prompt, answer = (int(random.integers(8, 20)), 1) if number % 3 else (2, int(random.integers(5, 25)))
        tokens = random.integers(1, training.ENTRIES, prompt + answer).tolist()
        found.append(([*tokens, 0], [0] * prompt + [1] * (answer + 1)))
    return found


def recipe() -> Recipe:
    tiny = load("tiny")
    model = dataclasses.replace(tiny.model, seq_length=LENGTH)
    return dataclasses.replace(tiny, model=model, data=Data(corpus="x", tokeniser="base", template="auto"))


def written(prefix: Path, given: list[Example]) -> Path:
    write(prefix, [tokens for tokens, _ in given])
    Path(f"{prefix}{WEIGHTS}").write_bytes(bytes(weight for _, weights in given for weight in weights))
    return prefix


def opened(prefix: Path, data_from: int = 0) -> TunedSource:
    stream = PackedStream(Shards([prefix]), LENGTH, recipe().seed)
    held_out = stream.read([stream.of(index) for index in range(min(5, stream.samples_per_epoch))])
    made: Any = SimpleNamespace(
        tuning=lambda *_: BlendedStream([stream], [1]), held_out_examples=lambda *_: held_out, entries=training.ENTRIES
    )
    return TunedSource(recipe(), made, data_from)


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("tuned") / "s", examples())


def test_weights_by_hand(tmp_path: Path) -> None:
    """Two samples: three tokens of answers in one, and one in the other. Each counts a fourth of the loss."""
    given = [([1] * 30 + [2, 3, 0], [0] * 30 + [1] * 3), ([4] * 27 + [0], [0] * 27 + [1])]
    source = opened(written(tmp_path / "s", given))
    batch = source.training(0, 2)
    assert batch.tokens_BS.shape == (2, LENGTH) and batch.documents_BS is not None
    assert sorted(batch.weights_BS.sum(1).tolist()) == [2 / 4, 3 * 2 / 4]  # the mean over two samples halves them
    alone = [source.training(place, 1, (0, 2)) for place in range(2)]
    assert torch.equal(torch.cat([each.weights_BS for each in alone]), batch.weights_BS)
    (sample,) = (each for each in alone if each.weights_BS.sum() == 0.5)
    assert sample.labels_BS[0, :29].tolist() == [4] * 26 + [0] + [0, 0]
    assert sample.weights_BS[0].nonzero().flatten().tolist() == [26]
    assert sample.documents_BS is not None and sample.documents_BS[0].tolist() == [0] * 28 + [1] * 4


def test_ranks_share_one_batch_and_a_resume_reads_on(prefix: Path) -> None:
    source = opened(prefix)
    (whole,) = source.share(BATCH, 0, 1, 32, BATCH)
    split = [source.share(2, rank, 4, 32, BATCH) for rank in range(4)]
    together = torch.cat([split[(n // 2) % 4][n // 8].weights_BS[n % 2] for n in range(BATCH)]).view(BATCH, -1)
    assert torch.equal(together, whole.weights_BS)
    assert math.isclose(float(whole.weights_BS.sum()), BATCH, rel_tol=1e-6)
    sums = [float(sum(each.weights_BS.sum() for each in parts)) for parts in split]
    assert max(sums) > 1.2 * min(sums), "the ranks must have unequal shares of the answers"
    again = opened(prefix, data_from=7).training(39, 3, (39, BATCH))  # a branch that begins at 7
    assert torch.equal(again.tokens_BS, source.training(32, 3).tokens_BS)


def test_validation_counts_each_token_of_an_answer_once(prefix: Path) -> None:
    source = opened(prefix)
    batch = source.validation([3, 4, 5])
    assert set(batch.weights_BS.flatten().tolist()) == {0.0, 1.0} and batch.weights_BS[2].sum() == 0
    assert batch.weights_BS[:2].sum() == source.held_out.weights[3:5].sum()


def plain_steps(prefix: Path) -> list[tuple[float, float]]:
    """Each example alone, neither packed nor padded nor masked, in plain PyTorch."""
    source, model = opened(prefix), training.model()
    stream = source.packed.streams[0]
    tokens, weights = stream.shards, Beside(stream.shards, WEIGHTS, np.uint8)
    optimizer = training.plain_optimizer(model)
    results = []
    for step in range(STEPS):
        spans = [span for sample in stream.spans(np.arange(step * BATCH, (step + 1) * BATCH)) for span in sample]
        total = torch.zeros(())
        for start, stop in spans:
            example = torch.from_numpy(tokens.read(start, stop).astype(np.int64))[None]
            counted = torch.from_numpy(weights.read(start, stop)[None, 1:].astype(np.float32))
            total = total + (token_losses(model(example[:, :-1]), example[:, 1:], training.ENTRIES) * counted).sum()
        loss = total / sum(int(weights.read(*span).sum()) for span in spans)
        optimizer.zero_grad()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), training.CLIP))
        optimizer.step()
        results.append((loss.item(), norm))
    return results


# One set of processes for each kind of engine: DeepSpeed keeps the groups of the first one that it was given.
KINDS = {
    "data": [("zero0_fp32", Layout(), 1), ("zero2_fp32", Layout(), 4), ("zero3_fp32", Layout(), 2)],
    "ulysses": [("zero2_fp32", Layout(ulysses=2), 4)],
    "tensor": [("zero1_fp32", Layout(tp=2, sequence_parallel=True), 2)],
    "pipeline": [("pipeline_fp32", Layout(pp=2), 1), ("pipeline_fp32", Layout(pp=2), 4)],
    "both": [("pipeline_fp32", Layout(tp=2, pp=2), 4)],
}


def tuned_steps(prefix: Path, cases: list[tuple[str, Layout, int]]) -> list[list[tuple[float, float]]]:
    found = []
    for name, layout, micro in cases:
        source, subject = opened(prefix), training.trainer(name, layout, micro)
        grid = subject.grid
        batches = [source.share(micro, grid.dp_rank, grid.dp, step * BATCH, BATCH) for step in range(STEPS)]
        found.append([(result.loss, result.grad_norm) for result in map(subject.train_step, batches)])
    return found


@pytest.fixture(scope="module")
def plain(prefix: Path) -> list[tuple[float, float]]:
    torch.set_num_threads(1)
    return plain_steps(prefix)


@pytest.mark.parametrize("kind", KINDS)
def test_one_gradient_whatever_the_layout(prefix: Path, plain: list[tuple[float, float]], kind: str) -> None:
    """Data ranks, accumulation, tensor slices, sequence, stages and ZeRO: all as each example alone in plain PyTorch.

    With four ranks, a data degree of 4 to 1; the shares of the answers of ranks and micro-batches are unequal.
    """
    for runs in run_ranks(4, tuned_steps, prefix, KINDS[kind]):
        for case, results in zip(KINDS[kind], runs, strict=True):
            for (loss, norm), (wanted, wanted_norm) in zip(results, plain, strict=True):
                assert abs(loss - wanted) <= 5e-6, case
                assert math.isclose(norm, wanted_norm, rel_tol=2e-5), case
