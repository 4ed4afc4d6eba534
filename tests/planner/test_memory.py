"""What a rank holds, against the papers' formulas and tables."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.config import LAYERS, GPTConfig, LoRA
from model.gpt import GPT
from model.layout import Layout
from model.lora import shapes
from model.loss import Teacher, weighted_loss
from planner.memory import block_bytes, checkpoint_bytes, in_flight, peak_bytes, rank_bytes
from planner.work import Variant, Work, step_of, work
from recipes.registry import load
from recipes.settings import override
from support.json_object import JsonObject
from tests.model import training

CHUNKS = Variant(virtual_stages=3)
UNFUSED = Variant(fused=False)
# 22B, 175B, 530B, 1T of Korthikanti et al. 2022, table 3.
MODELS = {
    "22B": Work(48, 6144, 64, 24576, 2048, 51200, 4, 4, tp=8, last_blocks=48),
    "175B": Work(96, 12288, 96, 49152, 2048, 51200, 1, 64, tp=8, pp=8, last_blocks=12, variant=CHUNKS),
    "530B": Work(105, 20480, 128, 81920, 2048, 51200, 1, 280, tp=8, pp=35, last_blocks=3, variant=CHUNKS),
    "1T": Work(128, 25600, 160, 102400, 2048, 51200, 1, 512, tp=8, pp=64, last_blocks=2),
}
GIB = 2**30


@pytest.mark.parametrize(("name", "baseline", "lean"), [
    ("22B", 59.25, 9.56), ("175B", 66.84, 12.35), ("530B", 114.02, 23.08), ("1T", 131.25, 26.56),
])  # fmt: skip
def test_activations_are_those_of_korthikanti(name: str, baseline: float, lean: float) -> None:
    """GiB of activations on the first stage, figure 1: tensor parallelism alone; with sequence parallelism and
    selective recomputation."""
    variant = dataclasses.replace(MODELS[name].variant, fused=False, regathered=True)
    step = dataclasses.replace(MODELS[name], dropout=True, variant=variant)
    whole, scores = block_bytes(step)
    held = step.blocks(0) * in_flight(step, 0)
    assert held * (whole + scores) / GIB == pytest.approx(baseline, rel=1e-3)
    split = dataclasses.replace(step, sequence_parallel=True)
    assert held * block_bytes(split)[0] / GIB == pytest.approx(lean, rel=1e-3)


def test_a_block_alone_is_34_sbh_and_5as() -> None:
    step = Work(1, 1024, 16, 4096, 512, 1024, 2, 2, dropout=True, variant=UNFUSED)
    whole, scores = block_bytes(step)
    sbh = 512 * 2 * 1024
    assert whole == 34 * sbh and scores == pytest.approx(5 * 16 * 512 / 1024 * sbh)
    assert checkpoint_bytes(step) == 2 * sbh
    plain = dataclasses.replace(step, dropout=False)
    assert block_bytes(plain)[0] == 32 * sbh and block_bytes(plain)[1] == pytest.approx(2 * 16 * 512 / 1024 * sbh)


def test_of_frozen_weights_there_are_no_gradients_and_no_states() -> None:
    model, lora = training.CONFIG, LoRA(rank=4, targets=LAYERS)
    held = shapes(model, lora)
    assert lora.num_parameters(model) == sum(map(math.prod, held.values()))
    engine = training.engine_json("zero1_bf16", 2)
    everything, adapters = (rank_bytes(work(model, Layout(), engine, 2, each), 0) for each in (LoRA(), lora))
    share = lora.num_parameters(model) / model.num_parameters
    for part in ("gradients", "optimizer states"):
        assert adapters[part] == pytest.approx(share * float(everything[part]))
    assert adapters["weights"] == everything["weights"]


class Kept:
    """What autograd keeps for the backward pass of a block of code."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def _keep(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor)
        return tensor

    def num_bytes(self, *last: int) -> int:
        """Bytes of the tensors whose last axes are these, a storage counted once."""
        found = [each.untyped_storage() for each in self.tensors if each.shape[-len(last) :] == last]
        return sum({each.data_ptr(): each.nbytes() for each in found}.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("how", ["", "full", "selective"])
@pytest.mark.parametrize("objective", ["causal", "masked", "prefix"])
def test_who_sees_whom_is_kept_as_torch_keeps_it(objective: str, how: str, dtype: torch.dtype) -> None:
    """Three blocks, two samples of 48: a mask in the weights' precision each, or one of a byte where they recompute."""
    model = GPTConfig(3, 32, 4, 48, 100, objective=objective)
    gpt, kept = GPT(model, recompute=(how,) * 3).to(dtype), Kept()
    documents = torch.arange(2 * 48).reshape(2, 48) // 20
    told = {"prefix_B": torch.tensor([3, 5])} if objective == "prefix" else {"documents_BS": documents}
    with kept.hooks:
        gpt(torch.zeros(2, 48, dtype=torch.long), **told)
    engine: JsonObject = {"train_micro_batch_size_per_gpu": 2, "train_batch_size": 2}
    engine |= {"activation_checkpointing": {"granularity": how}, "bf16": {"enabled": dtype == torch.bfloat16}}
    step = work(model, Layout(), engine, 1, apart=objective != "prefix")
    plain = dataclasses.replace(step, apart=False)
    more = rank_bytes(step, 0)["activations"] - rank_bytes(plain, 0)["activations"]
    assert kept.num_bytes(48, 48) == more == 2 * 48 * 48 * (1 if how else 3 * dtype.itemsize)
    assert block_bytes(step)[1] - block_bytes(plain)[1] == 2 * 48 * 48 * dtype.itemsize  # while a block is recomputed


def test_a_teacher_keeps_four_bytes_a_logit_more() -> None:
    def kept(teacher: Teacher | None) -> int:
        held, logits = Kept(), torch.zeros(2, 8, 512, dtype=torch.bfloat16, requires_grad=True)
        with held.hooks:
            weighted_loss(logits, torch.zeros(2, 8, dtype=torch.long), torch.ones(2, 8), 512, other=teacher)
        return held.num_bytes(512)

    teacher = Teacher(torch.arange(4).expand(2, 8, 4), torch.zeros(2, 8, 5), torch.tensor([0.5, 2.0]))
    engine: JsonObject = {"train_micro_batch_size_per_gpu": 2, "train_batch_size": 2, "bf16": {"enabled": True}}
    model = GPTConfig(1, 32, 4, 8, 512)
    parts = [rank_bytes(work(model, Layout(), engine, 1, taught=taught), 0) for taught in (False, True)]
    planned = [float(each["logits and loss"] + each["working memory"]) for each in parts]
    assert kept(teacher) - kept(None) == planned[1] - planned[0] == 4 * 2 * 8 * 512


def test_a_recipe_says_what_its_attention_and_loss_keep() -> None:
    def step(*settings: str) -> Work:
        engine = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 1}
        return step_of(override(load("tiny"), [*settings]), engine, 1)

    assert (step().apart, step().taught, step().causal) == (False, False, True)
    assert (step("data.separate_documents=true").apart, step("data.separate_documents=true").causal) == (True, False)
    assert step("teacher.model=x").taught and step("model.objective=prefix").apart
    assert step_of(load("tune_sentiment"), {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 1}, 1).apart


