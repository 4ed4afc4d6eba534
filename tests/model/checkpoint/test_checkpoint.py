import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint.format import completed, damage, manifest
from model.checkpoint.index import MOMENTS, WEIGHT
from model.checkpoint.read import Reader, load_newest
from model.checkpoint.write import save
from model.engine.build import build
from model.engine.engine import Engine
from model.layout import Layout
from support.errors import CrashedError
from tests.distributed import run_ranks
from tests.model import training

HALF, STEPS = 3, 6


def steps(subject: Engine, first: int, last: int) -> list[tuple[float, float, float]]:
    results = [training.step(subject, samples) for samples in training.batches(last)[first:]]
    return [(r.loss, r.grad_norm, r.loss_scale) for r in results]


def unbroken(name: str, layout: Layout, root: Path) -> list[tuple[float, float, float]]:
    subject = training.trainer(name, layout)
    steps(subject, 0, HALF)
    save(subject, root, HALF, {"where": HALF}, keep=2)
    return steps(subject, HALF, STEPS)


def resumed(name: str, layout: Layout, root: Path) -> list[tuple[float, float, float]]:
    subject = training.trainer(name, layout)
    state = load_newest(subject, root, print)
    assert state == {"where": HALF} and subject.deepspeed.global_steps == HALF
    return steps(subject, HALF, STEPS)


LAYOUTS = [
    *(
        (name, Layout())
        for name in ("zero0_fp32", "zero1_fp32", "zero1_bf16", "zero1_fp16", "zero2_fp32", "zero2_bf16")
    ),
    *((name, Layout()) for name in ("zero3_fp32", "zero3_bf16", "zero3_fp16")),
    *((name, Layout(tp=2)) for name in ("zero1_bf16", "zero3_fp32")),
    *((name, Layout(pp=2)) for name in ("pipeline_bf16", "pipeline_fp16", "pipeline_fp32")),
    ("zero2_bf16", Layout(ulysses=2)),
    ("zero2_offload_bf16", Layout()),
    ("zero3_offload_bf16", Layout()),
    ("zero3_hpz_bf16", Layout()),
]


@pytest.mark.parametrize(("name", "layout"), LAYOUTS)
def test_a_resumed_run_goes_on_bit_for_bit(name: str, layout: Layout, tmp_path: Path) -> None:
    whole = run_ranks(2, unbroken, name, layout, tmp_path)
    assert run_ranks(2, resumed, name, layout, tmp_path) == whole


def gone_back(root: Path) -> list[float]:
    """A loss at a save, and after a step and the way back, where stage 3 keeps small parameters whole."""
    config = training.engine_json("zero3_fp32", 2)
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 256
    subject = build(training.CONFIG, Layout(), config, training.SEED, training.ENTRIES)
    first, second = training.batches(2)
    training.step(subject, first)
    save(subject, root, 1, {}, keep=1)
    losses = [subject.evaluate(training.micro_batches(first, subject.grid.dp_rank, 2))]
    training.step(subject, second)
    load_newest(subject, root, print)
    return [*losses, subject.evaluate(training.micro_batches(first, subject.grid.dp_rank, 2))]


def test_a_rank_that_goes_back_does_not_keep_the_small_parameters_of_stage_3(tmp_path: Path) -> None:
    for before, after in run_ranks(2, gone_back, tmp_path):
        assert before == after


def shapes() -> dict[str, torch.Size]:
    return {name: p.shape for name, p in training.model().named_parameters()}


def test_another_data_degree_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    """Three steps, and on with half the ranks: the accumulation doubles in the middle of its count."""
    whole = run_ranks(2, unbroken, "zero1_fp32", Layout(), tmp_path)[0]
    rest = run_ranks(1, resumed, "zero1_fp32", Layout(), tmp_path)[0]
    for ours, theirs in zip(rest, whole, strict=True):
        assert ours[:2] == pytest.approx(theirs[:2], rel=1e-5)


SCHEDULERS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "warm-up": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.004, "warmup_num_steps": 8}},
    "cycle": {
        "type": "OneCycle",
        "params": {"cycle_min_lr": 0.001, "cycle_max_lr": 0.003, "cycle_first_step_size": 4, "cycle_min_mom": 0.5},
    },
}


