"""Layouts do not change the numbers: every one that fits on four processes trains like plain PyTorch."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from data.samples import objectives
from model.engine.build import build
from model.engine.engine import MicroBatch, StepResult
from model.layout import Layout, stage_boundaries
from model.loss import Teacher
from model.parallel import slice_of
from recipes.registry import load
from tests.distributed import run_ranks
from tests.model import training
from tests.model.training import Reference, run_engine, run_plain

STEPS = 20
FEW_STEPS = 3  # for accumulation, four times the work a step; all 20 agree as well
# Sums of fp32 numbers in another order differ by their rounding, about 1e-7 relative a sum; Adam divides a gradient by
# its own size and so passes the relative error on undiminished. Twenty steps of that stay below these.
LOSS_TOLERANCE = 5e-6
NORM_TOLERANCE = 1e-5

Case = tuple[int, str, Layout]


def cases() -> list[Case]:
    found: list[Case] = []
    for world, tp, pp, ulysses in itertools.product((1, 2, 4), (1, 2, 4), (1, 2, 4), (1, 2)):
        if world % (tp * pp * ulysses):
            continue
        for sequence_parallel in (False, True) if tp > 1 else (False,):
            layout = Layout(tp, pp, ulysses, sequence_parallel)
            if training.CONFIG.num_attention_heads % (tp * ulysses) == 0:
                engines = ["pipeline_fp32"] if pp > 1 else [f"zero{stage}_fp32" for stage in range(4)]
                found += [(world, engine, layout) for engine in engines]
    return found


def name_of(case: Case) -> str:
    world, engine, layout = case
    letters = f"tp{layout.tp}pp{layout.pp}u{layout.ulysses}" + ("sp" if layout.sequence_parallel else "")
    return f"{engine}-{world}-{letters}"


@pytest.fixture(scope="module")
def plain() -> Reference:
    torch.set_num_threads(1)
    return run_plain(STEPS)


@pytest.fixture(scope="module")
def deep() -> Reference:
    """Four layers, for layouts of four stages."""
    torch.set_num_threads(1)
    return run_plain(STEPS, training.DEEP)


def both_accumulations(engine: str, layout: Layout, recompute: str) -> list[list[StepResult]]:
    """One micro-batch a step with all activations kept, and four with some recomputed."""
    share = training.GLOBAL_BATCH // layout.data_degree(torch.distributed.get_world_size())
    section = {"granularity": recompute, "interval": 2}
    off = {"granularity": "full", "interval": 10**6}  # the first block only
    return [
        run_engine(engine, STEPS, layout, share, activation_checkpointing=off),
        run_engine(engine, FEW_STEPS, layout, share // 4, activation_checkpointing=section),
    ]


@pytest.mark.parametrize("case", cases(), ids=name_of)
def test_a_layout_trains_like_plain_pytorch(plain: Reference, deep: Reference, case: Case) -> None:
    world, engine, layout = case
    reference = deep if training.config_for(layout) is training.DEEP else plain
    recompute = ("full", "selective")[cases().index(case) % 2]
    for runs in run_ranks(world, both_accumulations, engine, layout, recompute):
        for results in runs:
            for step, result in enumerate(results):
                assert abs(result.loss - reference.losses[step]) <= LOSS_TOLERANCE
                assert math.isclose(result.grad_norm, reference.norms[step], rel_tol=NORM_TOLERANCE)
    assert min(reference.norms) > training.CLIP, "clipping was not active"


HALF = [("zero1_bf16", Layout(tp=2, sequence_parallel=True), 4), ("zero3_bf16", Layout(tp=2), 4)]
HALF += [("pipeline_bf16", Layout(tp=2, pp=2), 4), ("zero2_bf16", Layout(ulysses=2), 4)]
HALF += [("zero1_fp16", Layout(tp=2), 4), ("pipeline_fp16", Layout(pp=2), 4), ("zero3_fp16", Layout(ulysses=2), 2)]
HALF += [("zero2_offload_bf16", Layout(), 2), ("zero3_offload_bf16", Layout(), 2), ("long_sequence_bf16", Layout(), 2)]
HALF += [(f"zero{stage}_{dtype}", Layout(), 2) for stage in (1, 2, 3) for dtype in ("bf16", "fp16")]


def half_a_share(layout: Layout, world: int) -> int:
    """The micro-batch that makes an accumulation of two."""
    return training.GLOBAL_BATCH // layout.data_degree(world) // 2


@pytest.mark.parametrize(("name", "layout", "world"), HALF)
def test_half_precision_follows_fp32(plain: Reference, name: str, layout: Layout, world: int) -> None:
    """A weight rounded to p bits is off by 2^-p relative, and so is each activation.

    A logit is a sum over the residual stream that every block adds rounded terms to; the loss moves by at most the
    logits' error. With r = 2^-9 (bf16 rounds to half of 2^-8) or 2^-12 (fp16), logits of size about 1, two additions in
    each of 2 layers, embedding, final norm, head and the weights themselves: 8 roundings, r each in the worst case.
    """
    bound = 8 * 2.0 ** (-9 if name.endswith("bf16") else -12)
    for results in run_ranks(world, run_engine, name, STEPS, layout, half_a_share(layout, world)):
        for step, result in enumerate(results):
            assert abs(result.loss - plain.losses[step]) <= bound
            assert not result.skipped


def overlapped_and_not(name: str) -> list[list[tuple[float, float]]]:
    both = []
    for overlap in (True, False):
        section = {**training.engine_json(name, 1)["zero_optimization"], "overlap_comm": overlap}
        both.append([(r.loss, r.grad_norm) for r in run_engine(name, 3, zero_optimization=section)])
    return both


@pytest.mark.parametrize("name", ["zero1_fp16", "zero2_bf16", "zero2_fp32"])
def test_sending_during_the_backward_pass_gives_the_same_bits(name: str) -> None:
    """With four micro-batches a step. On a CPU this proves the way that gradients take, not the order in time."""
    assert training.engine_json(name, 1)["zero_optimization"]["overlap_comm"] is True
    for overlapped, plain in run_ranks(2, overlapped_and_not, name):
        assert overlapped == plain


def test_hierarchical_partitioning_follows_fp32(plain: Reference) -> None:
    """ZeRO++'s secondary copy of the weights inside a node (Wang et al. 2023, arXiv:2306.10209), two ranks a node."""
    section = {"stage": 3, "zero_hpz_partition_size": 2}
    micro = half_a_share(Layout(), 4)
    for results in run_ranks(4, run_engine, "zero3_hpz_bf16", STEPS, Layout(), micro, zero_optimization=section):
        for step, result in enumerate(results):
            assert abs(result.loss - plain.losses[step]) <= 8 * 2.0**-9


