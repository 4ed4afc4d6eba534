"""What a rank holds and how long it takes to write with a model, in closed form, as `stagecraft generate` does it.

A roofline (Pope et al. 2022, arXiv:2211.05102, section 2): a step of one token a row reads all weights of a rank and
the cache of its rows once, and computes 2 FLOPs a weight and row (Kaplan et al. 2020, arXiv:2001.08361, section 2.1).
Reading a prompt computes the same for all its tokens at once. Products, kernels and collectives are those of
`planner.timing`. Every formula takes numbers or numpy arrays (see `planner.work`). Imports no torch.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from model.config import GPTConfig
from model.layout import Layout, stage_boundaries
from planner.hardware import TERA
from planner.memory import CONTEXT_BYTES, FRAGMENTED_SHARE
from planner.timing import (
    Machine,
    axis_rate,
    collective_seconds,
    elementwise_seconds,
    memory_rate,
    product,
    tensor_seconds,
)
from planner.work import Number, Work, last_blocks

READ = 2**15  # tokens that `inference.decode.decoder` reads in one pass
MOST_ROWS = 512  # texts at once on GPUs: the host looks at each of them after every token
# Bytes of what is drawn from, for each id of a row: its score in fp32, with what is added, as noise, and the largest.
DRAWN_BYTES = 16.0
ID_BYTES = 8


@dataclass(frozen=True)
class DecodeRates:
    """What decoding reaches beside `planner.hardware.Rates`; fitted (docs/planner.md).

    memory           share of the memory bandwidth that products of few rows reach, at most
    cache            share of that which attention reaches as it reads the cache
    reduce_seconds   time of a collective inside a node besides its bytes
    across_seconds   what it takes more across nodes
    launch_seconds   time of a block, at least: the host starts its kernels one by one. An assumption: 74 us that a
                     narrow block takes on one core of an AMD EPYC (2026-11-28), and 11 kernels at 4 us
    row_seconds      what the host does with a row after every token: an assumption
    """

    memory: float = 0.858
    cache: float = 0.654
    reduce_seconds: float = 37.2e-6
    across_seconds: float = 71.6e-6
    launch_seconds: float = 120e-6
    row_seconds: float = 3e-6


RATES = DecodeRates()


def decode_work(model: GPTConfig, layout: Layout, element: int, rows: Number, tokens: Number) -> Work:
    """A forward pass over `tokens` new tokens of each of `rows` rows, in elements of that many bytes."""
    return Work(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        ffn_hidden_size=model.ffn_hidden_size,
        seq_length=tokens,
        vocab_rows=model.padded_vocab_size,
        position_rows=model.seq_length,
        micro_batch=rows,
        global_batch=rows,
        tp=layout.tp,
        pp=layout.pp,
        last_blocks=last_blocks(stage_boundaries(model, layout.pp)),
        zero_stage=0,
        weight_bytes=element,
    )


# --- Bytes -----------------------------------------------------------------------------------------------------------


def cache_bytes(work: Work, stage: Number) -> Number:
    """Keys and values of one token on a rank of a stage."""
    return 2 * work.blocks(stage) * work.hidden_size / work.tp * work.weight_bytes


def pass_bytes(work: Work) -> Number:
    """Activations of one token that is read, at most: the input of a stage and of a block, its norm, the attention's
    or the feed-forward layer's result and its copy that is summed; the feed-forward layer before and after its GELU."""
    return work.weight_bytes * (5 * work.hidden_size + 2 * work.ffn_hidden_size / work.tp)


def row_bytes(work: Work, stage: Number) -> Number:
    """What a row takes besides its cache: on the last stage scores of all ids, sliced, gathered and joined, in the
    model's precision; and what is drawn from."""
    scores = work.vocab_rows * (work.weight_bytes * (2 + 1 / work.tp) + DRAWN_BYTES)
    return np.where(stage == np.asarray(work.pp) - 1, scores, 0.0)