@pytest.mark.parametrize(("stage", "expected"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_states_are_those_of_the_zero_paper(stage: int, expected: float) -> None:
    """7.5B parameters on 64 ranks: Rajbhandari et al. 2020, figure 1 and table 1."""
    h = 4096
    layers = round((7.5e9 - 50304 * h) / (12 * h * h))
    step = Work(layers, h, 32, 4 * h, 1024, 50304, 1, 64, dp=64, last_blocks=layers, zero_stage=stage)
    parts = rank_bytes(step, 0)
    held = parts["weights"] + parts["gradients"] + parts["optimizer states"]
    scale = 7.5e9 / float(step.parameters(0))
    assert held * scale / 1e9 == pytest.approx(expected, rel=0.01)


def test_the_first_stage_has_the_most_in_flight() -> None:
    step = MODELS["1T"]
    assert list(in_flight(step, np.arange(64))[[0, 1, 63]]) == [64, 63, 1]
    assert in_flight(dataclasses.replace(step, global_batch=3), 0) == 3
    assert float(peak_bytes(step)) == pytest.approx(sum(map(float, rank_bytes(step, 0).values())))


@pytest.mark.parametrize("pp", [1, 2, 5, 35])
def test_stages_add_up_to_the_model(pp: int) -> None:
    """Every parameter once, the tied embedding twice where two stages hold it."""
    model = GPTConfig(
        num_layers=105, hidden_size=512, num_attention_heads=8, seq_length=128, vocab_size=1000, vocab_multiple=8
    )
    engine = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 8}
    step = work(model, Layout(pp=pp), engine, 1)
    total = sum(int(step.parameters(stage)) for stage in range(pp))
    assert total == model.num_parameters + (pp > 1) * model.padded_vocab_size * model.hidden_size
    assert sum(int(step.blocks(stage)) for stage in range(pp)) == 105
    assert step.model_flops == model.flops_per_token * 8 * 128


def test_offload_and_recomputation_take_memory_away() -> None:
    step = dataclasses.replace(MODELS["22B"], variant=UNFUSED)
    parts = rank_bytes(step, 0)
    offloaded = rank_bytes(dataclasses.replace(step, offload_optimizer=True), 0)
    assert offloaded["optimizer states"] == offloaded["gradients"] == 0
    assert rank_bytes(dataclasses.replace(step, offload_weights=True), 0)["weights"] == 0
    full = rank_bytes(dataclasses.replace(step, full=1.0), 0)
    assert full["activations"] == 48 * checkpoint_bytes(step) < parts["activations"]
    assert full["working memory"] == sum(block_bytes(step))


def test_the_loss_and_a_recomputed_block_are_not_there_at_once() -> None:
    """The loss is done with before the last block is computed again: the larger one counts."""
    step = dataclasses.replace(MODELS["22B"], full=1.0)
    block, logits = float(sum(block_bytes(step))), 10.0 * 4 * 2048 * 51200 / 8
    small, large = rank_bytes(step, 0), rank_bytes(dataclasses.replace(step, vocab_rows=512000), 0)
    assert logits < block < 10 * logits
    assert (small["working memory"], small["logits and loss"]) == (block, 0)
    assert (large["working memory"], large["logits and loss"]) == (0, 10 * logits)


def test_a_pipeline_keeps_whole_what_zero_would_give_away() -> None:
    step = dataclasses.replace(MODELS["175B"], dp=4, global_batch=256)
    held = float(step.parameters(0))
    for zero, gradients, gathered in ((1, 2 * held, None), (2, 2 * held, None), (3, 2 * held, 2 * held)):
        parts = rank_bytes(dataclasses.replace(step, zero_stage=zero), 0)
        assert parts["gradients"] == gradients
        assert gathered is None or parts["communication"] == gathered + 2 * 5e8


def test_hpz_holds_a_second_copy_of_the_weights() -> None:
    """2 bytes a parameter over 64 ranks, and again over the 8 of a node, which offload does not take away; as the
    JSON of the strategy says it."""
    step = dataclasses.replace(MODELS["22B"], tp=1, dp=64, zero_stage=3, hpz=8)
    held = float(step.parameters(0))
    assert rank_bytes(step, 0)["weights"] == pytest.approx(2 * held / 64 + 2 * held / 8)
    assert rank_bytes(dataclasses.replace(step, zero_stage=1), 0)["weights"] == pytest.approx(2 * held)
    offloaded = dataclasses.replace(step, offload_weights=True)
    assert rank_bytes(offloaded, 0)["weights"] == pytest.approx(2 * held / 8)
    model = GPTConfig(num_layers=2, hidden_size=64, num_attention_heads=2, seq_length=16, vocab_size=100)
    batch = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 1}
    root = Path(__file__).resolve().parents[2] / "ds_configs"
    said = {name: json.loads((root / f"zero3_{name}_bf16.json").read_text()) | batch for name in ("hpz", "nvme")}
    steps = {name: work(model, Layout(), engine, 1) for name, engine in said.items()}
    assert (steps["hpz"].hpz, steps["hpz"].nvme) == (8, False)
    assert (steps["nvme"].hpz, steps["nvme"].nvme, steps["nvme"].offload_optimizer) == (1, True, True)


