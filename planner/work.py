"""What a rank is asked to do in one training step, as plain numbers: the model's shape, its cut, its batch, its engine.

Every field is a number or a numpy array. An array has one element for each candidate layout or each row of a table.
So one prediction and a search over a hundred thousand layouts are the same lines of code. Imports no torch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.config import NO_ADAPTERS, GPTConfig, LoRA
from model.engine import config as engine_config
from model.layout import Layout, stage_boundaries
from recipes.recipe import Recipe
from support.json_object import JsonObject

Array = NDArray[np.float64]
Number = float | Array  # flags too: 0 or 1


@dataclass(frozen=True)
class Variant:
    """What published runs do in another way than this project. The defaults are this project's way.

    Only `planner.published` sets these fields.

    virtual_stages  chunks of an interleaved pipeline that a rank holds
    fused           attention never stores its scores; with a causal mask it skips half of them
    regathered      the backward pass gathers again what sequence parallelism gathered; otherwise it is kept
    early_stop      recomputation ends before a block's last product, as torch's non-reentrant checkpoints do
    logit_bytes     bytes of a logit and of what the loss keeps of it: half precision, fp32, its softmax
    fp8             matrix products of the blocks are computed in fp8
    ffn_matrices    matrices of a feed-forward layer: 3 where it is gated
    kv_size         width of the keys, 0: the hidden size
    tied            the head shares the embedding's weights
    biases          linear layers and norms have biases
    gather_hidden   the weights that stage 1 gathers are sent while a rank computes, not when the update is done
    """

    virtual_stages: Number = 1
    fused: Number = True
    regathered: Number = False
    early_stop: Number = True
    logit_bytes: Number = 10
    fp8: Number = False
    ffn_matrices: Number = 2
    kv_size: Number = 0
    tied: Number = True
    biases: Number = True
    gather_hidden: Number = False


@dataclass(frozen=True)
class Work:
    """One training step. Counts are per model where nothing else is said.

    last_blocks     blocks of the last pipeline stage. The stages before it share the others evenly; where they do not
                    divide, the earlier stages have one more.
    full            share of the blocks that recompute everything
    selective       share of the blocks that recompute the attention's core alone
    weight_bytes    bytes of a weight in forward and backward
    gradient_bytes  bytes of everything that is kept of a gradient
    reduce_bytes    bytes that data ranks send of a gradient
    bucket_bytes    bytes an element of the copy from which they send it
    master_bytes    bytes that the optimiser keeps of a parameter besides its two fp32 moments
    causal          attention has a causal mask, of which its kernels skip the hidden half
    apart           attention is told who sees whom, [B, S, S]: documents are apart, or a prefix sees itself
    taught          the loss has a teacher beside the labels
    dropout         the masks of dropout are kept
    position_rows   learned positions
    nvme            offloaded optimizer states are in files
    hpz             ranks of a node that share a second copy of stage 3's weights, from which the backward pass gathers
                    (ZeRO++'s hpZ, Wang et al. 2023, arXiv:2306.10209); 1: none
    trained         parameters that train, as a share of the model's: of adapters theirs alone
    reduction_hidden  data ranks send gradients, and stage 3 gathers weights, while a rank computes (no pipeline)
    """

    num_layers: Number
    hidden_size: Number
    num_attention_heads: Number
    ffn_hidden_size: Number
    seq_length: Number
    vocab_rows: Number
    micro_batch: Number
    global_batch: Number
    tp: Number = 1
    pp: Number = 1
    dp: Number = 1
    ulysses: Number = 1
    sequence_parallel: Number = False
    last_blocks: Number = 0
    zero_stage: Number = 1
    full: Number = 0.0
    selective: Number = 0.0
    weight_bytes: Number = 2
    gradient_bytes: Number = 2
    reduce_bytes: Number = 2
    bucket_bytes: Number = 2
    master_bytes: Number = 4
    causal: Number = True
    apart: Number = False
    taught: Number = False
    dropout: Number = False
    position_rows: Number = 0
    offload_optimizer: Number = False
    offload_weights: Number = False
    nvme: Number = False
    hpz: Number = 1
    trained: Number = 1.0
    reduction_hidden: Number = True
    variant: Variant = Variant()

    @property
    def micro_batches(self) -> Number:
        """Micro-batches that a pipeline works through in a step."""
        return self.global_batch / (self.dp * self.micro_batch)

    @property
    def tokens(self) -> Number:
        """Tokens of a micro-batch on a rank, which Ulysses splits."""
        return self.micro_batch * self.seq_length / self.ulysses

    @property
    def copies(self) -> Number:
        """Ranks that hold the same parameters, over which ZeRO divides."""
        return self.dp * self.ulysses

    @property
    def gpus(self) -> Number:
        """Ranks in all."""
        return self.tp * self.pp * self.copies

    @property
    def keys(self) -> Number:
        """Width of the keys, and of the values."""
        return np.where(np.asarray(self.variant.kv_size) > 0, self.variant.kv_size, self.hidden_size)

    def blocks(self, stage: Number) -> Number:
        """Blocks of a stage."""
        before = np.maximum(self.pp - 1, 1)
        rest = self.num_layers - self.last_blocks
        return np.where(
            stage == np.asarray(self.pp) - 1, self.last_blocks, rest // before + (stage < np.mod(rest, before))
        )

    @property
    def block_matrices(self) -> Number:
        """Elements of a block's matrices, unsliced."""
        h = self.hidden_size
        return 2 * h * h + 2 * h * self.keys + self.variant.ffn_matrices * h * self.ffn_hidden_size

    def parameters(self, stage: Number) -> Number:
        """Parameters of a rank of a stage. Exact for this project's model, which `planner.verify` proves."""
        h, t, biases = self.hidden_size, self.tp, self.variant.biases
        sliced_bias = (h + 2 * self.keys + (self.variant.ffn_matrices - 1) * self.ffn_hidden_size) / t
        block = self.block_matrices / t + biases * (sliced_bias + 2 * h) + 2 * (1 + biases) * h
        embedding = self.vocab_rows * h / t
        first, last = stage == np.asarray(0), stage == np.asarray(self.pp) - 1
        head = np.where(self.variant.tied, last & ~first, last) * embedding
        ends = first * (embedding + self.position_rows * h) + last * (1 + biases) * h + head
        return self.blocks(stage) * block + ends

    @property
    def model_flops(self) -> Number:
        """Model FLOPs of a step, over all ranks: what `GPTConfig.flops_per_token` counts."""
        tokens = self.global_batch * self.seq_length
        matrices = self.num_layers * self.block_matrices + self.vocab_rows * self.hidden_size
        return tokens * (6.0 * matrices + 12.0 * self.num_layers * self.seq_length * self.hidden_size)

    @property
    def hardware_flops(self) -> Number:
        """The same with recomputation: a forward pass again of what is recomputed."""
        tokens = self.global_batch * self.seq_length
        scores = 4.0 * self.num_layers * self.seq_length * self.hidden_size
        again = self.full * (2.0 * self.num_layers * self.block_matrices + scores) + self.selective * scores
        return self.model_flops + tokens * again


def step_of(recipe: Recipe, engine: JsonObject, data_degree: int, layout: Layout | None = None) -> Work:
    """The step of a recipe, in its own layout or another, under a resolved DeepSpeed JSON."""
    apart = recipe.data.tunes or recipe.data.separate_documents
    taught = bool(recipe.teacher.model)
    return work(recipe.model, layout or recipe.layout, engine, data_degree, recipe.lora, apart, taught)


def work(
    model: GPTConfig,
    layout: Layout,
    engine: JsonObject,
    data_degree: int,
    lora: LoRA = NO_ADAPTERS,
    apart: bool = False,
    taught: bool = False,
) -> Work:
    """The step of a model under a resolved DeepSpeed JSON, its documents `apart` or not, `taught` or not."""
    recompute, zero = engine.get("activation_checkpointing", {}), engine.get("zero_optimization", {})
    kind, stage = engine_config.precision(engine), zero.get("stage", 0)
    # Every interval-th block, as the engine does it.
    share = -(-model.num_layers // recompute.get("interval", 1)) / model.num_layers
    cuts = stage_boundaries(model, layout.pp)
    kept, sent = gradient_bytes(engine, stage)
    overlapped = overlaps(engine, stage)
    return Work(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        ffn_hidden_size=model.ffn_hidden_size,
        seq_length=model.seq_length,
        vocab_rows=model.padded_vocab_size,
        position_rows=model.seq_length,
        causal=model.objective == "causal" and not apart,
        apart=apart or model.objective == "prefix",
        taught=taught,
        dropout=model.dropout > 0,
        micro_batch=engine["train_micro_batch_size_per_gpu"],
        global_batch=engine["train_batch_size"],
        tp=layout.tp,
        pp=layout.pp,
        dp=data_degree,
        ulysses=layout.ulysses,
        sequence_parallel=layout.sequence_parallel,
        last_blocks=last_blocks(cuts),
        zero_stage=stage,
        full=share * (recompute.get("granularity") == "full"),
        selective=share * (recompute.get("granularity") == "selective"),
        weight_bytes=4 if kind == "fp32" else 2,
        gradient_bytes=kept,
        reduce_bytes=sent,
        bucket_bytes=bucket_bytes(engine, stage),
        # An fp16 step has its share of the gradients in fp32 too.
        master_bytes={"bf16": 4, "fp16": 8, "fp32": 0}[kind],
        offload_optimizer=zero.get("offload_optimizer", {}).get("device", "none") != "none",
        offload_weights=zero.get("offload_param", {}).get("device", "none") != "none",
        nvme=zero.get("offload_optimizer", {}).get("device") == "nvme",
        hpz=zero.get("zero_hpz_partition_size", 1),
        trained=lora.num_parameters(model) / model.num_parameters if lora.rank else 1.0,
        reduction_hidden=overlapped,
    )


def last_blocks(cuts: list[int]) -> int:
    """Blocks of the last stage, given `stage_boundaries`: final norm and head are there too, and in a single stage the
    embedding and the positions."""
    return cuts[-1] - cuts[-2] - (4 if len(cuts) == 2 else 2)


def gradient_bytes(engine: JsonObject, stage: int) -> tuple[int, int]:
    """Bytes that are kept of a gradient, and sent of it, in a ZeRO stage (DeepSpeed 0.19.8).

    In stage 1 bf16 gradients that are to be summed in fp32 have an optimizer of their own (runtime/bf16_optimizer.py):
    it keeps the sums beside the gradients, unless the JSON updates at once. Otherwise one copy is kept.
    """
    kind, sums = engine_config.precision(engine), engine_config.summed_in(engine)
    sent = 4 if engine_config.sent_in(engine, stage) == "fp32" else 2
    if has_bf16_optimizer(engine, stage) and not engine.get("bf16", {}).get("immediate_grad_update"):
        return 6, sent
    return 4 if "fp32" in (kind, sums) else 2, sent


def has_bf16_optimizer(engine: JsonObject, stage: int) -> bool:
    """Whether DeepSpeed 0.19.8 takes its bf16 optimizer in place of ZeRO's (`_do_optimizer_sanity_check`)."""
    offload = engine.get("zero_optimization", {}).get("offload_optimizer", {}).get("device", "none") != "none"
    half = engine_config.precision(engine) == "bf16" and engine_config.summed_in(engine) == "fp32"
    return half and stage == 1 and not offload


def overlaps(engine: JsonObject, stage: int) -> bool:
    """Whether data ranks send gradients while the backward pass computes (DeepSpeed 0.19.8).

    `overlap_comm` is true by default in ZeRO stage 3 only. Stage 0 and the bf16 optimizer of stage 1 do not read it:
    they send when the last backward pass is over.
    """
    asked: bool = engine.get("zero_optimization", {}).get("overlap_comm", stage == 3)
    return asked and stage > 0 and not has_bf16_optimizer(engine, stage)


def bucket_bytes(engine: JsonObject, stage: int) -> int:
    """Bytes an element of the buckets that gradients are sent from. Stages 1 and 2 fill one while they send another."""
    return gradient_bytes(engine, stage)[1] * (2 if stage < 3 and overlaps(engine, stage) else 1)
