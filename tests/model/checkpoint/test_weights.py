"""A checkpoint of weights alone is where any engine begins: it then takes the steps of plain PyTorch."""

from pathlib import Path

import pytest
import torch

from model.checkpoint.format import damage, manifest
from model.checkpoint.read import Reader, load_newest
from model.checkpoint.weights import write_weights
from model.gpt import GPT
from model.init import init_weights
from model.layout import Layout
from tests.distributed import run_ranks
from tests.model import training

STATE = {"step": 0, "consumed_samples": 0}


def other_weights() -> GPT:
    """Weights that no engine begins with by itself."""
    plain = GPT(training.CONFIG)
    init_weights({parameter: name for name, parameter in plain.named_parameters()}, plain.config, training.SEED + 1)
    return plain


def begun_with(name: str, layout: Layout, root: Path) -> list[tuple[float, float]]:
    subject = training.trainer(name, layout)
    assert load_newest(subject, root, print) == STATE and subject.deepspeed.global_steps == 0
    results = [training.step(subject, samples) for samples in training.batches(2)]
    return [(result.loss, result.grad_norm) for result in results]


@pytest.mark.parametrize(
    ("name", "layout"),
    [("zero1_fp32", Layout()), ("zero3_fp32", Layout()), ("pipeline_fp32", Layout(pp=2))],
    ids=["stage 1", "stage 3", "pipeline"],
)
def test_an_engine_trains_on_from_weights_alone(tmp_path: Path, name: str, layout: Layout) -> None:
    plain = other_weights()
    write_weights(tmp_path, ((n, p.detach()) for n, p in plain.named_parameters()), {}, STATE, 100_000)
    optimizer, expected = training.plain_optimizer(plain), []
    for samples in training.batches(2):
        optimizer.zero_grad()
        loss = training.mean_loss(plain, samples)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), training.CLIP)
        optimizer.step()
        expected.append((loss.item(), float(norm)))
    for found in run_ranks(2, begun_with, name, layout, tmp_path):
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


def test_it_is_a_checkpoint_of_several_files_and_holds_the_weights(tmp_path: Path) -> None:
    weights = {name: parameter.detach() for name, parameter in other_weights().named_parameters()}
    checkpoint = write_weights(tmp_path, weights.items(), {"run": "a"}, STATE, 50_000)
    files = manifest(checkpoint)["files"]
    assert len(files) > 3 and not damage(checkpoint) and manifest(checkpoint)["tie"] == {"run": "a"}
    largest = max(value.nbytes for value in weights.values())
    assert all(facts["bytes"] < max(50_000, largest) + 2000 for facts in files.values())
    reader = Reader(checkpoint)
    assert reader.names() == sorted(weights) and all(reader.whole(name).equal(weights[name]) for name in weights)
