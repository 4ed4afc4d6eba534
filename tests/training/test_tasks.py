"""A model answers while it is trained, and training does not notice."""

from types import SimpleNamespace

import pytest
import torch

from data.tokens import tokenisers
from inference.decode.decoder import Scored
from inference.decode.rows import Request
from inference.sampling import Sampling
from model.layout import Layout
from tests.distributed import run_ranks
from tests.inference.conftest import WORDS
from tests.model import training
from training.tasks import LiveModel

STEPS = 3
PAIRS = [([1, 2, 3], [4, 5]), ([9], [8, 7, 6, 5]), (list(range(1, 30)), [3, 1])]
Found = tuple[list[tuple[float, float]], list[tuple[list[Scored], list[int]]]]
CASES = [
    (4, "zero1_fp32", Layout(tp=2, sequence_parallel=True)),
    (4, "zero2_fp32", Layout(ulysses=2)),
    (4, "zero3_fp32", Layout(tp=2)),
    (2, "zero0_fp32", Layout()),
    (4, "pipeline_fp32", Layout(tp=2, pp=2)),
    (2, "zero3_bf16", Layout()),
    (2, "zero3_offload_bf16", Layout()),
    (2, "zero1_fp16", Layout(tp=2)),
]


def trained(engine: str, layout: Layout, asks: bool) -> Found:
    """Losses and norms of steps, and what is said after each."""
    subject, recipe = training.trainer(engine, layout), SimpleNamespace(model=training.config_for(layout))
    live = LiveModel(subject, tokenisers.train_bpe([WORDS] * 9, 300)) if asks else None
    steps, said = [], []
    for samples in training.batches(STEPS):
        result = training.step(subject, samples)
        steps.append((result.loss, result.grad_norm))
        if live:
            with live.writer(recipe) as writer:  # type: ignore[arg-type]
                request = Request(0, (1, 2, 3), 0, 5)
                (row,) = writer.write([request], Sampling(greedy=True, max_new_tokens=5), lambda row: False)
                said.append((writer.log_odds(PAIRS), row.new))
    return steps, said


@pytest.mark.parametrize(("world", "engine", "layout"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_weights_of_the_moment_answer_as_a_plain_model(world: int, engine: str, layout: Layout) -> None:
    torch.set_num_threads(1)
    silent, asked = (run_ranks(world, trained, engine, layout, asks) for asks in (False, True))
    assert [steps for steps, _ in silent] == [steps for steps, _ in asked]  # bit for bit
    entries = tokenisers.entries(tokenisers.train_bpe([WORDS] * 9, 300))
    half = not engine.endswith("fp32")
    for _, said in asked:
        plain = training.model(training.config_for(layout))
        optimizer = training.plain_optimizer(plain)
        for samples, (scores, written) in zip(training.batches(STEPS), said, strict=True):
            optimizer.zero_grad()
            training.mean_loss(plain, samples).backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), training.CLIP)
            optimizer.step()
            for (before, after), scored in zip(PAIRS, scores, strict=True):
                with torch.no_grad():
                    odds = plain(torch.tensor([[*before, *after][:-1]]))[0, len(before) - 1 :, :entries].log_softmax(-1)
                wanted = sum(float(odds[place, token]) for place, token in enumerate(after))
                assert scored.total == pytest.approx(wanted, rel=2e-2 if half else 1e-4)
            assert 1 <= len(written) <= 5 and max(written) < entries
