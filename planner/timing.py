"""How long a step takes, from its pieces. Every formula takes numbers or numpy arrays (see `planner.work`).

The step is built bottom-up: matrix products by shape, attention, element-wise kernels, the tensor ranks' collectives;
from these a micro-batch on the slowest pipeline stage; from that the pipeline with its bubble; then what happens once a
step: the gradients' reduction and the optimiser. Units: seconds, bytes, FLOP/s.
"""

from dataclasses import dataclass

import numpy as np

from planner.hardware import GIGA, GPU, TERA
from planner.work import Number, Work

# Shapes of the output tiles of a matrix product, and what the smaller ones keep of the larger ones' speed.
TILES = ((256, 128, 1.0), (128, 128, 0.92), (64, 64, 0.65))
TILE_DEPTH_ELEMENTS = 128  # of the inner dimension that filling and draining a tile costs
# Element-wise traffic of a block's forward pass, bytes a token and unit of width (each kernel reads and writes 2 bytes
# an element): on every tensor rank the norms (2 x 4) and the residual additions with dropout (2 x 6); of sliced
# activations the queries, keys and values (6 + 2), and per unit of feed-forward width the activation function (4).
WHOLE_BYTES, SLICED_BYTES, ACTIVATION_BYTES = 20.0, 8.0, 4.0
# Unfused attention: bytes that its forward pass moves for one score: product 2, scale, mask and softmax 4, dropout 5,
# product 2.
SCORE_BYTES = 13.0
FUSED_BACKWARD_RATIO = 2.5  # of the forward pass: five matrix products for two (Dao et al. 2022, arXiv:2205.14135)
LOSS_PASSES = 2.4  # how often forward and backward read or write what is kept of the logits
BLOCK_KERNELS = 14  # of a block's forward pass, besides its matrix products
# What an update moves for one parameter: fp32 weight and two moments read and written, gradient read, weight written.
OPTIMIZER_BYTES = 30.0
BACKWARD_SHARE = 2 / 3  # of a micro-batch's time
# For offload: from a GPU to its host, and of a node's memory.
PCIE_BYTES_PER_SECOND, HOST_BYTES_PER_SECOND = 20 * GIGA, 150 * GIGA
# A node's NVMe drives: 1.6 GB/s for each of a DGX-2's 16 GPUs (ZeRO-Infinity, arXiv:2104.07857, figure 2b).
DISK_BYTES_PER_SECOND = 25.6 * GIGA
SWAPPED_BYTES = 32.0  # of one parameter: fp32 weight, two moments and gradient, read and written


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

    @property
    def seconds(self) -> Number:
        """All of it."""
        return sum(self.parts.values())


def matmul_seconds(
    gpu: GPU, rows: Number, columns: Number, depth: Number, peak: Number, batch: Number = 1.0, size: Number = 2
) -> Number:
    """`batch` products [rows, depth] x [depth, columns] at a `peak` in FLOP/s, of elements of `size` bytes.

    A GPU computes a product in tiles, one on each processor at a time. So the last wave and the tiles at the edges are
    partly idle. Short inner dimensions do not fill the pipeline. Dimensions that are no multiple of 64 elements load
    slowly (BigScience's chronicle of its 176B model found 30%), and those that are no multiple of 8 miss the tensor
    cores. A product is never faster than its operands can be read.
    """
    used: Number = 0.0
    for tile_rows, tile_columns, share in TILES:
        tiles = batch * np.ceil(rows / tile_rows) * np.ceil(columns / tile_columns)
        waves = np.ceil(tiles / gpu.processors)
        used = np.maximum(used, share * batch * rows * columns / (waves * gpu.processors * tile_rows * tile_columns))
    aligned = np.minimum(np.gcd(np.int64(columns), 64), np.gcd(np.int64(depth), 64))
    rates = gpu.rates
    peak = peak * rates.matmul * np.where(aligned >= 64, 1, np.where(aligned >= 16, rates.narrow**0.5, rates.narrow))
    peak = np.where(aligned < 8, gpu.vector_tflops * TERA * rates.matmul, peak)
    compute = 2.0 * batch * rows * columns * depth / (peak * used * depth / (depth + TILE_DEPTH_ELEMENTS))
    traffic = size * batch * (rows * depth + depth * columns + rows * columns)
    return np.maximum(compute, traffic / memory_rate(gpu)) + rates.kernel_seconds


