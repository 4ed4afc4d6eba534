"""The model in DeepSpeed's engine, as the training loop and the checkpoints see it.

DeepSpeed has two engines: one for a sharded model (ZeRO stage 0 to 3), see `sharded.py`, and one for a pipeline (ZeRO
stage 1), see `pipelined.py`. What both do alike is here. Who holds an `Engine` does not ask which of them it is.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoint.base import Base
from model.config import LoRA
from model.engine import inside
from model.engine.skipping import look_at_every_gradient
from model.grid import Grid
from model.lora import merged
from model.loss import Reference, Teacher
from support.errors import WeightsLostError

WATCHED = 4  # times the floor of the loss scale: at most this, every gradient is watched


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch of whole samples: tokens and labels [B, S], and weights of the labels [B, S] fp32.

    The prefix objective has the length of each prefix [B]. Where documents do not see each other, `documents_BS` says
    of which document each token is. `other` is what a teacher expected, or the reference of pairs; without it the loss
    is the cross entropy.
    Tensor and Ulysses ranks get the same micro-batch; the engine gives each its share.
    """

    tokens_BS: Tensor
    labels_BS: Tensor
    weights_BS: Tensor
    prefix_B: Tensor | None = None
    documents_BS: Tensor | None = None
    other: Teacher | Reference | None = None

    def share(self, rank: int, size: int, device: torch.device) -> "MicroBatch":
        """The `rank`-th of `size` shares of the sequence, on `device`."""

        def cut(x: Tensor) -> Tensor:
            return x.chunk(size, 1)[rank].contiguous().to(device, non_blocking=True)

        prefix_B, documents_BS = (None if x is None else x.to(device) for x in (self.prefix_B, self.documents_BS))
        other = self.other
        if other:
            other = type(other)(*(cut(x) if x.dim() > 1 else x.to(device) for x in other))
        words = (cut(self.tokens_BS), cut(self.labels_BS), cut(self.weights_BS))
        return MicroBatch(*words, prefix_B, documents_BS, other)


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did. `loss` is the mean over all ranks' micro-batches, in nats; the norm is global.

    Learning rate and loss scale are the ones that this step used. DeepSpeed sets the next ones during the step.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    loss_scale: float
    skipped: bool


class LossScaleFloorError(WeightsLostError):
    """The fp16 loss scale cannot fall any further, and gradients still overflow."""


class Engine(ABC):
    """This rank's part of the model in DeepSpeed's engine, and what one does with it.

    `deepspeed` is the `DeepSpeedEngine`. `names` has the name of each parameter in the plain `GPT`, and adapters
    beside its layers where `lora` has a rank: then nothing else trains, and `base` is the checkpoint of the rest, once
    that was loaded. `entries` is the number of ids of the tokeniser; every label is below it.
    """

    def __init__(self, deepspeed: Any, grid: Grid, names: dict[nn.Parameter, str], entries: int, lora: LoRA) -> None:
        self.deepspeed, self.grid, self.names, self.entries, self.lora = deepspeed, grid, names, entries, lora
        self.trained = {parameter: name for parameter, name in names.items() if parameter.requires_grad}
        self.base: Base | None = None
        self.zero_stage = int(deepspeed.zero_optimization_stage())
        self.device: torch.device = deepspeed.device
        look_at_every_gradient(deepspeed)

    def train_step(self, batches: list[MicroBatch]) -> StepResult:
        """One optimiser step over this data rank's micro-batches; collective.

        Where a loss or a gradient of any rank is not finite, all ranks skip it: weights and optimiser stay as they are.
        Errors: `LossScaleFloorError`.
        """
        rate = float(self.deepspeed.get_lr()[0])
        scale = inside.loss_scale(self.deepspeed)
        inside.hold_loss_scale(self.deepspeed)
        with self._floor_explained(scale):
            loss, norm = self._train(batches)
        return StepResult(
            loss=loss,
            grad_norm=norm,
            learning_rate=rate,
            loss_scale=scale.current if scale else 1.0,
            skipped=not self.deepspeed.was_step_applied(),
        )

    @torch.no_grad()
    def evaluate(self, batches: list[MicroBatch]) -> float:
        """Sum over all data ranks' samples of each sample's weighted losses; the same on every rank. Collective.

        Every data rank must give as many micro-batches of as many samples. A label of weight zero does not count.
        """
        samples = sum(batch.tokens_BS.size(0) for batch in batches)
        return self._mean_loss(batches) * samples * self.grid.dp

    @contextmanager
    def weights(self) -> Iterator[dict[str, Tensor]]:
        """This rank's weights by their names in the plain `GPT`, whole and to be read only; collective.

        Adapters are merged into copies of the weights that they stand beside.
        """
        weights = {name: parameter.detach() for parameter, name in self.names.items()}
        yield merged(weights, self.lora) if self.lora.rank else weights

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of every parameter group."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = rate

    def set_global_batch(self, sequences: int) -> None:
        """Change the global batch by changing the gradient accumulation."""
        sequences *= self.grid.layout.ulysses  # DeepSpeed counts the samples of each Ulysses rank, see `build`
        if self.deepspeed.train_batch_size() != sequences:
            self.deepspeed.set_train_batch_size(sequences)

    def seeks_loss_scale(self) -> bool:
        """Whether skipped steps are how the loss scale is found: fp16 with a dynamic scale."""
        return bool(self.deepspeed.fp16_enabled() and self.deepspeed.dynamic_loss_scale())

    @abstractmethod
    def _train(self, batches: list[MicroBatch]) -> tuple[float, float]:
        """Step; the mean loss over all ranks, and the norm of the whole gradient before clipping."""

    @abstractmethod
    def _mean_loss(self, batches: list[MicroBatch]) -> float:
        """The mean loss over all ranks' micro-batches, without gradients."""

    def _norm(self) -> float:
        """The norm that DeepSpeed has kept of the last step's gradient; NaN where it has none."""
        norm = self.deepspeed.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def _share(self, batch: MicroBatch) -> MicroBatch:
        """This Ulysses rank's share of a micro-batch, on its device."""
        return batch.share(self.grid.ulysses.rank, self.grid.ulysses.size, self.device)

    @contextmanager
    def _floor_explained(self, scale: inside.LossScale | None) -> Iterator[None]:
        """Name the gradients that overflow where the fp16 loss scale cannot fall any further: DeepSpeed only gives up.

        To watch every gradient costs time. So they are watched only where the scale is at most four times its floor:
        each overflow halves it, and after two more it is there.
        """
        if scale is None or scale.current > WATCHED * scale.floor:
            yield
            return
        overflowed: list[str] = []

        def watch(name: str) -> Callable[[Tensor], None]:
            return lambda grad: None if grad.isfinite().all() else overflowed.append(name)

        hooks = [parameter.register_hook(watch(name)) for parameter, name in self.trained.items()]
        try:
            yield
        except Exception as error:
            if not inside.gave_up_at_floor(error):
                raise
            first = ", ".join(list(dict.fromkeys(overflowed))[:3]) or "parameters of another rank"
            raise LossScaleFloorError(
                f"the fp16 loss scale is at its floor of {scale.floor:g} and gradients still overflow, first of all in "
                f"{first}; lower optimizer.lr, or train in bf16"
            ) from None
        finally:
            for hook in hooks:
                hook.remove()


def mean_over_ranks(value: Tensor) -> float:
    """The mean of a number over all ranks; collective, in place."""
    torch.distributed.all_reduce(value)
    return float(value) / torch.distributed.get_world_size()