def run_objective(objective: str, name: str, layout: Layout) -> list[StepResult]:
    """Five steps of another objective, or of documents that do not see each other, every rank's batches cut from the
    same global ones."""
    config = dataclasses.replace(training.CONFIG, objective="causal" if objective == "documents" else objective)
    dp = layout.data_degree(torch.distributed.get_world_size())
    subject = build(config, layout, training.engine_json(name, dp), training.SEED, training.ENTRIES)
    results = []
    for samples in training.batches(5).numpy():
        positions = np.arange(len(samples))
        if objective == "masked":
            examples = objectives.masked(samples, positions, 0, objectives.Masking(), 499, training.ENTRIES)
        elif objective == "prefix":
            examples = objectives.prefix(samples, positions, 0)
        else:
            examples = objectives.causal(samples)
        apart = objectives.documents(samples[:, :-1] % 9, 0) if objective == "documents" else None
        whole = [examples.tokens, examples.labels, examples.weights, examples.prefix, apart]
        mine = [slice(first, first + 2) for first in range(subject.grid.dp_rank * 2, len(samples), 2 * subject.grid.dp)]
        cut = [[None if part is None else torch.from_numpy(part[rows]) for part in whole] for rows in mine]
        results.append(subject.train_step([MicroBatch(*parts) for parts in cut]))
    return results


OBJECTIVES = [("masked", "zero2_fp32", Layout(ulysses=2), 2), ("masked", "pipeline_fp32", Layout(tp=2, pp=2), 4)]
OBJECTIVES += [("prefix", "zero1_fp32", Layout(tp=2, sequence_parallel=True), 2), ("prefix", "zero3_fp32", Layout(), 2)]
OBJECTIVES += [("documents", "zero1_fp32", Layout(tp=2, sequence_parallel=True), 2)]
OBJECTIVES += [("documents", "zero2_fp32", Layout(ulysses=2), 2), ("documents", "pipeline_fp32", Layout(tp=2, pp=2), 4)]


@pytest.mark.parametrize(("objective", "name", "layout", "world"), OBJECTIVES)
def test_other_objectives_do_not_depend_on_the_layout(objective: str, name: str, layout: Layout, world: int) -> None:
    (single,) = run_ranks(1, run_objective, objective, "zero1_fp32", Layout())
    for results in run_ranks(world, run_objective, objective, name, layout):
        for ours, theirs in zip(results, single, strict=True):
            assert abs(ours.loss - theirs.loss) <= LOSS_TOLERANCE
            assert math.isclose(ours.grad_norm, theirs.grad_norm, rel_tol=NORM_TOLERANCE)


