"""The layers that tensor slicing changes. At degree 1 they are the plain layers. Axes as in `model/gpt.py`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import GPTConfig
from model.parallel import Parallel, enter, leave, mark_slice, replicated, sliced_random


class ColumnParallelLinear(nn.Linear):
    """A linear layer with its outputs sliced over the tensor ranks: weight [out / tp, in]."""

    def __init__(self, inputs: int, outputs: int, parallel: Parallel) -> None:
        super().__init__(inputs, outputs // parallel.tp.size)
        self.parallel = parallel
        self.adapter: nn.Module | None = None  # see `model/lora.py`
        mark_slice(self.weight, 0, parallel.tp)
        mark_slice(self.bias, 0, parallel.tp)

    def forward(self, x_BSH: Tensor) -> Tensor:
        y = super().forward(enter(x_BSH, self.parallel))
        return y if self.adapter is None else y + self.adapter(x_BSH)


class RowParallelLinear(nn.Linear):
    """A linear layer with its inputs sliced: weight [out, in / tp]. The bias is whole and is added after the sum."""

    def __init__(self, inputs: int, outputs: int, parallel: Parallel) -> None:
        super().__init__(inputs // parallel.tp.size, outputs)
        self.parallel = parallel
        self.adapter: nn.Module | None = None  # see `model/lora.py`
        mark_slice(self.weight, 1, parallel.tp)

    def forward(self, x: Tensor) -> Tensor:
        if self.parallel.tp.size == 1:
            y_BSH = super().forward(x)
        else:
            y_BSH = leave(F.linear(x, self.weight), self.parallel) + replicated(self.bias, self.parallel)
        return y_BSH if self.adapter is None else y_BSH + self.adapter(x)


class Norm(nn.LayerNorm):
    """Layer norm, whole on every rank; GPT-2's epsilon."""

    EPSILON = 1e-5

    def __init__(self, size: int, parallel: Parallel) -> None:
        super().__init__(size, eps=self.EPSILON)
        self.parallel = parallel

    def forward(self, x_BSH: Tensor) -> Tensor:
        weight, bias = replicated(self.weight, self.parallel), replicated(self.bias, self.parallel)
        return F.layer_norm(x_BSH, self.normalized_shape, weight, bias, self.eps)


class ResidualDropout(nn.Dropout):
    """Dropout on the residual stream. All tensor ranks draw alike, except where each has its share of the sequence."""

    def __init__(self, p: float, parallel: Parallel) -> None:
        super().__init__(p)
        self.parallel = parallel

    def forward(self, x_BSH: Tensor) -> Tensor:
        active = self.training and self.p > 0 and self.parallel.sequence_parallel
        with sliced_random(self.parallel, active):
            return super().forward(x_BSH)


class TokenEmbedding(nn.Module):
    """The tied matrix: it looks tokens up at the bottom and scores them at the top.

    Its rows are sliced over the tensor ranks. A rank gives zeros for tokens whose rows another rank holds.
    """

    def __init__(self, config: GPTConfig, parallel: Parallel) -> None:
        super().__init__()
        self.parallel = parallel
        rows = config.padded_vocab_size // parallel.tp.size
        self.first_row = parallel.tp.rank * rows
        self.weight = nn.Parameter(torch.empty(rows, config.hidden_size))
        mark_slice(self.weight, 0, parallel.tp)

    def forward(self, tokens_BS: Tensor) -> Tensor:
        if self.parallel.tp.size == 1:
            return F.embedding(tokens_BS, self.weight)
        rows_BS = tokens_BS - self.first_row
        here_BS = (rows_BS >= 0) & (rows_BS < self.weight.size(0))
        x_BSH = F.embedding(rows_BS.where(here_BS, 0), self.weight) * here_BS.unsqueeze(-1)
        return leave(x_BSH, self.parallel)

    def logits(self, x_BSH: Tensor) -> Tensor:
        """Scores [B, S, V / tp] of this rank's rows."""
        return F.linear(enter(x_BSH, self.parallel), self.weight)


class PositionEmbedding(nn.Module):
    """Adds a learned vector for each position of this rank's share of the sequence, then drops out."""

    def __init__(self, config: GPTConfig, parallel: Parallel) -> None:
        super().__init__()
        self.parallel = parallel
        self.weight = nn.Parameter(torch.empty(config.seq_length, config.hidden_size))
        self.dropout = ResidualDropout(config.dropout, parallel)

    def forward(self, x_BSH: Tensor, places_BS: Tensor | None = None) -> Tensor:
        """`places_BS` are the positions of the whole sample where they are not simply 0, 1, 2, …"""
        share, parallel = x_BSH.size(1), self.parallel
        cuts = parallel.tp.size if parallel.sequence_parallel else 1
        first = parallel.ulysses.rank * share * cuts + (parallel.tp.rank * share if cuts > 1 else 0)
        here = slice(first, first + share)
        weight = replicated(self.weight, parallel)
        return self.dropout(x_BSH + (weight[here] if places_BS is None else weight[places_BS[:, here]]))
