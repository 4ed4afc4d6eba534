"""Adapters: what they compute, what trains, and that every layout trains them alike."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from model.checkpoint.base import Base
from model.checkpoint.overlay import fingerprint, reader_of
from model.checkpoint.read import Reader, load_base, load_newest
from model.checkpoint.weights import write_weights
from model.checkpoint.write import save
from model.config import LAYERS, LoRA
from model.engine.build import build
from model.engine.engine import Engine
from model.gpt import GPT
from model.init import initial_value
from model.layout import Layout
from model.lora import A, B, is_adapter
from model.parallel import slice_of
from tests.distributed import run_ranks
from tests.model import training

STEPS = 3
CLIP = 0.05  # below the norms that occur
ADAPTERS = LoRA(rank=4, alpha=8.0, targets=LAYERS)
# Sums of fp32 numbers in another order differ by their rounding, about 1e-7 relative a sum; as in `test_layouts`.
LOSS_TOLERANCE, NORM_TOLERANCE = 5e-6, 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Weights that no seed of ours begins with, as an import writes them."""
    plain = trained_before()
    weights = ((name, parameter.detach()) for name, parameter in plain.named_parameters())
    folder = tmp_path_factory.mktemp("base")
    path = write_weights(folder, weights, {}, {"step": 0, "consumed_samples": 0}, file_bytes=50_000)
    return Base(str(path), fingerprint(path), ADAPTERS.scale)


def trained_before() -> GPT:
    plain = training.model()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return plain


def trainer(name: str, layout: Layout, base: Base, lora: LoRA = ADAPTERS, whole: int = 0, **changes: Any) -> Engine:
    """In stage 3 a rank has parameters of at most `whole` elements whole."""
    dp = layout.data_degree(torch.distributed.get_world_size())
    config = training.engine_json(name, dp, **{"gradient_clipping": CLIP, **changes})
    if config["zero_optimization"]["stage"] == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = whole
    subject = build(training.CONFIG, layout, config, training.SEED, training.ENTRIES, lora)
    load_base(subject, base)
    return subject


Result = tuple[list[tuple[float, float]], dict[str, Tensor], float]


def trained(name: str, layout: Layout, base: Base, root: Path, **changes: Any) -> Result:
    """Losses and norms of steps, the adapters that a checkpoint then holds, and a loss afterwards."""
    subject = trainer(name, layout, base, **changes)
    found = [training.step(subject, samples) for samples in training.batches(STEPS)]
    path = save(subject, root, STEPS, {"step": STEPS}, keep=1)
    reader = Reader(path)
    assert all(map(is_adapter, reader.names())), reader.names()
    batches = training.micro_batches(training.batches(1)[0], subject.grid.dp_rank, subject.grid.dp)
    after = subject.evaluate(batches) / training.GLOBAL_BATCH
    merged = reader_of(path)
    with subject.weights() as weights:
        assert not any(map(is_adapter, weights))
        for n, value in weights.items() if layout.tp == 1 and "fp32" in name else ():
            assert torch.allclose(value, merged.whole(n), rtol=0, atol=1e-6), n
    return [(r.loss, r.grad_norm) for r in found], {n: reader.whole(n) for n in reader.names()}, after


@pytest.fixture(scope="module")
def peft() -> Result:
    """The same in one process of plain PyTorch, with peft's layers in the plain model and peft's values in ours."""
    torch.set_num_threads(1)
    plain = trained_before()
    named = {"r": ADAPTERS.rank, "lora_alpha": ADAPTERS.alpha, "target_modules": list(LAYERS)}
    model = get_peft_model(plain, LoraConfig(**named))  # type: ignore[arg-type]
    adapters = {ours(name): p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name, parameter in adapters.items():
            parameter.copy_(initial_value(name, parameter.shape, training.CONFIG, training.SEED))
    optimizer = torch.optim.AdamW(adapters.values(), training.LEARNING_RATE, (0.9, 0.95), 1e-8, 0.1)
    steps = []
    for samples in training.batches(STEPS):
        optimizer.zero_grad()
        loss = training.mean_loss(model, samples)
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(adapters.values(), CLIP))
        optimizer.step()
        steps.append((loss.item(), norm))
    after = training.mean_loss(model, training.batches(1)[0]).item()
    return steps, {name: p.detach() for name, p in adapters.items()}, after


def ours(name: str) -> str:
    stem = name.removeprefix("base_model.model.")
    return stem.replace(".lora_A.default.weight", A).replace(".lora_B.default.weight", B)


LAYOUTS = [(f"zero{stage}_fp32", Layout(), 2) for stage in range(4)]
LAYOUTS += [("zero1_fp32", Layout(tp=2), 2), ("zero2_fp32", Layout(tp=2, sequence_parallel=True), 2)]
LAYOUTS += [("zero3_fp32", Layout(tp=2), 4), ("zero2_fp32", Layout(ulysses=2), 2), ("pipeline_fp32", Layout(pp=2), 2)]
LAYOUTS += [("pipeline_fp32", Layout(tp=2, pp=2, sequence_parallel=True), 4)]


