"""The step's time: pieces worked out by hand, and the published runs that it must keep explaining."""

import dataclasses
import itertools

import numpy as np
import pytest

from planner import timing
from planner.hardware import GIGA, TERA, find
from planner.plot import schedule
from planner.work import Variant, Work

# A machine whose rates make the arithmetic exact: every share 1, nothing costs anything besides its work.
IDEAL = dataclasses.replace(
    find("a100-80gb").rates, matmul=1.0, narrow=1.0, memory=1.0, attention=1.0, link=1.0, network=1.0, gather=1.0,
    overlap=1.0, kernel_seconds=0.0, collective_seconds=0.0, step_seconds=0.0,
)  # fmt: skip
GPU = dataclasses.replace(find("a100-80gb"), rates=IDEAL)
MACHINE = timing.Machine(GPU, 8, 200 * GIGA, 300 * GIGA)
TINY = Work(
    num_layers=4, hidden_size=1024, num_attention_heads=16, ffn_hidden_size=4096, seq_length=1024, vocab_rows=4096,
    micro_batch=2, global_batch=8, last_blocks=4,
)  # fmt: skip


def test_a_matrix_product_by_hand() -> None:
    """108 processors, tiles of 256 x 128: 12 x 9 tiles are one full wave, one column more is a second one."""
    depth = 1 << 20  # filling and draining a tile is nothing beside it
    full = timing.matmul_seconds(GPU, 12 * 256, 9 * 128, depth, 312 * TERA)
    ideal = 2 * 12 * 256 * 9 * 128 * depth / (312 * TERA)
    assert full == pytest.approx(ideal, rel=1e-3)
    assert timing.matmul_seconds(GPU, 12 * 256, 10 * 128, depth, 312 * TERA) > 1.5 * full


def test_a_thin_product_takes_as_long_as_reading_it() -> None:
    seconds = timing.matmul_seconds(GPU, 8, 4096, 4096, 312 * TERA)
    assert seconds >= 2 * (8 * 4096 + 4096 * 4096 + 8 * 4096) / (2.039 * TERA)


def test_dimensions_that_miss_the_tensor_cores_are_slow() -> None:
    """A head width of 108, no multiple of 8, as in three rows of BigScience's sweep."""
    slow, fast = (timing.matmul_seconds(GPU, 2048, 2048, width, 312 * TERA, 64) for width in (108, 112))
    assert slow > 5 * fast


def test_fp32_goes_past_the_tensor_cores() -> None:
    single = dataclasses.replace(TINY, weight_bytes=4)
    ratio = timing.products_seconds(single, GPU)[0] / timing.products_seconds(TINY, GPU)[0]
    assert ratio == pytest.approx(312 / 19.5)


def test_a_ring_by_hand() -> None:
    """An all-reduce of 1 GB over 4 ranks at 100 GB/s: 2 x 3/4 x 10 ms; nothing over one rank."""
    assert timing.collective_seconds(MACHINE, 1e9, 4, 1e11, 2) == pytest.approx(0.015)
    assert timing.collective_seconds(MACHINE, 1e9, 1, 1e11, 2) == 0


