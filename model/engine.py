"""The DeepSpeed engine around the model: start the process group, build the engine, train a step, evaluate."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.gpt import GPT
from model.loss import mean_loss, token_losses

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine as DeepSpeedEngine  # others name the type from here


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did. `loss` is the mean over this rank's micro-batches, in nats; the norm is global."""

    loss: float
    grad_norm: float
    loss_scale: float
    skipped: bool


def quiet_deepspeed() -> None:
    """Load DeepSpeed without its noise, and without the CPU op that has to be compiled.

    On a CPU DeepSpeed compiles `deepspeed_shm_comm` at start, which takes half a minute and reduces over the wrong
    group (DeepSpeed 0.19.8, comm/torch.py); gloo needs none of it.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|deepspeed")
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|deepspeed")
    import deepspeed
    import deepspeed.ops

    deepspeed.utils.logger.setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


@contextmanager
def _silent_build() -> Iterator[None]:
    """Drop what DeepSpeed prints while it builds (memory readings, a dozen lines a group); errors are raised."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def start_process_group() -> None:
    """Join the process group that the launcher described in the environment (NCCL on GPUs, gloo on CPUs)."""
    quiet_deepspeed()
    import deepspeed

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with _silent_build():
        deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")


def build_engine(model: nn.Module, config: dict[str, Any]) -> "DeepSpeedEngine":
    """Wrap a model in DeepSpeed's engine as the resolved JSON says.

    Weight decay acts on matrices only: biases, norm weights and everything else of one axis go into a second group.
    """
    quiet_deepspeed()
    import deepspeed

    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    decay = config["optimizer"]["params"]["weight_decay"]
    groups = [{"params": decayed, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    with _silent_build():
        engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=config)
    return engine


def train_step(engine: "DeepSpeedEngine", micro_batches: list[Tensor]) -> StepResult:
    """One optimiser step over this rank's micro-batches, each of tokens [B, S + 1]."""
    engine.train()
    total = 0.0
    for micro in micro_batches:
        micro = micro.to(engine.device, non_blocking=True)
        loss = mean_loss(engine(micro[:, :-1]), micro[:, 1:], _vocab_size(engine))
        engine.backward(loss)
        engine.step()
        total += loss.item()
    norm = engine.get_global_grad_norm()
    # engine.loss_scale() is the JSON's figure, 0 where the scale is dynamic; the optimiser knows the one in use.
    scale = float(engine.optimizer.loss_scale) if engine.fp16_enabled() else 1.0
    return StepResult(
        loss=total / len(micro_batches),
        grad_norm=float("nan") if norm is None else float(norm),
        loss_scale=scale,
        skipped=not engine.was_step_applied(),
    )


@torch.no_grad()
def sum_losses(model: nn.Module, samples: Tensor, mask: Tensor, vocab_size: int) -> Tensor:
    """Losses of samples [B, S + 1] where `mask` [B, S] is true, as [sum in nats, number of labels], float64."""
    losses = token_losses(model(samples[:, :-1]), samples[:, 1:], vocab_size)
    return torch.stack(((losses.double() * mask).sum(), mask.sum().double()))


def evaluate(engine: "DeepSpeedEngine", samples: Tensor, mask: Tensor, micro_batch: int) -> float:
    """Mean loss in nats over samples [N, S + 1], shared out over the data-parallel ranks; the same on every rank."""
    engine.eval()
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    total = torch.zeros(2, dtype=torch.float64, device=engine.device)
    # Every rank makes the same number of forward passes, the last ones perhaps of nothing: ZeRO-3 gathers in step.
    for first in range(0, len(samples), micro_batch * world):
        mine = [min(first + rank * micro_batch + i, len(samples) - 1) for i in range(micro_batch)]
        real = torch.tensor([first + rank * micro_batch + i < len(samples) for i in range(micro_batch)])
        batch, counted = samples[mine].to(engine.device), (mask[mine] & real[:, None]).to(engine.device)
        total += sum_losses(engine, batch, counted, _vocab_size(engine))
    torch.distributed.all_reduce(total)
    return float(total[0] / total[1])


def set_learning_rate(engine: "DeepSpeedEngine", rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in engine.optimizer.param_groups:
        group["lr"] = rate


def _vocab_size(engine: "DeepSpeedEngine") -> int:
    module = engine.module
    assert isinstance(module, GPT)
    return module.config.vocab_size