def memory_rate(gpu: GPU) -> float:
    """Bytes/s of element-wise kernels."""
    return gpu.memory_tb_s * TERA * gpu.rates.memory


def collective_seconds(machine: Machine, size: Number, ranks: Number, bandwidth: Number, passes: Number) -> Number:
    """A ring over `ranks`: `passes` times (n - 1) / n of `size` bytes; 2 is an all-reduce, 1 a gather or a scatter."""
    alone = np.asarray(ranks) <= 1
    seconds = passes * (ranks - 1) / ranks * size / bandwidth + machine.gpu.rates.collective_seconds
    return np.where(alone, 0.0, seconds)


def link_rate(machine: Machine) -> Number:
    """Bytes/s of a large collective inside a node."""
    return machine.link * machine.gpu.rates.link


def axis_rate(machine: Machine, degree: Number, stride: Number, share: float) -> Number:
    """Bytes/s of a ring over `degree` ranks that lie `stride` apart, all rings of that axis busy at once.

    Inside a node it is the link. Across nodes, the ring has as many network adapters as it has ranks in a node.
    """
    inside = np.asarray(degree) * stride <= machine.gpus_per_node
    members = np.clip(machine.gpus_per_node / stride, 1.0, np.maximum(degree, 1))
    across = machine.network * share * members / machine.gpus_per_node
    return np.where(inside, link_rate(machine), np.minimum(across, link_rate(machine)))


def hidden(gpu: GPU, computation: Number, communication: Number) -> Number:
    """Seconds of both where they overlap: about the longer one if they differ much, more than it if they are alike."""
    k = gpu.rates.overlap
    return (computation**k + communication**k) ** (1 / k)


def product(
    work: Work, gpu: GPU, rows: Number, columns: Number, depth: Number, batch: Number = 1.0, fp8: Number = False
) -> Number:
    """Seconds of `batch` products in the step's precision; fp32 ones go past the tensor cores."""
    half = np.where(fp8, gpu.fp8_tflops * gpu.rates.fp8, gpu.half_tflops)
    peak = np.where(np.asarray(work.weight_bytes) == 4, gpu.vector_tflops, half) * TERA
    return matmul_seconds(gpu, rows, columns, depth, peak, batch, work.weight_bytes)


def products_seconds(work: Work, gpu: GPU) -> tuple[Number, Number, Number]:
    """Matrix products of one block and micro-batch: forward, backward (for inputs and weights), recomputed."""
    h, t, tokens = work.hidden_size, work.tp, work.tokens
    shapes = (
        ((h + 2 * work.keys) / t, h, 1),
        (h, h / t, 1),
        (work.ffn_hidden_size / t, h, work.variant.ffn_matrices - 1),
        (h, work.ffn_hidden_size / t, 1),
    )
    forward: Number = 0.0
    backward: Number = 0.0
    last: Number = 0.0
    for outputs, inputs, count in shapes:
        last = product(work, gpu, tokens, outputs, inputs, fp8=work.variant.fp8)
        forward = forward + count * last
        backward = backward + count * product(work, gpu, tokens, inputs, outputs, fp8=work.variant.fp8)
        backward = backward + count * product(work, gpu, outputs, inputs, tokens, fp8=work.variant.fp8)
    return forward, backward, forward - last * work.variant.early_stop