@pytest.mark.parametrize(("zero", "more", "expected"), [
    ({"stage": 1}, {}, (6, 4)), ({"stage": 2}, {}, (4, 2)),
    ({"stage": 1}, {"bf16": {"enabled": True, "immediate_grad_update": True}}, (4, 4)),
    ({"stage": 1, "offload_optimizer": {"device": "cpu"}}, {}, (4, 4)), ({"stage": 1}, {"data_types": {}}, (6, 4)),
    ({"stage": 1}, {"data_types": {"grad_accum_dtype": "bf16"}}, (2, 2)),
    ({"stage": 1}, {"communication_data_type": "bf16"}, (6, 2)),
    ({"stage": 3}, {"communication_data_type": "fp32"}, (4, 4)),
    ({"stage": 1}, {"bf16": {"enabled": False}}, (4, 4)),
    ({"stage": 1}, {"bf16": {"enabled": False}, "fp16": {"enabled": True}, "data_types": {}}, (2, 2)),
])  # fmt: skip
def test_bf16_gradients_as_deepspeed_keeps_them(zero: dict, more: dict, expected: tuple[int, int]) -> None:
    model = GPTConfig(num_layers=2, hidden_size=64, num_attention_heads=2, seq_length=16, vocab_size=100)
    engine = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": zero}
    engine |= {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 1} | more
    step = work(model, Layout(), engine, 1)
    assert (step.gradient_bytes, step.reduce_bytes) == expected
    # What is sent is copied into a bucket before, of as many bytes an element; a stage 3 also holds gathered weights.
    parts = rank_bytes(dataclasses.replace(step, dp=2, global_batch=2), 0)
    gathered = 2 * step.block_matrices * step.weight_bytes if step.zero_stage == 3 else 0
    assert parts["communication"] - gathered == step.parameters(0) * expected[1]


