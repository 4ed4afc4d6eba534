"""The GPT: architecture and nothing else.

The axes of a tensor are the suffix of its name: B batch, S sequence (this rank's share where it is cut), H hidden, F
feed-forward, N heads (this rank's), D head width, V padded vocabulary (this rank's rows). Embedding, block and head are
defined once. The pipeline is made of the same pieces (`model/pipeline.py`).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import GPTConfig
from model.layers import (
    ColumnParallelLinear,
    Norm,
    PositionEmbedding,
    ResidualDropout,
    RowParallelLinear,
    TokenEmbedding,
)
from model.parallel import SOLO, Parallel, all_to_all, sliced_random

HEADS, SEQUENCE = 1, 2  # axes of [B, N, S, D]
Remember = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # takes new keys and values, gives all that were seen


class Attention(nn.Module):
    """Self-attention. The rows of `qkv` are grouped by head, so that a contiguous slice holds whole heads."""

    def __init__(self, config: GPTConfig, parallel: Parallel, recompute: bool) -> None:
        super().__init__()
        self.parallel, self.recompute = parallel, recompute
        self.causal, self.dropout = config.objective == "causal", config.dropout
        self.num_heads, self.head_size = config.num_attention_heads // parallel.tp.size, config.head_size
        self.qkv = ColumnParallelLinear(config.hidden_size, 3 * config.hidden_size, parallel)
        self.out = RowParallelLinear(config.hidden_size, config.hidden_size, parallel)

    def forward(self, x_BSH: Tensor, visible_BSS: Tensor | None = None, remember: Remember | None = None) -> Tensor:
        """`remember` is a cache's, for decoding: the tokens of `x_BSH` then see what was read before them too."""
        qkv = self.qkv(x_BSH)
        B, S, _ = qkv.shape
        qkv_BNS3D = qkv.view(B, S, self.num_heads, 3, self.head_size).transpose(1, 2)
        # Ulysses: a rank has its share of the sequence for all heads, and attention needs the whole sequence. So ranks
        # exchange: each gets the whole sequence for its share of the heads. After the attention they exchange back.
        qkv_BNS3D = all_to_all(qkv_BNS3D, self.parallel.ulysses, HEADS, SEQUENCE)
        if self.recompute and torch.is_grad_enabled():
            y_BNSD = checkpoint(self.core, qkv_BNS3D, visible_BSS, use_reentrant=False)
        else:
            y_BNSD = self.core(qkv_BNS3D, visible_BSS, remember)
        y_BNSD = all_to_all(y_BNSD, self.parallel.ulysses, SEQUENCE, HEADS)
        return self.out(y_BNSD.transpose(1, 2).reshape(B, S, self.num_heads * self.head_size))

    def core(self, qkv_BNS3D: Tensor, visible_BSS: Tensor | None, remember: Remember | None = None) -> Tensor:
        """Scores, softmax, dropout and the weighted sum of the values, fused."""
        q_BNSD, k_BNSD, v_BNSD = qkv_BNS3D.unbind(3)
        if remember:
            k_BNSD, v_BNSD = remember(k_BNSD, v_BNSD)
        mask = None if visible_BSS is None else visible_BSS.unsqueeze(1)
        dropout = self.dropout if self.training else 0.0
        with sliced_random(self.parallel, dropout > 0):
            causal = self.causal and mask is None and q_BNSD.size(SEQUENCE) == k_BNSD.size(SEQUENCE)
            return F.scaled_dot_product_attention(q_BNSD, k_BNSD, v_BNSD, mask, dropout, is_causal=causal)


class MLP(nn.Module):
    """Two linear layers around GPT-2's GELU (the tanh form, Hendrycks & Gimpel 2016, arXiv:1606.08415)."""

    def __init__(self, config: GPTConfig, parallel: Parallel) -> None:
        super().__init__()
        self.up = ColumnParallelLinear(config.hidden_size, config.ffn_hidden_size, parallel)
        self.down = RowParallelLinear(config.ffn_hidden_size, config.hidden_size, parallel)

    def forward(self, x_BSH: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BSH), approximate="tanh"))