def attention_seconds(work: Work, gpu: GPU) -> tuple[Number, Number]:
    """Attention's core of one block and micro-batch: forward, backward."""
    s, heads = work.seq_length, work.num_attention_heads / (work.tp * work.ulysses)
    width = work.hidden_size / work.num_attention_heads
    scores = work.micro_batch * heads * s * s
    # The kernels skip the half of the square that a causal mask hides. Narrow heads leave tensor cores idle.
    peak = gpu.half_tflops * gpu.rates.attention * np.minimum(width / (width + 32) * 1.25, 1.0)
    peak = np.where(np.asarray(work.weight_bytes) == 4, np.minimum(peak, gpu.vector_tflops), peak) * TERA
    fused = np.where(work.causal, 2.0, 4.0) * scores * width / peak + gpu.rates.kernel_seconds
    products = product(work, gpu, s, s, width, work.micro_batch * heads)
    products = products + product(work, gpu, s, width, s, work.micro_batch * heads)
    elementwise = SCORE_BYTES * work.weight_bytes / 2 * scores / memory_rate(gpu) + 3 * gpu.rates.kernel_seconds
    forward = np.where(work.variant.fused, fused, products + elementwise)
    backward = np.where(work.variant.fused, FUSED_BACKWARD_RATIO * fused, 2.0 * products + 1.5 * elementwise)
    return forward, backward


def elementwise_seconds(work: Work, gpu: GPU) -> tuple[Number, Number]:
    """Norms, residual additions, activation function of one block and micro-batch: forward, backward."""
    whole = np.where(work.sequence_parallel, work.tp, 1)
    size = work.hidden_size * (WHOLE_BYTES / whole + SLICED_BYTES / work.tp)
    size = size + ACTIVATION_BYTES * work.ffn_hidden_size * (work.variant.ffn_matrices - 1) / work.tp
    seconds = work.tokens * size * work.weight_bytes / 2 / memory_rate(gpu) + BLOCK_KERNELS * gpu.rates.kernel_seconds
    return seconds, 1.5 * seconds


def tensor_seconds(work: Work, machine: Machine) -> Number:
    """What tensor and Ulysses ranks send in one block's forward pass, and again in its backward pass.

    Two all-reduces of [micro-batch, sequence, hidden] (Shoeybi et al. 2019, section 3), or with sequence parallelism
    as many gathers and scatters of the same size (Korthikanti et al. 2022, section 4.2.2); for Ulysses all-to-alls of
    queries, keys and values and one back, each of a rank's own tokens and its tensor slice of the width (Jacobs et al.
    2023, section 3.2): it keeps one part of n and sends the others.
    """
    size = work.weight_bytes * work.tokens * work.hidden_size
    reduce = 2 * collective_seconds(
        machine, size, work.tp, axis_rate(machine, work.tp, 1, machine.gpu.rates.network), 2
    )
    rate = axis_rate(machine, work.ulysses, work.tp, machine.gpu.rates.network)
    width = 2.0 * work.hidden_size + 2.0 * work.keys
    sent = work.weight_bytes * work.tokens * width / work.tp
    return reduce + 2 * collective_seconds(machine, sent / 2, work.ulysses, rate, 1)


def head_seconds(work: Work, gpu: GPU) -> Number:
    """Logits, loss and their backward pass for one micro-batch."""
    h, rows, tokens = work.hidden_size, work.vocab_rows / work.tp, work.tokens
    products = product(work, gpu, tokens, rows, h) + product(work, gpu, tokens, h, rows)
    products = products + product(work, gpu, rows, h, tokens)
    return (
        products
        + LOSS_PASSES * work.variant.logit_bytes * tokens * rows / memory_rate(gpu)
        + 6 * gpu.rates.kernel_seconds
    )