def run_taught(name: str, layout: Layout) -> list[StepResult]:
    """Three steps with a teacher that knows 7 ids a token, in fp16 as they are kept."""
    subject = training.trainer(name, layout)
    generator = torch.Generator().manual_seed(5)
    results = []
    for samples in training.batches(3):
        scores = torch.randn(*samples[:, 1:].shape, training.ENTRIES, generator=generator).mul(3).log_softmax(-1)
        known = scores.topk(7)
        others = (1 - known.values.exp().sum(-1, keepdim=True)).log()
        odds, soft = torch.cat((known.values, others), -1).half(), torch.tensor([0.5, 2.0])
        mine = training.micro_batches(samples, subject.grid.dp_rank, subject.grid.dp)
        theirs = [
            training.micro_batches_of(each, subject.grid.dp_rank, subject.grid.dp) for each in (known.indices, odds)
        ]
        taught = [
            dataclasses.replace(each, other=Teacher(*parts, soft)) for each, *parts in zip(mine, *theirs, strict=True)
        ]
        results.append(subject.train_step(taught))
    return results


TAUGHT = [("zero2_fp32", Layout(ulysses=2), 2), ("pipeline_fp32", Layout(tp=2, pp=2), 4)]
TAUGHT += [("zero1_fp32", Layout(tp=2, sequence_parallel=True), 4), ("zero3_fp32", Layout(), 2)]


def test_a_teacher_does_not_depend_on_the_layout() -> None:
    (single,) = run_ranks(1, run_taught, "zero1_fp32", Layout())
    assert len({result.loss for result in single}) == 3
    for name, layout, world in TAUGHT:
        for results in run_ranks(world, run_taught, name, layout):
            for ours, theirs in zip(results, single, strict=True):
                assert abs(ours.loss - theirs.loss) <= LOSS_TOLERANCE
                assert math.isclose(ours.grad_norm, theirs.grad_norm, rel_tol=NORM_TOLERANCE)


def born(name: str, layout: Layout) -> int:
    subject = training.trainer(name, layout)
    held = {n: p.detach().clone() for p, n in subject.names.items()}
    for parameter, n in subject.names.items():
        cut = slice_of(parameter)
        whole = training.model().get_parameter(n)
        assert torch.equal(held[n], cut.of(whole) if cut else whole), n
    return sum(p.numel() for p in held.values())


@pytest.mark.parametrize(("name", "layout"), [("zero1_fp32", Layout(tp=4)), ("pipeline_fp32", Layout(tp=2, pp=2))])
def test_a_rank_is_born_with_its_slice_of_the_plain_weights(name: str, layout: Layout) -> None:
    assert max(run_ranks(4, born, name, layout)) < 0.5 * training.CONFIG.num_parameters


def lopsided() -> float:
    """The gradient norm when a sliced parameter is not marked."""
    subject = training.trainer("zero1_fp32", Layout(tp=2))
    for parameter in subject.names:
        if hasattr(parameter, "tensor_model_parallel"):
            del parameter.tensor_model_parallel
    return training.step(subject, training.batches(1)[0]).grad_norm


def test_trap_an_unmarked_slice_makes_the_norm_wrong_in_silence(plain: Reference) -> None:
    """Why `mark_slice` marks for DeepSpeed; when this fails, DeepSpeed has learnt to see slices by itself."""
    for norm in run_ranks(2, lopsided):
        assert not math.isclose(norm, plain.norms[0], rel_tol=1e-3)


def test_stages_are_balanced_by_cost() -> None:
    cuts = stage_boundaries(load("530b").model, 35)
    assert [b - a for a, b in itertools.pairwise(cuts)] == [5, *[3] * 33, 5]  # three blocks a stage, and the ends
    small = training.DEEP  # its head costs two thirds of a block
    assert stage_boundaries(small, 4) == [0, 3, 4, 5, 8]
    assert stage_boundaries(small, 1) == [0, 8]
    assert stage_boundaries(load("345m").model, 2) == [0, 16, 28]  # the head is worth four blocks: 14 and 10


@pytest.mark.parametrize(
    ("layout", "world", "words"),
    [
        (Layout(tp=3), 3, r"num_attention_heads 4 does not divide by tp x ulysses degree 3; .*: 2, 4"),
        (Layout(pp=8), 8, "layout.pp 8 is more than model.num_layers 2"),
        (Layout(sequence_parallel=True), 1, "needs layout.tp above 1"),
        (Layout(tp=2), 5, r"does not divide 5 ranks; .*: 4, 6"),
    ],
)
def test_a_layout_that_cannot_be_names_the_nearest(layout: Layout, world: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layout.check(training.CONFIG)
        layout.data_degree(world)
