"""The GPT: architecture and nothing else.

Axes are suffixes: B batch, S sequence, H hidden, F feed-forward, N heads, D head width, V padded vocabulary.
Embedding, block and head are defined once here; every parallel form is made of the same pieces.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import GPTConfig

LAYER_NORM_EPSILON = 1e-5  # GPT-2's


class TokenEmbedding(nn.Module):
    """The tied matrix: looks tokens up at the bottom, scores them at the top."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.padded_vocab_size, config.hidden_size))

    def forward(self, tokens_BS: Tensor) -> Tensor:
        return F.embedding(tokens_BS, self.weight)

    def logits(self, x_BSH: Tensor) -> Tensor:
        return F.linear(x_BSH, self.weight)


class PositionEmbedding(nn.Module):
    """Adds a learned vector for each position, then drops out."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.seq_length, config.hidden_size))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BSH: Tensor) -> Tensor:
        return self.dropout(x_BSH + self.weight[: x_BSH.size(1)])


class Attention(nn.Module):
    """Causal self-attention. The rows of `qkv` are grouped by head, so that a contiguous slice holds whole heads."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.num_heads, self.head_size = config.num_attention_heads, config.head_size
        self.dropout = config.dropout
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x_BSH: Tensor) -> Tensor:
        B, S, H = x_BSH.shape
        qkv_BNS3D = self.qkv(x_BSH).view(B, S, self.num_heads, 3, self.head_size).transpose(1, 2)
        q_BNSD, k_BNSD, v_BNSD = qkv_BNS3D.unbind(3)
        dropout = self.dropout if self.training else 0.0
        y_BNSD = F.scaled_dot_product_attention(q_BNSD, k_BNSD, v_BNSD, is_causal=True, dropout_p=dropout)
        return self.out(y_BNSD.transpose(1, 2).reshape(B, S, H))


class MLP(nn.Module):
    """Two linear layers around GPT-2's GELU (the tanh form, Hendrycks & Gimpel 2016, arXiv:1606.08415)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.ffn_hidden_size)
        self.down = nn.Linear(config.ffn_hidden_size, config.hidden_size)

    def forward(self, x_BSH: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BSH), approximate="tanh"))


class Block(nn.Module):
    """Pre-layer-norm residual block: attention, then MLP."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)
        self.mlp = MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BSH: Tensor) -> Tensor:
        x_BSH = x_BSH + self.dropout(self.attention(self.norm1(x_BSH)))
        return x_BSH + self.dropout(self.mlp(self.norm2(x_BSH)))


class GPT(nn.Module):
    """The plain decoder, the reference that every parallel form is tested against."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = TokenEmbedding(config)
        self.position = PositionEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=LAYER_NORM_EPSILON)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        """Token ids [B, S], S at most `seq_length`, to logits [B, S, V]; columns past `vocab_size` mean nothing."""
        x_BSH = self.position(self.embed(tokens_BS))
        for block in self.blocks:
            x_BSH = block(x_BSH)
        return self.embed.logits(self.final_norm(x_BSH))
