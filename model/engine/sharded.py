"""The engine without a pipeline: every rank computes the whole depth of the model, under ZeRO stage 0, 1, 2 or 3."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from model.engine import inside
from model.engine.engine import Engine, MicroBatch, mean_over_ranks
from model.engine.skipping import skipped
from model.loss import weighted_loss
from model.parallel import slice_of


class ShardedEngine(Engine):
    """One backward pass a micro-batch; DeepSpeed steps with the last one."""

    @contextmanager
    def weights(self) -> Iterator[dict[str, Tensor]]:
        """See `Engine`. Those that stage 3 has partitioned are gathered: so long each rank holds all of them."""
        with inside.gathered(list(self.names)) if self.zero_stage == 3 else nullcontext(), super().weights() as weights:
            yield weights

    def _train(self, batches: list[MicroBatch]) -> tuple[float, float]:
        self.deepspeed.train()
        inside.count_micro_batches_anew(self.deepspeed)
        total, norm = self._zero(), None
        for number, batch in enumerate(batches):
            loss = self._loss(batch)
            self.deepspeed.backward(loss)
            total += loss.detach()
            if self.zero_stage == 0 and number == len(batches) - 1:
                norm = self._gradient_norm()
            # Without ZeRO DeepSpeed keeps no norm, and would write a gradient that is not finite into the weights.
            with nullcontext() if norm is None or math.isfinite(norm) else skipped(self.deepspeed):
                self.deepspeed.step()
        return mean_over_ranks(total / len(batches)), self._norm() if norm is None else norm

    def _mean_loss(self, batches: list[MicroBatch]) -> float:
        self.deepspeed.eval()
        total = self._zero()
        for batch in batches:
            total += self._loss(batch)
        return mean_over_ranks(total / len(batches))

    def _loss(self, batch: MicroBatch) -> Tensor:
        """The loss of a micro-batch, scaled so that its mean over the data axis is the mean over samples."""
        part = self._share(batch)
        logits = self.deepspeed(part.tokens_BS, part.prefix_B, part.documents_BS)
        given = (part.labels_BS, part.weights_BS, self.entries)
        loss = weighted_loss(logits, *given, self.grid.tp, part.other, self.grid.ulysses)
        # DeepSpeed averages over Ulysses ranks as it does over data ranks, but each holds only a part of the sum.
        return loss * self.grid.ulysses.size

    def _gradient_norm(self) -> float:
        """The L2 norm of the whole gradient; on no rank finite where any gradient of any rank is not. Collective.

        Slices add up over the tensor ranks. Whole parameters count once, and may go wrong on one rank only.
        """
        sliced, whole = self._zero(), self._zero()
        for parameter in self.trained:
            assert parameter.grad is not None
            squares = parameter.grad.double().square().sum()
            if slice_of(parameter):
                sliced += squares
            else:
                whole += squares
        torch.distributed.all_reduce(sliced, group=self.grid.tp.group)
        norm = (sliced + whole).sqrt()
        everywhere = norm.clone()
        torch.distributed.all_reduce(everywhere)
        return float(norm if everywhere.isfinite() else everywhere)

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.device)