def most_rows(work: Work, usable: float, prompt: int, columns: int) -> int:
    """Rows of `columns` tokens in each of as many batches as there are stages: as the fullest stage has room for, and
    `MOST_ROWS` in all batches.

    `usable` is bytes. A prompt of `prompt` tokens is read with as many others as make up `READ` tokens.
    """
    stage, pp = np.arange(float(work.pp)), work.pp
    room = usable - CONTEXT_BYTES - work.parameters(stage) * work.weight_bytes
    room = room / (1 + FRAGMENTED_SHARE)
    row = pp * columns * cache_bytes(work, stage) + row_bytes(work, stage)
    together = max(1, READ // prompt)  # prompts of a pass
    beyond = np.min((room - together * prompt * pass_bytes(work)) // row)
    few = min(float(np.min(room // (row + prompt * pass_bytes(work)))), together)
    return max(0, min(int(beyond if beyond > together else few), max(1, MOST_ROWS // int(pp))))


def work_bytes(work: Work, rows: int, prompt: int, stage: Number) -> Number:
    """Bytes of a rank besides weights and cache, with `rows` rows in each batch: driver and libraries, a pass that
    reads prompts, scores."""
    together = min(rows, max(1, READ // prompt))
    return CONTEXT_BYTES + (together * prompt * pass_bytes(work) + rows * row_bytes(work, stage)) * (
        1 + FRAGMENTED_SHARE
    )


# --- Seconds ---------------------------------------------------------------------------------------------------------


def slowed(machine: Machine, rates: DecodeRates) -> Machine:
    """The machine with what decoding reaches of it."""
    gpu = machine.gpu
    reached = dataclasses.replace(
        gpu.rates,
        memory=min(gpu.rates.memory, rates.memory),
        collective_seconds=rates.reduce_seconds,
    )
    return dataclasses.replace(machine, gpu=dataclasses.replace(gpu, rates=reached))


def product_seconds(work: Work, machine: Machine, rows: Number, columns: Number, depth: Number) -> Number:
    """A matrix product, by tiles on the tensor cores, or for few rows on the other ones, whichever is faster."""
    gpu = machine.gpu
    compute = 2.0 * rows * columns * depth / (gpu.vector_tflops * TERA)
    traffic = work.weight_bytes * (rows * depth + depth * columns + rows * columns) / memory_rate(gpu)
    plain = np.maximum(compute, traffic) + gpu.rates.kernel_seconds
    return np.minimum(product(work, gpu, rows, columns, depth), plain)


def block_parts(work: Work, machine: Machine, seen: Number, rates: DecodeRates) -> dict[str, Number]:
    """Seconds of one block by part, on a machine that is `slowed`; `seen` tokens of each row were read before."""
    gpu, h, t, f = machine.gpu, work.hidden_size, work.tp, work.ffn_hidden_size
    shapes = ((3 * h / t, h), (h, h / t), (f / t, h), (h, f / t))
    products = sum(product_seconds(work, machine, work.tokens, outputs, inputs) for outputs, inputs in shapes)
    scores = work.tokens * (seen + work.seq_length / 2)
    peak = gpu.half_tflops if work.weight_bytes == 2 else gpu.vector_tflops
    compute = 4.0 * scores * h / t / (peak * TERA * gpu.rates.attention)
    held = work.micro_batch * (seen + work.seq_length) * 2 * h / t * work.weight_bytes
    attention = np.maximum(compute, held / (memory_rate(gpu) * rates.cache)) + gpu.rates.kernel_seconds
    across = np.where(np.asarray(t) > machine.gpus_per_node, 2 * rates.across_seconds, 0.0)
    return {
        "weights": products,
        "cache": attention,
        "element-wise": elementwise_seconds(work, gpu)[0],
        "tensor ranks": tensor_seconds(work, machine) + across,
    }


def stage_seconds(
    work: Work, machine: Machine, seen: Number, stage: Number, rates: DecodeRates = RATES
) -> dict[str, Number]:
    """Seconds of a forward pass of a stage by part; the last one also scores each row's next id and draws."""
    near = slowed(machine, rates)
    block = block_parts(work, near, seen, rates)
    parts: dict[str, Number] = {name: work.blocks(stage) * value for name, value in block.items()}
    waits = np.maximum(0.0, rates.launch_seconds - sum(block.values()))
    parts["host"] = work.blocks(stage) * waits
    rows, ids = work.micro_batch, work.vocab_rows
    rate = axis_rate(near, work.tp, 1, near.gpu.rates.network)
    head = product_seconds(work, near, rows, ids / work.tp, work.hidden_size)
    head = head + collective_seconds(near, work.weight_bytes * rows * ids, work.tp, rate, 1)
    head = head + rows * ids * 2 * DRAWN_BYTES / memory_rate(near.gpu) + 10 * near.gpu.rates.kernel_seconds
    head = np.maximum(head, rates.launch_seconds) + rows * rates.row_seconds
    parts["scores and drawing"] = np.where(stage == np.asarray(work.pp) - 1, head, 0.0)
    return parts


def hop_seconds(work: Work, machine: Machine, rates: DecodeRates = RATES) -> Number:
    """A stage's result to the next one: each tensor rank sends all of it."""
    rate = axis_rate(machine, 2, work.tp, machine.gpu.rates.network)
    return _sent(work, machine, work.weight_bytes * work.tokens * work.hidden_size / rate, rates)


def told_seconds(work: Work, machine: Machine, rates: DecodeRates = RATES) -> Number:
    """The last stage tells the others what was drawn."""
    rate = axis_rate(machine, work.pp, work.tp, machine.gpu.rates.network)
    return _sent(work, machine, ID_BYTES * work.micro_batch / rate, rates)


def _sent(work: Work, machine: Machine, seconds: Number, rates: DecodeRates) -> Number:
    across = np.where(np.asarray(work.tp) * work.pp > machine.gpus_per_node, rates.across_seconds, 0.0)
    return np.where(np.asarray(work.pp) > 1, seconds + rates.reduce_seconds + across, 0.0)


def round_seconds(
    work: Work, machine: Machine, seen: Number, batches: int, rates: DecodeRates = RATES
) -> tuple[float, dict[str, float]]:
    """Seconds until each of `batches` batches has gone through all stages once, and these seconds by part.

    One batch waits for all stages in turn. As many batches as stages keep the slowest stage busy.
    """
    stages = np.arange(float(work.pp))
    parts = stage_seconds(work, machine, seen, stages, rates)
    each = np.broadcast_to(np.sum(np.broadcast_arrays(stages, *parts.values())[1:], axis=0), stages.shape)
    sent = float((work.pp - 1) * hop_seconds(work, machine, rates) + told_seconds(work, machine, rates))
    busy, slowest = float(each.sum()), float(each.max())
    total = max(busy + sent, batches * slowest)
    share = (total - sent) / busy
    summed = {name: share * float(np.broadcast_to(value, stages.shape).sum()) for name, value in parts.items()}
    return total, {**summed, "between stages": sent}