@pytest.mark.parametrize(("name", "more", "hidden", "buckets"), [
    ("zero0_fp32", {"overlap_comm": True}, False, 1), ("zero1_bf16", {"overlap_comm": True}, False, 1),
    ("zero1_fp16", {}, True, 2), ("zero1_fp16", {"overlap_comm": False}, False, 1),
    ("zero1_bf16", {"overlap_comm": True, "offload_optimizer": {"device": "cpu"}}, True, 2),
    ("zero2_bf16", {}, True, 2), ("zero2_bf16", {"stage": 2, "overlap_comm": False}, False, 1),
    ("zero3_bf16", {}, True, 1), ("zero3_bf16", {"overlap_comm": False}, False, 1),
])  # fmt: skip
def test_traffic_is_hidden_where_deepspeed_hides_it(name: str, more: dict, hidden: bool, buckets: int) -> None:
    """overlap_comm counts in ZeRO's own optimizer, not in the bf16 one; its default is true in stage 3 only. Stages 1
    and 2 fill a second bucket while they send the first."""
    model = GPTConfig(num_layers=2, hidden_size=64, num_attention_heads=2, seq_length=16, vocab_size=100)
    engine = json.loads((Path(__file__).resolve().parents[2] / "ds_configs" / f"{name}.json").read_text())
    engine |= {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 1}
    engine["zero_optimization"] |= more
    step = work(model, Layout(), engine, 1)
    assert step.reduction_hidden is hidden and step.variant.gather_hidden is False
    assert step.bucket_bytes == buckets * step.reduce_bytes


@pytest.mark.parametrize(("section", "full", "selective"), [
    ({}, 0, 0), ({"granularity": "full"}, 1, 0), ({"granularity": "full", "interval": 3}, 2 / 5, 0),
    ({"granularity": "selective"}, 0, 1), ({"interval": 2}, 0, 0),
])  # fmt: skip
def test_recomputation_is_what_the_engine_reads(section: dict, full: float, selective: float) -> None:
    """Blocks 0 and 3 of five, as `recomputed_blocks` of the engine has it; an interval alone recomputes nothing."""
    model = GPTConfig(num_layers=5, hidden_size=64, num_attention_heads=2, seq_length=16, vocab_size=100)
    engine = {"activation_checkpointing": section, "train_micro_batch_size_per_gpu": 1, "train_batch_size": 1}
    step = work(model, Layout(), engine, 1)
    assert (step.full, step.selective) == (full, selective)
    from model.engine.config import recomputed_blocks

    blocks = recomputed_blocks(section, 5)
    assert (blocks.count("full") / 5, blocks.count("selective") / 5) == (full, selective)
