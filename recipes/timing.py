"""How long a step takes, from its pieces. Every formula takes numbers or numpy arrays (see `model.work`).

The step is built bottom-up: matrix products by shape, attention, element-wise kernels, the tensor ranks' collectives;
from these a micro-batch on the slowest pipeline stage; from that the pipeline with its bubble; then what happens once a
step: the gradients' reduction and the optimiser. Units: seconds, bytes, FLOP/s.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from launch.hardware import GIGA, GPU, TERA
from model.work import Number, Work

# Shapes of the output tiles that a matrix product is cut into, and what the smaller ones keep of the larger ones' speed.
TILES = ((256, 128, 1.0), (128, 128, 0.92), (64, 64, 0.65))
TILE_DEPTH = 128  # elements of the inner dimension that filling and draining a tile costs
# Element-wise traffic of a block's forward pass, bytes a token and unit of width (each kernel reads and writes 2 bytes
# an element): on every tensor rank the norms (2 x 4) and the residual additions with dropout (2 x 6); of sliced
# activations the queries, keys and values (6 + 2), and per unit of feed-forward width the activation function (4).
WHOLE, SLICED, FORWARD = 20.0, 8.0, 4.0
# Unfused attention: bytes a score in the forward pass: product 2, scale, mask and softmax 4, dropout 5, product 2.
SCORES = 13.0
FUSED_BACKWARD = 2.5  # five matrix products for two (Dao et al. 2022, arXiv:2205.14135)
KERNELS = 14  # kernels of a block's forward pass beside its matrix products
OPTIMIZER = 30.0  # bytes a parameter: fp32 weights and two moments read and written, gradient read, weights written
PCIE, HOST = 20 * GIGA, 150 * GIGA  # bytes/s a GPU to its host, and of a node's memory: offload


@dataclass(frozen=True)
class Machine:
    """The GPUs and the network between their nodes, bytes/s of a node and direction."""

    gpu: GPU
    gpus_per_node: Number
    network: Number
    link: Number


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step: the parts add up to `seconds`."""

    parts: dict[str, Number]
    stage_seconds: Number  # of a micro-batch, forward and backward, on the slowest stage

    @property
    def seconds(self) -> Number:
        """All of it."""
        return sum(self.parts.values())


def matmul_seconds(gpu: GPU, rows: Number, columns: Number, depth: Number, batch: Number = 1.0, fp8: Number = 0.0) -> Any:
    """`batch` products [rows, depth] x [depth, columns].

    A product is computed in tiles, so many at a time as the GPU has processors: the last wave and the tiles at the
    edges are partly idle, short inner dimensions do not fill the pipeline, dimensions that are no multiple of 64
    elements load slowly (BigScience's chronicle of its 176B model found 30%), and those that are no multiple of 8 miss
    the tensor cores. It is never faster than its operands can be read.
    """
    used = 0.0
    for tile_rows, tile_columns, share in TILES:
        tiles = batch * np.ceil(rows / tile_rows) * np.ceil(columns / tile_columns)
        waves = np.ceil(tiles / gpu.processors)
        used = np.maximum(used, share * batch * rows * columns / (waves * gpu.processors * tile_rows * tile_columns))
    aligned = np.minimum(np.gcd(np.int64(columns), 64), np.gcd(np.int64(depth), 64))
    rates = gpu.rates
    peak = np.where(fp8, gpu.fp8_tflops * rates.fp8, gpu.half_tflops) * TERA * rates.matmul
    peak = peak * np.where(aligned >= 64, 1.0, np.where(aligned >= 16, np.sqrt(rates.narrow), rates.narrow))
    peak = np.where(aligned < 8, gpu.vector_tflops * TERA * rates.matmul, peak)
    compute = 2.0 * batch * rows * columns * depth / (peak * used * depth / (depth + TILE_DEPTH))
    traffic = 2.0 * batch * (rows * depth + depth * columns + rows * columns)
    return np.maximum(compute, traffic / memory_rate(gpu)) + rates.kernel_seconds


def memory_rate(gpu: GPU) -> float:
    """Bytes/s of element-wise kernels."""
    return gpu.memory_tb_s * TERA * gpu.rates.memory


def collective_seconds(machine: Machine, size: Number, ranks: Number, bandwidth: Number, passes: int) -> Any:
    """A ring over `ranks`: `passes` times (n - 1) / n of `size` bytes; 2 is an all-reduce, 1 a gather or a scatter."""
    alone = np.asarray(ranks) <= 1
    seconds = passes * (ranks - 1) / ranks * size / bandwidth + machine.gpu.rates.collective_seconds
    return np.where(alone, 0.0, seconds)


def link_rate(machine: Machine) -> float:
    """Bytes/s of a large collective inside a node."""
    return machine.link * machine.gpu.rates.link


