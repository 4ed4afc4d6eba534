"""The keys and values of the tokens that were read, so that each is computed once."""

from functools import partial

import torch
from torch import Tensor

from model.gpt import Remember


class Cache:
    """Keys and values of a stage's layers, each [rows, N, T, D]; axes as in `model/gpt.py`.

    Each row counts its own columns from its first token on. So rows of any lengths stand side by side, and a token's
    column is its position. The rows in use are the first ones: a view of them is a batch.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        # Zeros, because a weight of 0 for what is not seen does not silence a NaN that memory may hold.
        self.k = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]
        self.v = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(layers)]

    def reads(self, first: int) -> list[Remember]:
        """For each layer: write the first tokens of the rows from `first` on. They see each other alone."""
        return [partial(self._start, layer, first) for layer in range(len(self.k))]

    def _start(self, layer: int, first: int, k_BNSD: Tensor, v_BNSD: Tensor) -> tuple[Tensor, Tensor]:
        B, _, S, _ = k_BNSD.shape
        self.k[layer][first : first + B, :, :S] = k_BNSD
        self.v[layer][first : first + B, :, :S] = v_BNSD
        return k_BNSD, v_BNSD

    def steps(self, lengths: list[int], stop: int) -> tuple[list[Remember], Tensor | None]:
        """For each layer: write one token behind the `lengths` that the first rows have, and see columns up to `stop`.

        Also gives what is added to the scores [B, 1, T]: minus infinity where a row has no token in a column. None
        where all have one in all.
        """
        device, dtype, (least, most) = self.k[0].device, self.k[0].dtype, (min(lengths), max(lengths))
        if least == most:
            mask_1T = torch.zeros(1, stop, dtype=dtype, device=device)
            mask_1T[:, most + 1 :] = -torch.inf
            steps: list[Remember] = [partial(self._add, layer, most, stop) for layer in range(len(self.k))]
            return steps, mask_1T[:, None] if most + 1 < stop else None
        column_B = torch.tensor(lengths, device=device)
        row_B = torch.arange(len(lengths), device=device)
        unseen_BT = torch.arange(stop, device=device) > column_B[:, None]
        mask_BT = torch.zeros(unseen_BT.shape, dtype=dtype, device=device).masked_fill_(unseen_BT, -torch.inf)
        steps = [partial(self._add_to, layer, row_B, column_B, stop) for layer in range(len(self.k))]
        return steps, mask_BT[:, None]

    def _add(self, layer: int, column: int, stop: int, k_BNSD: Tensor, v_BNSD: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.k[layer][: len(k_BNSD), :, :stop], self.v[layer][: len(k_BNSD), :, :stop]
        k[:, :, column : column + 1], v[:, :, column : column + 1] = k_BNSD, v_BNSD
        return k, v

    def _add_to(
        self, layer: int, row_B: Tensor, column_B: Tensor, stop: int, k_BNSD: Tensor, v_BNSD: Tensor
    ) -> tuple[Tensor, Tensor]:
        self.k[layer][row_B, :, column_B] = k_BNSD[:, :, 0]
        self.v[layer][row_B, :, column_B] = v_BNSD[:, :, 0]
        return self.k[layer][: len(row_B), :, :stop], self.v[layer][: len(row_B), :, :stop]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` columns of a row over another row."""
        for held in (*self.k, *self.v):
            held[target, :, :length] = held[source, :, :length]

    def reorder(self, sources: list[int], length: int) -> None:
        """The first rows become copies of the first `length` columns of these rows."""
        source_B = torch.tensor(sources, device=self.k[0].device)
        for held in (*self.k, *self.v):
            held[: len(sources), :, :length] = held[source_B, :, :length]
