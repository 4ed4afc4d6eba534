"""What a rank holds, part by part, in closed form; every formula takes numbers or numpy arrays (see `planner.work`).

Bytes. The peak of a rank is the sum of its parts: states (Rajbhandari et al. 2020, arXiv:1910.02054), activations of
the micro-batches in flight (Korthikanti et al. 2022, arXiv:2205.05198, section 4), the block being recomputed, logits
and loss, communication buffers, and what the allocator and the driver add. Imports no torch.
"""

import numpy as np

from planner.work import Number, Work

# DeepSpeed's defaults: elements of a bucket for a reduction, and elements that stage 3 holds gathered.
BUCKET_ELEMENTS, GATHERED_ELEMENTS = 5e8, 1e9
CONTEXT_BYTES = 2.5e9  # driver context, communication library, workspaces of libraries; a round figure
FRAGMENTED_SHARE = 0.05  # what the caching allocator holds besides, as a share of what is allocated


def block_bytes(work: Work) -> tuple[Number, Number]:
    """Activations that one block keeps of a micro-batch for its backward pass.

    Korthikanti et al. 2022, equations 1 to 4: s b h (34 + 5 a s / h) on one rank; with tensor parallelism 10 of the 34
    stay whole, 2 of them masks of dropout, unless the sequence is split too. The 24 sliced ones are queries, keys,
    values, attention's output and the feed-forward layer's 16 at four times the width. The two terms are returned
    apart; with fused attention the second is 0. Where attention is told who sees whom, torch puts that into the
    precision of the weights in each block anew, and keeps it with the scores.
    """
    half = work.weight_bytes / 2  # elements of 2 bytes in the formulas; masks have one
    masks = np.where(work.dropout, 1.0, 0.0)
    split = np.where(work.sequence_parallel, work.tp, 1)
    # The inputs of the two sliced layers, 4 of the 10, are whole in backward: gathered again, or kept from before.
    whole = (8.0 * half + 2.0 * masks) / split + np.where(work.variant.regathered, 0.0, 4.0 * half * (1 - 1 / split))
    feed = (
        4.0 * (work.variant.ffn_matrices - 1) * work.ffn_hidden_size / work.hidden_size
    )  # gated: gate, its activation too
    sliced = half * (4.0 + 4.0 * work.keys / work.hidden_size + feed) / work.tp
    heads = work.num_attention_heads / (work.tp * work.ulysses)
    squares = work.micro_batch * heads * work.seq_length**2
    scores = np.where(work.variant.fused, 0.0, squares * (2.0 * half + masks * (1.0 + 2.0 * half)))
    return work.tokens * work.hidden_size * (whole + sliced), scores + visible_bytes(work) * work.weight_bytes


def visible_bytes(work: Work) -> Number:
    """Who sees whom in a micro-batch, a byte a pair, whole on each tensor and Ulysses rank; 0 where nobody is told."""
    return np.where(work.apart, work.micro_batch * work.seq_length**2, 0.0)


def checkpoint_bytes(work: Work) -> Number:
    """A block's input, which is kept where the block is recomputed."""
    return work.tokens * work.hidden_size * work.weight_bytes / np.where(work.sequence_parallel, work.tp, 1)


def in_flight(work: Work, stage: Number) -> Number:
    """Micro-batches whose activations a stage holds at once: 1F1B, the first stage most.

    Interleaving adds (pp - 1) / (pp v) of the first stage's (Korthikanti et al. 2022, section 4.2.3).
    """
    p, v = work.pp, work.variant.virtual_stages
    interleaved = (1 + np.where(np.asarray(v) > 1, (p - 1) / (p * v), 0.0)) * (p - stage)
    return np.minimum(interleaved, work.micro_batches)


def rank_bytes(work: Work, stage: Number) -> dict[str, Number]:
    """The parts of a rank of pipeline stage `stage` at its peak."""
    parameters, copies = work.parameters(stage), work.copies
    trained = parameters * work.trained
    zero = np.asarray(work.zero_stage)
    stage_, p = np.asarray(stage), np.asarray(work.pp)
    block, scores = block_bytes(work)
    checkpoint, blocks = checkpoint_bytes(work), work.blocks(stage)
    kept = work.full * checkpoint + work.selective * block + (1 - work.full - work.selective) * (block + scores)
    last = stage_ == p - 1
    tokens_logits = work.tokens * work.vocab_rows / work.tp
    output = np.where(p > 1, checkpoint, 0.0)  # handed on, and kept until its gradient comes
    visible = np.where(work.full + work.selective > 0, visible_bytes(work), 0.0)  # one for all blocks that recompute
    # While a block is recomputed, or an attention's core, its activations stand beside the kept ones.
    working = np.where(work.full > 0, block + scores, np.where(work.selective > 0, scores, 0.0))
    divergence = 4.0 * np.where(work.taught, 1.0, 0.0)  # softened odds in fp32, besides those of the cross entropy
    logits = np.where(last, (work.variant.logit_bytes + divergence) * tokens_logits, 0.0)
    # Stage 3 gathers two blocks ahead, or as much as it may, or one matrix at the least.
    largest = np.maximum(GATHERED_ELEMENTS, work.hidden_size * work.ffn_hidden_size / work.tp)
    live = np.minimum(2.0 * work.block_matrices / work.tp, largest) * work.weight_bytes
    buckets = np.minimum(BUCKET_ELEMENTS, trained) * work.bucket_bytes
    # The loss is over before the first block's recomputation begins; the larger of the two makes the peak.
    working, logits = np.where(working >= logits, working, 0.0), np.where(logits > working, logits, 0.0)
    # Between micro-batches a pipeline gives nothing away: gradients stay whole, and so does what stage 3 gathered.
    live = np.where(p > 1, parameters * work.weight_bytes, live)
    second = np.where(np.asarray(work.hpz) > 1, 1 / work.hpz, 0.0)  # a copy of the weights in each node
    parts: dict[str, Number] = {
        "weights": parameters * work.weight_bytes * np.where(zero == 3, 1 / copies + second, 1.0),
        "gradients": trained * work.gradient_bytes / np.where((zero >= 2) & (p == 1), copies, 1),
        "optimizer states": trained * (8.0 + work.master_bytes) / np.where(zero >= 1, copies, 1),
        "activations": in_flight(work, stage) * (blocks * kept + output + visible),
        "working memory": working,
        "logits and loss": logits,
        "communication": np.where(zero == 3, live + buckets, np.where(copies > 1, buckets, 0.0)),
    }
    for part in ("optimizer states", "gradients"):  # the gradients go where the states are
        parts[part] = np.where(work.offload_optimizer, 0.0, parts[part])
    on_gpu = np.where(zero == 3, second * parameters * work.weight_bytes, 0.0)  # the second copy stays
    parts["weights"] = np.where(work.offload_weights, on_gpu, parts["weights"])
    parts["allocator and driver"] = CONTEXT_BYTES + FRAGMENTED_SHARE * sum(parts.values())
    return parts


def peak_bytes(work: Work) -> Number:
    """The most that any rank holds: the first stage has the most micro-batches in flight, the last one the logits."""
    first, last = sum(rank_bytes(work, 0).values()), sum(rank_bytes(work, work.pp - 1).values())
    return np.maximum(first, last)