def rates(scheduler: str, first: int, last: int, root: Path | None = None) -> list[tuple[float, float]]:
    """Learning rate and first beta of the steps after `first`; a first half is saved below `root`, a second read."""
    section = SCHEDULERS[scheduler]
    subject = training.trainer("zero1_fp32", micro=16, **({"scheduler": section} if section else {}))
    if root and first:
        assert load_newest(subject, root, print) is not None
    seen = []
    for samples in training.batches(last)[first:]:
        beta = subject.deepspeed.optimizer.param_groups[0]["betas"][0]
        seen.append((training.step(subject, samples, micro=16).learning_rate, beta))
    if root and not first:
        save(subject, root, last, {}, keep=1)
    return seen


def all_rates(root: Path) -> tuple[dict[str, Any], dict[tuple[str, str], Any]]:
    """Unbroken under each scheduler, and under one after a first half under another."""
    whole = {name: rates(name, 0, STEPS) for name in SCHEDULERS}
    for before in SCHEDULERS:
        rates(before, 0, HALF, root / before)
    pairs = [("none", "warm-up"), ("none", "cycle"), ("warm-up", "cycle"), ("cycle", "cycle"), ("cycle", "none")]
    return whole, {(before, after): rates(after, HALF, STEPS, root / before) for before, after in pairs}


def test_a_scheduler_goes_on_at_its_step_whatever_set_the_rate_before(tmp_path: Path) -> None:
    """With the same scheduler, another one, and none before or after; its place is the count of steps taken."""
    ((whole, resumed_rates),) = run_ranks(1, all_rates, tmp_path)
    assert [rate for rate, _ in whole["cycle"]] == pytest.approx([0.001, 0.0015, 0.002, 0.0025, 0.003, 0.0025])
    assert whole["none"] == [(training.LEARNING_RATE, 0.9)] * STEPS  # set from outside, each step
    for (before, after), seen in resumed_rates.items():
        assert seen == whole[after][HALF:], (before, after)


CHANGES = [
    (2, "zero1_fp32", Layout(), 1, "zero3_fp32", Layout()),
    (2, "zero3_fp32", Layout(), 1, "zero1_fp32", Layout()),
    (2, "zero1_fp32", Layout(tp=2, sequence_parallel=True), 2, "pipeline_fp32", Layout(pp=2)),
    (4, "pipeline_fp32", Layout(tp=2, pp=2), 4, "zero2_fp32", Layout(tp=4)),
    (2, "pipeline_fp32", Layout(pp=2), 1, "zero0_fp32", Layout()),
    (1, "zero0_fp32", Layout(), 4, "pipeline_fp32", Layout(tp=2, pp=2)),
]


@pytest.mark.parametrize(("world", "name", "layout", "new_world", "new_name", "new_layout"), CHANGES)
def test_another_layout_reads_the_same_state(
    world: int, name: str, layout: Layout, new_world: int, new_name: str, new_layout: Layout, tmp_path: Path
) -> None:
    """Writing again what another layout has read gives the same numbers."""
    run_ranks(world, unbroken, name, layout, tmp_path)
    before = Reader(tmp_path / f"step-{HALF:08d}")
    run_ranks(new_world, load_and_save_again, new_name, new_layout, tmp_path)
    after = Reader(tmp_path / "again" / f"step-{HALF:08d}")
    assert before.names() == after.names() == sorted(shapes())
    for name in shapes():
        for key in (WEIGHT, *MOMENTS):
            assert torch.equal(before.whole(name, key), after.whole(name, key)), name


def load_and_save_again(name: str, layout: Layout, root: Path) -> None:
    subject = training.trainer(name, layout)
    load_newest(subject, root, print)
    save(subject, root / "again", HALF, {}, keep=1)