def gather_seconds(work: Work, machine: Machine) -> Number:
    """ZeRO stage 3, a micro-batch: weights gathered in forward and backward, gradients scattered; where the weights are
    on the host, each rank's share comes from there twice. With hpZ the backward pass gathers from a node's own copy.
    """
    parameters, near = work.parameters(0), np.asarray(work.hpz) > 1
    size = parameters * (np.where(near, 1.0, 2.0) * work.weight_bytes + work.reduce_bytes)
    rate = axis_rate(machine, work.copies, work.tp, machine.gpu.rates.gather)
    ring = collective_seconds(machine, size, work.copies, rate, 1)
    near_rate = axis_rate(machine, work.hpz, work.tp, machine.gpu.rates.gather)
    ring = ring + collective_seconds(machine, parameters * work.weight_bytes, work.hpz, near_rate, 1)
    host = np.where(
        work.offload_weights, 2.0 * work.weight_bytes * parameters / work.copies / PCIE_BYTES_PER_SECOND, 0.0
    )
    return ring + host + 3 * work.num_layers * machine.gpu.rates.collective_seconds


def accumulation_seconds(work: Work, gpu: GPU) -> Number:
    """Adding a block's gradients to an fp32 sum that stands beside them, as DeepSpeed's bf16 optimizer does.

    The gradient is read, the sum is read and written. Where there is one copy only, the matrix product adds to it: the
    rate of matrix products covers that.
    """
    beside = np.asarray(work.gradient_bytes) > 4
    seconds = work.block_matrices / work.tp * (work.weight_bytes + 8.0) / memory_rate(gpu)
    return np.where(beside & (np.asarray(work.zero_stage) < 2), seconds, 0.0)


@dataclass(frozen=True)
class Pieces:
    """Seconds of one micro-batch: the parts of a block, forward, backward and recomputed; the ends of the model."""

    products: Number
    attention: Number
    elementwise: Number
    tensor: Number
    forward: Number  # of a block, all of these parts
    accumulation: Number  # of a block's gradients
    head: Number
    embedding: Number

    @property
    def block(self) -> Number:
        """A block, there and back."""
        return self.products + self.attention + self.elementwise + self.tensor + self.accumulation


def pieces(work: Work, machine: Machine) -> Pieces:
    """A micro-batch on one rank."""
    gpu, again = machine.gpu, work.full
    products, products_back, recomputed = products_seconds(work, gpu)
    attention, attention_back = attention_seconds(work, gpu)
    elementwise, elementwise_back = elementwise_seconds(work, gpu)
    tensor = tensor_seconds(work, machine)
    return Pieces(
        products=products + recomputed * again + products_back,
        attention=attention * (1 + again + work.selective) + attention_back,
        elementwise=elementwise * (1 + again) + elementwise_back,
        # The second of a block's two collectives comes after the last product.
        tensor=tensor * (2 + again * np.where(work.variant.early_stop, 0.5, 1.0)),
        forward=products + attention + elementwise + tensor,
        accumulation=accumulation_seconds(work, gpu),
        head=head_seconds(work, gpu),
        embedding=12.0 * work.tokens * work.hidden_size / memory_rate(gpu),
    )


def data_seconds(work: Work, machine: Machine, behind: Number) -> Number:
    """What data ranks send once a step: gradients scattered, and weights gathered (ZeRO 1, 2) or gradients (ZeRO 0).

    Without a pipeline it can hide behind the last micro-batch's backward pass, `behind` seconds. ZeRO stage 2 gives
    gradients away after every micro-batch; stage 3 sends nothing here.
    """
    behind = np.where(work.reduction_hidden, behind, 0.0)
    zero, parameters = np.asarray(work.zero_stage), work.parameters(0)
    rate = axis_rate(machine, work.copies, work.tp, machine.gpu.rates.network)
    # DeepSpeed's bf16 optimizer, which keeps its fp32 sums beside the gradients, gives every rank all of them.
    passes = np.where(np.asarray(work.gradient_bytes) > 4, 2, 1)
    scatter = collective_seconds(machine, parameters * work.reduce_bytes, work.copies, rate, passes)
    back = np.where(zero == 0, work.reduce_bytes, work.weight_bytes)
    gather = collective_seconds(machine, parameters * back, work.copies, rate, 1)
    gather = np.where((zero == 0) & (passes == 2), 0.0, gather)  # every rank has them all already
    late = np.where(work.variant.gather_hidden, 0.0, gather)
    exposed = hidden(machine.gpu, behind, scatter + gather - late) - behind + late
    every = work.micro_batches * (hidden(machine.gpu, behind, scatter) - behind) + gather
    seconds = np.where(np.asarray(work.pp) > 1, scatter + gather, np.where(zero == 2, every, exposed))
    return np.where(zero == 3, 0.0, seconds)