@pytest.mark.parametrize(("tp", "ulysses", "keys", "expected"), [
    (1, 8, 0, 29_360_128), (2, 4, 0, 25_165_824), (1, 8, 1024, 18_350_080), (1, 1, 0, 0),
])  # fmt: skip
def test_ulysses_ranks_send_what_the_paper_says(tp: int, ulysses: int, keys: int, expected: int) -> None:
    """8,192 tokens of width 4,096, 2 bytes each, over 8 ranks: queries, keys, values and the result of a rank's 1,024
    tokens are 33,554,432 bytes, of which it sends seven eighths. Over 4 ranks and two slices: 4 x 2,048 x 2,048 x 2 x
    3/4. With keys and values of a quarter's width: (2 + 2/4) in place of 4."""
    step = Work(1, 4096, 32, 16384, 8192, 50304, 1, 8, tp=tp, ulysses=ulysses, last_blocks=1,
                variant=Variant(kv_size=keys))  # fmt: skip
    alone = dataclasses.replace(step, seq_length=8192 // ulysses, ulysses=1)  # the tensor ranks' share
    seconds = timing.tensor_seconds(step, MACHINE) - timing.tensor_seconds(alone, MACHINE)
    assert seconds * 300 * GIGA == pytest.approx(expected)


@pytest.mark.parametrize(("zero", "kept", "sent", "expected"), [
    (0, 2, 2, 4), (0, 6, 4, 8), (1, 2, 2, 4), (1, 4, 2, 4), (1, 6, 4, 10), (3, 4, 2, 0),
])  # fmt: skip
def test_data_ranks_send_by_hand(zero: int, kept: int, sent: int, expected: int) -> None:
    """Bytes a parameter, times 7/8 of a ring of 8: gradients scattered and gathered, or scattered and the weights
    gathered; all of the fp32 sums to everybody, and then weights only where ZeRO divides the update."""
    step = Work(24, 1024, 16, 4096, 2048, 50304, 1, 64, tp=8, pp=2, dp=8, last_blocks=12, zero_stage=zero,
                gradient_bytes=kept, reduce_bytes=sent)  # fmt: skip
    seconds = timing.data_seconds(step, MACHINE, 0.0)  # eight rings share the node's 200 GB/s
    assert seconds * 25 * GIGA / float(step.parameters(0)) == pytest.approx(expected * 7 / 8)


def test_zero_2_gives_gradients_away_after_every_micro_batch() -> None:
    step = dataclasses.replace(TINY, tp=8, dp=4, zero_stage=2, global_batch=64)  # 8 micro-batches
    part = float(step.parameters(0)) * 2 * 3 / 4 / (25 * GIGA)
    assert timing.data_seconds(step, MACHINE, 1.0) == pytest.approx(8 * part + part)


@pytest.mark.parametrize(("zero", "gathered_early", "apart", "together"), [
    (1, True, 2, 0), (1, False, 2, 1), (2, False, 9, 1),
])  # fmt: skip
def test_what_does_not_overlap_is_added(zero: int, gathered_early: bool, apart: int, together: int) -> None:
    """In rings of one copy of a rank's weights: gradients once, in stage 2 after each of 8 micro-batches, and weights
    once. A second of computation hides all that may hide behind it."""
    sharp = dataclasses.replace(MACHINE, gpu=dataclasses.replace(GPU, rates=dataclasses.replace(IDEAL, overlap=50.0)))
    step = dataclasses.replace(
        TINY, tp=8, dp=4, zero_stage=zero, global_batch=64, variant=Variant(gather_hidden=gathered_early)
    )
    ring = float(step.parameters(0)) * 2 * 3 / 4 / (25 * GIGA)
    alone = dataclasses.replace(step, reduction_hidden=False)
    assert timing.data_seconds(alone, sharp, 1.0) == pytest.approx(apart * ring)
    assert timing.data_seconds(step, sharp, 1.0) == pytest.approx(together * ring, abs=1e-9)


def test_stage_3_gathers_are_added_without_overlap() -> None:
    step = dataclasses.replace(TINY, dp=4, zero_stage=3, reduction_hidden=False)
    added = timing.step_time(step, MACHINE).parts["stage 3 gathers"]
    assert added == pytest.approx(timing.gather_seconds(step, MACHINE))  # of one micro-batch


def test_stage_3_gathers_by_hand() -> None:
    """Weights twice and gradients once, 6 bytes a parameter, 15/16 of them; offloaded, 4 more over PCIe by 16 ranks."""
    step = dataclasses.replace(TINY, dp=16, zero_stage=3)
    ring = float(step.parameters(0)) * 6 * 15 / 16 / (200 * GIGA)
    assert timing.gather_seconds(step, MACHINE) == pytest.approx(ring)
    host = float(step.parameters(0)) * 4 / 16 / timing.PCIE_BYTES_PER_SECOND
    offloaded = dataclasses.replace(step, offload_weights=True)
    assert timing.gather_seconds(offloaded, MACHINE) == pytest.approx(ring + host)


def test_hpz_gathers_in_the_node_on_the_way_back() -> None:
    """Weights once and gradients once over 16 ranks of two nodes, 15/16 of 4 bytes; weights again over 8, 7/8 of 2."""
    step = dataclasses.replace(TINY, dp=16, zero_stage=3, hpz=8)
    held = float(step.parameters(0))
    expected = held * 4 * 15 / 16 / (200 * GIGA) + held * 2 * 7 / 8 / (300 * GIGA)
    assert timing.gather_seconds(step, MACHINE) == pytest.approx(expected)


def test_states_in_files_are_read_and_written() -> None:
    """32 bytes of each of a rank's parameters at an eighth of the node's 25.6 GB/s, besides what the host's memory
    takes."""
    step = dataclasses.replace(TINY, dp=16, zero_stage=3, offload_optimizer=True)
    more = timing.optimizer_seconds(dataclasses.replace(step, nvme=True), MACHINE) - timing.optimizer_seconds(
        step, MACHINE
    )
    assert more == pytest.approx(float(step.parameters(0)) / 16 * 32 / (3.2 * GIGA))


def test_pipeline_messages_by_hand() -> None:
    """2 x 1,024 tokens of width 1,024 in 2 bytes, there and back, from one node to the next with all adapters busy;
    two chunks twice as often, two tensor ranks each half; inside a node over the link; none without a pipeline."""
    step = dataclasses.replace(TINY, pp=2, dp=8, last_blocks=2, global_batch=64)
    once = 2 * 1024 * 1024 * 2 / (25 * GIGA)
    assert timing.message_seconds(step, MACHINE) == pytest.approx(2 * once)
    assert timing.message_seconds(
        dataclasses.replace(step, variant=Variant(virtual_stages=2)), MACHINE
    ) == pytest.approx(4 * once)
    assert timing.message_seconds(dataclasses.replace(step, tp=2, dp=4), MACHINE) == pytest.approx(once)
    assert timing.message_seconds(dataclasses.replace(step, dp=4), MACHINE) == pytest.approx(2 * once * 25 / 300)
    assert timing.message_seconds(TINY, MACHINE) == 0


def test_rings_share_a_node_s_network() -> None:
    """Tensor 8: a data ring has one of eight adapters. Tensor 2: four of them. Tensor 1 on 8 ranks: the links."""
    assert timing.axis_rate(MACHINE, 4, 8, 1.0) == pytest.approx(25 * GIGA)
    assert timing.axis_rate(MACHINE, 16, 2, 1.0) == pytest.approx(100 * GIGA)
    assert timing.axis_rate(MACHINE, 16, 1, 1.0) == pytest.approx(200 * GIGA)
    assert timing.axis_rate(MACHINE, 8, 1, 1.0) == pytest.approx(300 * GIGA)


def test_one_gpu_does_its_products_and_nothing_else() -> None:
    parts = timing.step_time(TINY, MACHINE).parts
    for name in ("tensor ranks", "pipeline bubble", "pipeline messages", "stage 3 gathers", "data ranks", "the rest"):
        assert parts[name] == 0, name
    # Six FLOPs a weight and token; tiles, their filling and short waves only add to it.
    ideal = 6 * 4 * 12 * 1024**2 * 8 * 1024 / (312 * TERA)
    assert ideal < parts["matrix products"] < 2 * ideal


def test_full_recomputation_is_another_forward_pass_without_its_last_product() -> None:
    """Of a block's four products, 3 + 1 + 4 + 4 squares of the width, the last is not needed again."""
    forward, _, again = timing.products_seconds(TINY, GPU)
    assert again == pytest.approx(forward * 8 / 12, rel=0.1)
    whole = timing.products_seconds(dataclasses.replace(TINY, variant=Variant(early_stop=False)), GPU)[2]
    assert whole == pytest.approx(forward)


@pytest.mark.parametrize(("stages", "micro_batches", "virtual"), [(4, 8, 1), (2, 2, 1), (4, 8, 2)])
def test_the_bubble_is_that_of_the_paper(stages: int, micro_batches: int, virtual: int) -> None:
    """(p - 1) / (v m) of the ideal time, where all stages cost the same: arXiv:2104.04473, section 2.2."""
    even = dataclasses.replace(
        TINY, num_layers=64, pp=stages, last_blocks=64 // stages, global_batch=2 * micro_batches, vocab_rows=256,
        variant=Variant(virtual_stages=virtual),
    )  # fmt: skip
    parts = timing.step_time(even, dataclasses.replace(MACHINE, network=np.inf, link=np.inf)).parts
    ideal = sum(parts[name] for name in ("matrix products", "attention", "element-wise", "head and embedding"))
    # The ends of the model are what makes the stages not quite even.
    assert parts["pipeline bubble"] / ideal == pytest.approx((stages - 1) / (virtual * micro_batches), rel=0.05)


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 3), (2, 2), (4, 8), (4, 2)])
def test_the_drawn_schedule_takes_as_long(stages: int, micro_batches: int) -> None:
    """m + p - 1 micro-batches' time, and no stage does two things at once."""
    forward, backward = np.full(stages, 1.0), np.full(stages, 2.0)
    begun, back = schedule(forward, backward, micro_batches)
    assert (back + 2.0).max() == pytest.approx((micro_batches + stages - 1) * 3.0)
    for stage in range(stages):
        spans = sorted([(at, at + 1) for at in begun[stage]] + [(at, at + 2) for at in back[stage]])
        assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))
        assert (back[stage] >= begun[stage] + 1).all()