def test_reading_needs_no_pickle_and_gives_the_trained_weights(tmp_path: Path) -> None:
    run_ranks(2, unbroken, "zero1_fp32", Layout(), tmp_path)
    files = sorted(p.name for p in (tmp_path / "step-00000003").iterdir())
    assert files == ["index.json", "manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"]
    weights = Reader(tmp_path / "step-00000003").weights(shapes())
    plain = training.model()
    optimizer = training.plain_optimizer(plain)
    for batch in training.batches(HALF):
        optimizer.zero_grad()
        training.mean_loss(plain, batch).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), training.CLIP)
        optimizer.step()
    for name, parameter in plain.named_parameters():
        # Adam's update is at most the learning rate in size; three of them in fp32 agree to a hundredth of one.
        assert (weights[name] - parameter).abs().max() <= training.LEARNING_RATE / 100, name


def two_saves(root: Path) -> None:
    engine = training.trainer("zero1_fp32")
    for step in (1, 2, 3):
        steps(engine, step - 1, step)
        save(engine, root, step, {"where": step}, keep=2)


def newest_state(root: Path) -> tuple[dict[str, Any] | None, list[str]]:
    said: list[str] = []
    return load_newest(training.trainer("zero1_fp32"), root, lambda path, why: said.append(f"{path.name}: {why}")), said


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    run_ranks(2, two_saves, tmp_path)
    assert [p.name for p in completed(tmp_path)] == ["step-00000002", "step-00000003"]
    file = tmp_path / "step-00000003" / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert "is not the file that its manifest describes" in damage(file.parent)
    for state, said in run_ranks(2, newest_state, tmp_path):
        assert state == {"where": 2}
        assert said[0].startswith("step-00000003: ") and "rank-00001.safetensors is not the file" in said[0]
    file.write_bytes(content[:-100])
    assert "bytes where its manifest says" in damage(file.parent)
    file.unlink()
    assert "is missing" in damage(file.parent)
    (tmp_path / "step-00000002" / "manifest.json").write_text("{")
    run_ranks(1, nothing_is_left, tmp_path)


def nothing_is_left(root: Path) -> None:
    engine = training.trainer("zero1_fp32")
    with pytest.raises(ValueError, match=r"no checkpoint below .* can be used: .*manifest.json cannot be read"):
        load_newest(engine, root, print)
    assert load_newest(engine, root / "empty", print) is None


def save_with_a_full_disk(root: Path) -> str:
    engine = training.trainer("zero1_fp32")
    steps(engine, 0, 1)
    save(engine, root, 1, {"where": 1}, keep=2)
    if torch.distributed.get_rank() == 1:  # a limit on the size of files stands in for a full disk: one rank fails
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    with pytest.raises(CrashedError, match=r"could not be written.*last good checkpoint is .*step-00000001") as caught:
        save(engine, root, 2, {"where": 2}, keep=2)
    return str(caught.value)


def test_a_full_disk_on_one_rank_fails_all_and_keeps_the_last_good_one(tmp_path: Path) -> None:
    first, second = run_ranks(2, save_with_a_full_disk, tmp_path)
    assert first == second
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    assert damage(tmp_path / "step-00000001") == ""


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "step-00000004.partial").mkdir()
    assert completed(tmp_path) == []


def test_another_shape_is_refused(tmp_path: Path) -> None:
    run_ranks(1, unbroken, "zero1_fp32", Layout(), tmp_path)
    reader = Reader(tmp_path / "step-00000003")
    with pytest.raises(ValueError, match="another model shape"):
        reader.weights({**shapes(), "blocks.9.norm1.weight": torch.Size((64,))})
    with pytest.raises(ValueError, match="another model shape"):
        reader.weights({**shapes(), "position.weight": torch.Size((64, 64))})


def test_the_manifest_is_plain_json(tmp_path: Path) -> None:
    run_ranks(1, unbroken, "zero1_fp16", Layout(), tmp_path)
    found = manifest(tmp_path / "step-00000003")
    assert found["step"] == found["engine"]["optimizer_step"] == HALF
    assert found["engine"]["loss_scaler"]["cur_scale"] == 65536
    size = (tmp_path / "step-00000003" / "rank-00000.safetensors").stat().st_size
    assert found["files"]["rank-00000.safetensors"]["bytes"] == size