def optimizer_seconds(work: Work, machine: Machine) -> Number:
    """The update of the parameters that a rank owns, on the GPU or, offloaded, at the speed of the host's memory and,
    where the states are in files, of the node's drives."""
    parameters = work.parameters(0)
    owned = parameters / np.where(np.asarray(work.zero_stage) >= 1, work.copies, 1)
    update = owned * OPTIMIZER_BYTES / memory_rate(machine.gpu)
    offloaded = owned * (
        OPTIMIZER_BYTES / (HOST_BYTES_PER_SECOND / machine.gpus_per_node)
        + 2.0 * work.weight_bytes / PCIE_BYTES_PER_SECOND
    )
    offloaded = offloaded + np.where(
        work.nvme, owned * SWAPPED_BYTES / (DISK_BYTES_PER_SECOND / machine.gpus_per_node), 0.0
    )
    held = np.where(np.asarray(work.zero_stage) >= 2, owned, parameters)
    clipping = 2.0 * held * work.gradient_bytes / memory_rate(machine.gpu)
    return np.where(work.offload_optimizer, offloaded, update) + clipping


def message_seconds(work: Work, machine: Machine) -> Number:
    """What a stage sends of a micro-batch: an activation forward and a gradient back, for every chunk of an interleaved
    pipeline. Each tensor rank sends its part."""
    rate = axis_rate(machine, 2, work.tp * work.copies, machine.gpu.rates.network)
    message = work.weight_bytes * work.tokens * work.hidden_size / work.tp / rate + machine.gpu.rates.collective_seconds
    return np.where(np.asarray(work.pp) > 1, 2 * work.variant.virtual_stages * message, 0.0)


def step_time(work: Work, machine: Machine) -> StepTime:
    """One optimiser step: the slowest pipeline stage sets the pace of all micro-batches; filling and draining passes
    every other stage once (Narayanan et al. 2021, arXiv:2104.04473, section 2.2: (p - 1) / (v m) of the ideal time)."""
    gpu, piece = machine.gpu, pieces(work, machine)
    m, v, single = work.micro_batches, work.variant.virtual_stages, np.asarray(work.pp) == 1
    ends = piece.head + piece.embedding
    whole = work.num_layers * piece.block + ends
    first, last = work.blocks(0) * piece.block + piece.embedding, work.last_blocks * piece.block + piece.head
    slowest = np.where(single, whole, np.maximum(first, last))
    sent = message_seconds(work, machine)
    bubble = np.where(single, 0.0, (whole - slowest + (work.pp - 1) * sent) / v)
    gathers = np.where(np.asarray(work.zero_stage) == 3, gather_seconds(work, machine), 0.0)
    covered = np.where(work.reduction_hidden, slowest, 0.0)
    # The slowest stage's time is divided among the parts as the whole model's is.
    share = m * slowest / whole
    layers = work.num_layers * share
    return StepTime(
        parts={
            "matrix products": layers * piece.products,
            "attention": layers * piece.attention,
            "element-wise": layers * piece.elementwise,
            "tensor ranks": layers * piece.tensor,
            "gradient accumulation": layers * piece.accumulation,
            "head and embedding": share * ends,
            "pipeline bubble": bubble,
            "pipeline messages": m * sent,
            "stage 3 gathers": m * (hidden(gpu, covered, gathers) - covered),
            "data ranks": data_seconds(work, machine, slowest * BACKWARD_SHARE),
            "optimizer": optimizer_seconds(work, machine),
            "the rest": gpu.rates.step_seconds + 0.0 * m,
        }
    )