def axis_rate(machine: Machine, degree: Number, stride: Number, share: float) -> Any:
    """Bytes/s of a ring over `degree` ranks that lie `stride` apart, all rings of that axis busy at once.

    Inside a node it is the link. Across nodes, the ring has as many network adapters as it has ranks in a node.
    """
    inside = np.asarray(degree) * stride <= machine.gpus_per_node
    members = np.clip(machine.gpus_per_node / stride, 1.0, np.maximum(degree, 1))
    across = machine.network * share * members / machine.gpus_per_node
    return np.where(inside, link_rate(machine), np.minimum(across, link_rate(machine)))


def hidden(gpu: GPU, computation: Number, communication: Number) -> Any:
    """Time of both where they overlap: the longer one if they differ much, more if they compete for the same moments."""
    k = gpu.rates.overlap
    return (computation**k + communication**k) ** (1 / k)


def products_seconds(work: Work, gpu: GPU) -> tuple[Any, Any, Any]:
    """Matrix products of one block and micro-batch: forward, backward (for inputs and weights), recomputed."""
    h, t, tokens = work.hidden_size, work.tp, work.tokens
    shapes = (
        ((h + 2 * work.keys) / t, h, 1),
        (h, h / t, 1),
        (work.ffn_hidden_size / t, h, work.ffn_matrices - 1),
        (h, work.ffn_hidden_size / t, 1),
    )
    forward = backward = 0.0
    for outputs, inputs, count in shapes:
        forward = forward + count * matmul_seconds(gpu, tokens, outputs, inputs, fp8=work.fp8)
        backward = backward + count * matmul_seconds(gpu, tokens, inputs, outputs, fp8=work.fp8)
        backward = backward + count * matmul_seconds(gpu, outputs, inputs, tokens, fp8=work.fp8)
    down = matmul_seconds(gpu, tokens, h, work.ffn_hidden_size / t, fp8=work.fp8)
    return forward, backward, forward - down * work.early_stop


def attention_seconds(work: Work, gpu: GPU) -> tuple[Any, Any]:
    """Attention's core of one block and micro-batch: forward, backward."""
    s, heads = work.seq_length, work.num_attention_heads / (work.tp * work.ulysses)
    width = work.hidden_size / work.num_attention_heads
    scores = work.micro_batch * heads * s * s
    # Half the square: the kernels skip what a causal mask hides. Narrow heads leave tensor cores idle.
    peak = gpu.half_tflops * TERA * gpu.rates.attention * np.minimum(width / (width + 32) * 1.25, 1.0)
    fused = 2.0 * scores * width / peak + gpu.rates.kernel_seconds
    products = matmul_seconds(gpu, s, s, width, work.micro_batch * heads)
    products = products + matmul_seconds(gpu, s, width, s, work.micro_batch * heads)
    elementwise = SCORES * scores / memory_rate(gpu) + 3 * gpu.rates.kernel_seconds
    forward = np.where(work.fused, fused, products + elementwise)
    backward = np.where(work.fused, FUSED_BACKWARD * fused, 2.0 * products + 1.5 * elementwise)
    return forward, backward


def elementwise_seconds(work: Work, gpu: GPU) -> tuple[Any, Any]:
    """Norms, residual additions, activation function of one block and micro-batch: forward, backward."""
    whole = np.where(work.sequence_parallel, work.tp, 1)
    size = work.hidden_size * (WHOLE / whole + SLICED / work.tp)
    size = size + FORWARD * work.ffn_hidden_size * (work.ffn_matrices - 1) / work.tp
    seconds = work.tokens * size / memory_rate(gpu) + KERNELS * gpu.rates.kernel_seconds
    return seconds, 1.5 * seconds


def tensor_seconds(work: Work, machine: Machine) -> Any:
    """What tensor and Ulysses ranks send in one block's forward pass, and again in its backward pass.

    Two all-reduces of [micro-batch, sequence, hidden] (Shoeybi et al. 2019, section 3), or with sequence parallelism
    as many gathers and scatters of the same size (Korthikanti et al. 2022, section 4.2.2); for Ulysses an all-to-all of
    queries, keys and values and one back (Jacobs et al. 2023).
    """
    size = 2.0 * work.tokens * work.hidden_size
    reduce = 2 * collective_seconds(machine, size, work.tp, axis_rate(machine, work.tp, 1, machine.gpu.rates.network), 2)
    rate = axis_rate(machine, work.ulysses, work.tp, machine.gpu.rates.network)
    exchange = 2 * collective_seconds(machine, 2.0 * size / work.ulysses, work.ulysses, rate, 1)
    return reduce + exchange


def head_seconds(work: Work, gpu: GPU) -> Any:
    """Logits, loss and their backward pass for one micro-batch."""
    h, rows, tokens = work.hidden_size, work.vocab_rows / work.tp, work.tokens
    products = (
        matmul_seconds(gpu, tokens, rows, h) + matmul_seconds(gpu, tokens, h, rows) + matmul_seconds(gpu, rows, h, tokens)
    )
    return products + 2.4 * work.logit_bytes * tokens * rows / memory_rate(gpu) + 6 * gpu.rates.kernel_seconds