@pytest.mark.parametrize(("name", "layout", "world"), LAYOUTS)
def test_adapters_train_alike_in_every_layout(
    name: str, layout: Layout, world: int, base: Base, peft: Result, tmp_path: Path
) -> None:
    """Adam divides a gradient g by its size, so an error d of it moves an update by lr d / |g|, and at most by 2 lr.

    For normal g of deviation 1 and d = 1e-6 the mean square of that is 4 d sqrt(2 / pi) lr^2 and the root 1.8e-3 lr:
    few elements make it. A sum that is missing over ranks moves all of them.
    """
    for steps, adapters, after in run_ranks(world, trained, name, layout, base, tmp_path):
        for (loss, norm), (right_loss, right_norm) in zip(steps, peft[0], strict=True):
            assert abs(loss - right_loss) <= LOSS_TOLERANCE
            assert math.isclose(norm, right_norm, rel_tol=NORM_TOLERANCE)
        assert adapters.keys() == peft[1].keys()
        for key, value in adapters.items():
            assert (value - peft[1][key]).norm() <= 2e-3 * value.norm(), key
        assert abs(after - peft[2]) <= LOSS_TOLERANCE
    assert min(norm for _, norm in peft[0]) > CLIP, "clipping was not active"


HALF = [("pipeline_bf16", Layout(pp=2), 2), ("zero1_fp16", Layout(tp=2), 2), ("zero3_bf16", Layout(), 2)]


@pytest.mark.parametrize(("name", "layout", "world"), HALF)
def test_adapters_in_half_precision_follow_fp32(
    name: str, layout: Layout, world: int, base: Base, peft: Result, tmp_path: Path
) -> None:
    """The bound is that of `test_layouts`: 8 roundings."""
    bound = 8 * 2.0 ** (-9 if name.endswith("bf16") else -12)
    for steps, _, _ in run_ranks(world, trained, name, layout, base, tmp_path):
        for (loss, _), (right, _) in zip(steps, peft[0], strict=True):
            assert abs(loss - right) <= bound


def first_loss(name: str, base: Base) -> float:
    """The loss of frozen weights alone, where the adapters are zero."""
    subject = trainer(name, Layout(), base, whole=256)
    return training.step(subject, training.batches(1)[0]).loss


def test_a_second_copy_of_frozen_weights_in_each_node_is_renewed(base: Base) -> None:
    """ZeRO++'s hpZ makes it of the weights that a model is born with."""
    assert run_ranks(4, first_loss, "zero3_hpz_bf16", base) == run_ranks(4, first_loss, "zero3_bf16", base)


def broken_and_not(name: str, layout: Layout, base: Base, root: Path) -> tuple[list[list[tuple[float, float]]], float]:
    """The last steps of a run, and the same by an engine that has read a checkpoint; everything is recomputed. And the
    sum of all numbers that each tensor rank holds whole."""
    section = {"granularity": "full", "interval": 1}
    results = []
    for resumes in (False, True):
        lora = dataclasses.replace(ADAPTERS, dropout=0.25)
        subject = trainer(name, layout, base, lora=lora, whole=256, activation_checkpointing=section)
        if resumes:
            assert load_newest(subject, root, lambda path, reason: None) == {"step": 1}
        for number, samples in list(enumerate(training.batches(STEPS)))[resumes:]:
            torch.manual_seed(number)
            results.append(training.step(subject, samples))
            if not number:
                save(subject, root, 1, {"step": 1}, keep=1)
    found = [(r.loss, r.grad_norm) for r in results]
    copies = sum(float(p.detach().double().sum()) for p in subject.trained if not slice_of(p))
    return [found[1:STEPS], found[STEPS:]], copies


BROKEN = [("zero1_fp32", Layout(tp=2, sequence_parallel=True), 2), ("zero2_bf16", Layout(tp=2), 2)]
BROKEN += [("zero3_fp32", Layout(), 2), ("pipeline_fp32", Layout(pp=2), 2)]


@pytest.mark.parametrize(("name", "layout", "world"), BROKEN)
def test_resumed_adapters_go_on_bit_for_bit(
    name: str, layout: Layout, world: int, base: Base, peft: Result, tmp_path: Path
) -> None:
    """With dropout, which tensor ranks draw alike where they read alike: else their copies of A and B would part."""
    found = run_ranks(world, broken_and_not, name, layout, base, tmp_path)
    for (unbroken, resumed), _ in found:
        assert unbroken == resumed and len(resumed) == STEPS - 1
        assert abs(unbroken[0][1] - peft[0][1][1]) > 1e-3, "nothing was dropped"
    assert layout.tp == 1 or found[0][1] == found[1][1]