def test_communication_hides_behind_computation() -> None:
    sharp = dataclasses.replace(GPU, rates=dataclasses.replace(IDEAL, overlap=50.0))
    assert timing.hidden(sharp, 1.0, 0.5) == pytest.approx(1.0)
    assert timing.hidden(sharp, 0.2, 0.5) == pytest.approx(0.5)
    assert timing.hidden(GPU, 1.0, 0.5) == pytest.approx(1.5)  # overlap 1: nothing is hidden


def test_sequence_parallelism_sends_the_same_and_computes_less() -> None:
    sliced = dataclasses.replace(TINY, tp=4)
    split = dataclasses.replace(sliced, sequence_parallel=True)
    one, other = timing.step_time(sliced, MACHINE).parts, timing.step_time(split, MACHINE).parts
    assert one["tensor ranks"] == other["tensor ranks"] > 0
    assert other["element-wise"] < one["element-wise"]


def test_arrays_are_the_same_line_of_code() -> None:
    """Many candidates at once give the numbers that each gives alone."""
    many = dataclasses.replace(
        TINY, tp=np.array([1, 2, 4, 1]), dp=np.array([1, 2, 1, 4]), zero_stage=np.array([1, 1, 2, 3])
    )
    together = timing.step_time(many, MACHINE).seconds
    for index in range(4):
        alone = dataclasses.replace(
            TINY, tp=int(many.tp[index]), dp=int(many.dp[index]), zero_stage=int(many.zero_stage[index])
        )
        assert timing.step_time(alone, MACHINE).seconds == pytest.approx(together[index], rel=1e-12)


@pytest.mark.parametrize(("gpu", "step", "expected"), [
    ("v100", Work(40, 1536, 16, 6144, 1024, 51200, 8, 8, last_blocks=40, full=1.0,
                  variant=Variant(fused=False, early_stop=False)), 39),
    ("mi250x", Work(96, 12288, 96, 49152, 2048, 51200, 1, 10240, tp=4, pp=16, dp=16, last_blocks=6, full=1.0,
                    sequence_parallel=True, variant=Variant(early_stop=False)), 0.3614 * 191.5),
])  # fmt: skip
def test_priors_meet_the_few_figures_that_are_published(gpu: str, step: Work, expected: float) -> None:
    """TFLOP/s a GPU with recomputation: 1.2B parameters on one V100, 175B on 1,024 dies of MI250X."""
    found = find(gpu)
    machine = timing.Machine(found, found.gpus_per_node, found.network_gb_s * GIGA, found.link_gb_s * GIGA)
    rate = float(step.hardware_flops) / float(timing.step_time(step, machine).seconds) / float(step.gpus) / TERA
    assert rate == pytest.approx(expected, rel=0.08)