def gather_seconds(work: Work, machine: Machine) -> Any:
    """ZeRO stage 3, a micro-batch: weights gathered in forward and backward, gradients scattered."""
    parameters = work.parameters(0)
    size = parameters * (2.0 * work.weight_bytes + work.reduce_bytes)
    rate = axis_rate(machine, work.copies, work.tp, machine.gpu.rates.gather)
    ring = collective_seconds(machine, size, work.copies, rate, 1)
    return ring + 3 * work.num_layers * machine.gpu.rates.collective_seconds


def step_time(work: Work, machine: Machine) -> StepTime:
    """One optimiser step."""
    gpu, rates = machine.gpu, machine.gpu.rates
    again, core_again = work.full, work.full + work.selective
    forward, backward, recomputed = products_seconds(work, gpu)
    products = forward + recomputed * again + backward
    forward, backward = attention_seconds(work, gpu)
    attention = forward * (1 + core_again) + backward
    forward, backward = elementwise_seconds(work, gpu)
    elementwise = forward * (1 + again) + backward
    tensor = tensor_seconds(work, machine) * (2 + again * np.where(work.early_stop, 0.5, 1.0))
    block = products + attention + elementwise + tensor

    m, p, v = work.micro_batches, work.pp, work.virtual_stages
    head = head_seconds(work, gpu)
    embedding = 12.0 * work.tokens * work.hidden_size / memory_rate(gpu)
    first, last = work.blocks(0), work.last_blocks
    slowest = np.where(np.asarray(p) > 1, np.maximum(first * block + embedding, last * block + head), 0.0)
    slowest = np.where(np.asarray(p) > 1, slowest, work.num_layers * block + head + embedding)
    all_stages = work.num_layers * block + head + embedding

    # Point-to-point: an activation forward and a gradient back, each tensor rank its part, for every chunk.
    stride = work.tp * work.copies
    rate = axis_rate(machine, 2, stride, rates.network)
    message = 2.0 * work.tokens * work.hidden_size / work.tp / rate + rates.collective_seconds
    sent = np.where(np.asarray(p) > 1, 2 * v * message, 0.0)

    slowest = np.asarray(slowest, float)
    # ZeRO stage 3 hides its gathers behind computation.
    gathers = np.where(np.asarray(work.zero_stage) == 3, gather_seconds(work, machine), 0.0)
    exposed = hidden(gpu, slowest, gathers) - slowest

    parameters = work.parameters(0)
    rate = axis_rate(machine, work.copies, work.tp, rates.network)
    reduction = collective_seconds(machine, parameters * work.reduce_bytes, work.copies, rate, 1)
    spread = collective_seconds(
        machine, parameters * np.where(np.asarray(work.zero_stage) == 0, work.reduce_bytes, work.weight_bytes),
        work.copies, rate, 1,
    )  # fmt: skip
    rounds = np.where(np.asarray(work.zero_stage) == 2, m, 1.0)  # stage 2 gives gradients away after every micro-batch
    data = np.where(np.asarray(work.zero_stage) == 3, 0.0, reduction * rounds + spread)
    # Without a pipeline the reduction hides behind the last micro-batch's backward pass.
    behind = hidden(gpu, slowest * 2 / 3, reduction + spread) - slowest * 2 / 3
    data = np.where((np.asarray(p) == 1) & (np.asarray(work.zero_stage) < 2), behind, data)

    owned = parameters / np.where(np.asarray(work.zero_stage) >= 1, work.copies, 1)
    update = owned * OPTIMIZER / memory_rate(gpu)
    offloaded = owned * (OPTIMIZER / (HOST / machine.gpus_per_node) + 2.0 * work.weight_bytes / PCIE)
    optimizer = np.where(work.offload_optimizer, offloaded, update)
    optimizer = optimizer + 2.0 * parameters * work.gradient_bytes / memory_rate(gpu)  # norm and clipping

    # The slowest stage sets the pace of all micro-batches; filling and draining passes every other stage once.
    bubble = np.where(np.asarray(p) > 1, (all_stages - slowest) / v + (p - 1) / v * sent, 0.0)
    share = m * np.where(np.asarray(p) > 1, slowest, all_stages) / all_stages  # of all blocks, on the slowest stage
    layers = work.num_layers * share
    return StepTime(
        parts={
            "matrix products": layers * products,
            "attention": layers * attention,
            "element-wise": layers * elementwise,
            "tensor ranks": layers * tensor,
            "head and embedding": share * (head + embedding),
            "pipeline bubble": bubble,
            "pipeline messages": m * sent,
            "stage 3 gathers": m * exposed,
            "data ranks": data,
            "optimizer": optimizer,
            "the rest": rates.step_seconds + 0.0 * m,
        },
        stage_seconds=slowest,
    )
