"""The engine without a pipeline: every rank computes the whole depth of the model, under ZeRO stage 0, 1, 2 or 3."""

import math

import torch
from torch import Tensor

from model.engine import inside
from model.engine.engine import Engine, MicroBatch, mean_over_ranks
from model.loss import weighted_loss
from model.parallel import slice_of
from support.errors import UserError


class ShardedEngine(Engine):
    """One backward pass a micro-batch; DeepSpeed steps with the last one."""

    def _train(self, batches: list[MicroBatch]) -> tuple[float, float]:
        self.deepspeed.train()
        inside.count_micro_batches_anew(self.deepspeed)
        total, norm = self._zero(), None
        for number, batch in enumerate(batches):
            loss = self._loss(batch)
            self.deepspeed.backward(loss)
            if self.zero_stage == 0 and number == len(batches) - 1:
                norm = self._finite_norm()
            self.deepspeed.step()
            total += loss.detach()
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
        loss = weighted_loss(logits, part.labels_BS, part.weights_BS, self.entries, self.grid.tp)
        # DeepSpeed averages over Ulysses ranks as it does over data ranks, but each holds only a part of the sum.
        return loss * self.grid.ulysses.size

    def _finite_norm(self) -> float:
        """The norm before a step without ZeRO, where DeepSpeed computes none and skips nothing.

        Errors: `UserError` on every rank where it is not finite; the weights are as before.
        """
        norm = self._gradient_norm()
        if not math.isfinite(norm):
            raise UserError(
                f"the gradient norm is {norm}, and without ZeRO DeepSpeed 0.19.8 would write it into the weights; "
                "set zero_optimization.stage to 1, which skips such a step, or lower optimizer.lr"
            )
        return norm

    def _gradient_norm(self) -> float:
        """The L2 norm of the whole gradient. Slices add up over the tensor ranks; whole parameters count once."""
        sliced, whole = self._zero(), self._zero()
        for parameter in self.names:
            assert parameter.grad is not None
            squares = parameter.grad.double().square().sum()
            if slice_of(parameter):
                sliced += squares
            else:
                whole += squares
        torch.distributed.all_reduce(sliced, group=self.grid.tp.group)
        return float((sliced + whole).sqrt())

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64, device=self.device)