class Block(nn.Module):
    """Pre-layer-norm residual block: attention, then MLP.

    `recompute` is "" (keep all activations), "full" (keep the block's input) or "selective" (recompute the attention's
    core alone; Korthikanti et al. 2022, section 5).
    """

    def __init__(self, config: GPTConfig, parallel: Parallel, recompute: str) -> None:
        super().__init__()
        self.recompute = recompute == "full"
        self.norm1 = Norm(config.hidden_size, parallel)
        self.attention = Attention(config, parallel, recompute == "selective")
        self.norm2 = Norm(config.hidden_size, parallel)
        self.mlp = MLP(config, parallel)
        self.dropout = ResidualDropout(config.dropout, parallel)

    def forward(self, x_BSH: Tensor, visible_BSS: Tensor | None = None, remember: Remember | None = None) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.body, x_BSH, visible_BSS, use_reentrant=False)
        return self.body(x_BSH, visible_BSS, remember)

    def body(self, x_BSH: Tensor, visible_BSS: Tensor | None, remember: Remember | None = None) -> Tensor:
        """The block itself."""
        x_BSH = x_BSH + self.dropout(self.attention(self.norm1(x_BSH), visible_BSS, remember))
        return x_BSH + self.dropout(self.mlp(self.norm2(x_BSH)))


class GPT(nn.Module):
    """The decoder in one piece: the plain reference with `SOLO`, a rank's slice of it otherwise.

    `recompute` says for each block what is recomputed in the backward pass; see `Block`.
    """

    def __init__(self, config: GPTConfig, parallel: Parallel = SOLO, recompute: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.config, self.parallel = config, parallel
        self.embed = TokenEmbedding(config, parallel)
        self.position = PositionEmbedding(config, parallel)
        each = recompute or ("",) * config.num_layers
        self.blocks = nn.ModuleList(Block(config, parallel, what) for what in each)
        self.final_norm = Norm(config.hidden_size, parallel)

    def forward(self, tokens_BS: Tensor, prefix_B: Tensor | None = None, documents_BS: Tensor | None = None) -> Tensor:
        """Token ids [B, S] to logits [B, S, V]; columns that are no id of the tokeniser mean nothing.

        `prefix_B` is the length of each sample's prefix, for the prefix objective. `documents_BS` is the number of each
        token's document, ascending in a sample. With it no token sees another document, and positions begin anew in
        each.
        """
        visible_BSS = None if prefix_B is None else prefix_mask(prefix_B, tokens_BS.size(1))
        places_BS = None
        if documents_BS is not None:
            visible_BSS = document_mask(documents_BS, self.config.objective == "causal")
            places_BS = places_in_documents(documents_BS)
        x_BSH = self.position(self.embed(tokens_BS), places_BS)
        for block in self.blocks:
            x_BSH = block(x_BSH, visible_BSS)
        return self.embed.logits(self.final_norm(x_BSH))


def document_mask(documents_BS: Tensor, causal: bool) -> Tensor:
    """Which token (rows) sees which [B, S, S], where no token sees another document."""
    same_BSS = documents_BS[:, :, None] == documents_BS[:, None, :]
    return same_BSS.tril() if causal else same_BSS


def places_in_documents(documents_BS: Tensor) -> Tensor:
    """The position of each token in its document [B, S]. A document that began before the sample counts from its start
    in the sample."""
    place_S = torch.arange(documents_BS.size(1), device=documents_BS.device)
    first_BS = F.pad(documents_BS.diff(dim=1) != 0, (1, 0))
    return place_S - (place_S * first_BS).cummax(1).values


def prefix_mask(prefix_B: Tensor, length: int) -> Tensor:
    """Which token (rows) sees which [B, S, S] under the prefix objective: those before it, itself, and the prefix."""
    place = torch.arange(length, device=prefix_B.device)
    return (place[None, :] <= place[:, None]) | (place < prefix_B[:, None, None])
