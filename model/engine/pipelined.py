"""The engine of a pipeline: every rank computes the blocks of its stage, under ZeRO stage 1."""

import math
from collections.abc import Iterator

from torch import Tensor

from model.engine.engine import Engine, MicroBatch, mean_over_ranks


class PipelinedEngine(Engine):
    """DeepSpeed moves the micro-batches through the stages, and takes the loss on the last one."""

    def _train(self, batches: list[MicroBatch]) -> tuple[float, float]:
        self._show(batches)
        return self._everywhere(self.deepspeed.train_batch(self._parts(batches))), self._norm()

    def _mean_loss(self, batches: list[MicroBatch]) -> float:
        self._show(batches)
        return self._everywhere(self.deepspeed.eval_batch(self._parts(batches), num_micro_batches=len(batches)))

    def _show(self, batches: list[MicroBatch]) -> None:
        """Tell this stage which documents are apart: DeepSpeed gives micro-batches to the first and the last alone."""
        apart = [None if each.documents_BS is None else each.documents_BS.to(self.device) for each in batches]
        self.deepspeed.module.apart.expect(iter(apart))

    def _everywhere(self, loss: Tensor) -> float:
        """The loss of this rank's pipeline, which all tensor ranks have alike; on no rank finite where one is not."""
        mean = mean_over_ranks(loss.detach().double().flatten().clone())
        return float(loss) if math.isfinite(mean) else mean

    def _parts(self, batches: list[MicroBatch]) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """What a `PipelineModule` takes: the input of the first stage, and what the last one needs for the loss."""
        for batch in batches:
            part = self._share(batch)
            yield part.tokens_BS, (part.labels_BS, part.weights_BS, *(part.other or ()))
