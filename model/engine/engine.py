"""The DeepSpeed engine around the model: start the process group, build, train a step, evaluate.

DeepSpeed has two engines: one for a sharded model (ZeRO 0-3) and one for a pipeline (ZeRO 1). Which of them runs is
known in this file and in no other.
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.config import GPTConfig
from model.gpt import GPT
from model.grid import Grid, make_grid
from model.init import init_weights
from model.layout import Layout
from model.loss import weighted_loss
from model.parallel import slice_of
from support.errors import UserError, WeightsLostError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine as DeepSpeedEngine


@dataclass(frozen=True)
class Batch:
    """A micro-batch of whole samples: tokens and labels [B, S], weights [B, S] fp32, the prefix objective's [B], and
    where documents do not see each other the document of each token [B, S].

    Tensor and Ulysses ranks are given the same one; what each computes of it is the engine's business.
    """

    tokens_BS: Tensor
    labels_BS: Tensor
    weights_BS: Tensor
    prefix_B: Tensor | None = None
    documents_BS: Tensor | None = None

    def share(self, rank: int, size: int, device: torch.device) -> "Batch":
        """The `rank`-th of `size` shares of the sequence, on `device`."""

        def cut(x: Tensor) -> Tensor:
            return x.chunk(size, 1)[rank].contiguous().to(device, non_blocking=True)

        whole = (None if x is None else x.to(device) for x in (self.prefix_B, self.documents_BS))
        return Batch(cut(self.tokens_BS), cut(self.labels_BS), cut(self.weights_BS), *whole)


@dataclass(frozen=True)
class StepResult:
    """What one optimiser step did. `loss` is the mean over all ranks' micro-batches, in nats; the norm is global.

    Learning rate and loss scale are the ones that this step used: DeepSpeed sets the next ones as it steps.
    """

    loss: float
    grad_norm: float
    learning_rate: float
    loss_scale: float
    skipped: bool


class LossScaleFloorError(WeightsLostError):
    """The fp16 loss scale cannot fall any further and gradients still overflow."""


@dataclass(frozen=True)
class Trainer:
    """A model in its engine, with the names its parameters have in the plain `GPT`."""

    engine: "DeepSpeedEngine"
    config: GPTConfig
    grid: Grid
    names: dict[nn.Parameter, str]
    zero_stage: int
    entries: int  # of the tokeniser; no label is at or above it


def quiet_deepspeed() -> None:
    """Load DeepSpeed without its noise, without the CPU op that has to be compiled, and with fp16 on every CPU.

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
    accelerator = deepspeed.accelerator.get_accelerator()
    if accelerator.device_name() == "cpu":
        # torch computes fp16 on every CPU, if slowly; DeepSpeed refuses it where the hardware does not know it.
        accelerator.is_fp16_supported = lambda: True


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


def check_device(ds_config: dict[str, Any]) -> None:
    """Refuse what this machine cannot do. Errors: `UserError` with the reason.

    To be called before any rank builds its engine: what an engine compiles then looks like a build in progress.
    """
    quantised = [
        key
        for key in ("zero_quantized_weights", "zero_quantized_gradients")
        if ds_config.get("zero_optimization", {}).get(key)
    ]
    if quantised and not torch.cuda.is_available():
        raise UserError(
            f"zero_optimization.{quantised[0]} needs a GPU: ZeRO++ quantises with CUDA kernels; switch it off"
        )
    offload = ds_config.get("zero_optimization", {}).get("offload_optimizer", {})
    swapped = offload.get("device") == "nvme"
    if swapped:
        _check_nvme(offload["nvme_path"])
    if swapped or quantised or not ds_config.get("optimizer", {}).get("params", {}).get("torch_adam"):
        _refuse_abandoned_builds()


def _check_nvme(folder: str) -> None:
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(
            f"zero_optimization.offload_optimizer.nvme_path {folder} is not a folder that can be written to; make it "
            "on a fast local disk, or give another"
        )
    from deepspeed.accelerator import get_accelerator

    if not get_accelerator().create_op_builder("AsyncIOBuilder").is_compatible(verbose=False):
        raise UserError(
            "offload to NVMe needs libaio with its headers (Debian: libaio-dev) and a C++ compiler; install them"
        )


def _refuse_abandoned_builds() -> None:
    """DeepSpeed compiles its own kernels at the first start, and for the lock that a killed build has left every later
    start would wait for ever, without a word (0.19.8 with torch's builder). The lock of a live build is open."""
    import deepspeed.ops
    import psutil
    from torch.utils.cpp_extension import get_default_build_root

    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR", get_default_build_root()))
    found = [*root.glob("*/lock"), *root.glob("*/*/lock")]
    locks = [lock for lock in found if lock.parent.name in deepspeed.ops.__compatible_ops__]
    for process in psutil.process_iter() if locks else ():
        with suppress(psutil.Error):
            held = {file.path for file in process.open_files()}
            locks = [lock for lock in locks if str(lock.resolve()) not in held]
    if locks:
        raise UserError(f"{locks[0]} was left by a build that was killed, and DeepSpeed would wait for it; remove it")


def build(config: GPTConfig, layout: Layout, ds_config: dict[str, Any], seed: int, entries: int) -> Trainer:
    """Build this rank's part of the model with its initial weights, and DeepSpeed's engine as the resolved JSON says.

    Collective. `entries` is how many ids the tokeniser has, at most `config.vocab_size`. Weight decay acts on matrices
    only: biases, norm weights and everything else of one axis go into a second group.
    """
    quiet_deepspeed()
    grid = make_grid(layout)
    ds_config = dict(ds_config)
    recompute = recomputed_blocks(ds_config.pop("activation_checkpointing", {}), config.num_layers)
    # Ulysses ranks are data ranks to DeepSpeed, see Grid; its batch arithmetic counts their samples apart.
    ds_config["train_batch_size"] *= layout.ulysses
    if layout.pp > 1 and layout.sequence_parallel:
        # DeepSpeed sends on each tensor rank's part of activations that it takes for equal; here they differ.
        ds_config["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    stage = ds_config.get("zero_optimization", {}).get("stage", 0)
    with _silent_build():
        model, names = _model(config, grid, ds_config, recompute, seed, entries)
        engine = initialize(model, ds_config, grid)
    # The loop writes to the monitors. DeepSpeed's own events have the rate and the loss scale of the next step.
    engine.monitor.enabled = False
    return Trainer(engine, config, grid, names, stage, entries)


def initialize(model: nn.Module, ds_config: dict[str, Any], grid: Grid) -> "DeepSpeedEngine":
    """Wrap a model in DeepSpeed's engine; AdamW with decay on matrices only."""
    import deepspeed

    decay = ds_config["optimizer"]["params"]["weight_decay"]

    def axes(p: nn.Parameter) -> int:
        return len(getattr(p, "ds_shape", p.shape))

    groups = [
        {"params": [p for p in model.parameters() if axes(p) > 1], "weight_decay": decay},
        {"params": [p for p in model.parameters() if axes(p) <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    mpu = grid if grid.layout.pp == 1 and grid.layout.tp > 1 else None
    engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=ds_config, mpu=mpu)
    return engine


def recomputed_blocks(section: dict[str, Any], num_layers: int) -> tuple[str, ...]:
    """What each block recomputes, from the JSON's `activation_checkpointing`: "full" (every `interval`-th block) or
    "selective" (the attention's core in every `interval`-th block), or nothing."""
    kind, interval = section.get("granularity", ""), section.get("interval", 1)
    return tuple(kind if index % interval == 0 else "" for index in range(num_layers))


def _model(
    config: GPTConfig, grid: Grid, ds_config: dict[str, Any], recompute: tuple[str, ...], seed: int, entries: int
) -> tuple[nn.Module, dict[nn.Parameter, str]]:
    """This rank's part of the model. Under ZeRO-3 it is partitioned as it is built, one parameter whole at a time."""
    import deepspeed

    if grid.layout.pp > 1:
        from model.pipeline import GPTPipeline

        pipeline = GPTPipeline(config, grid.layout, grid.world_size, grid.parallel, recompute, entries)
        names = pipeline.plain_names()
        init_weights(names, config, seed)
        return pipeline, names
    partitioned = ds_config.get("zero_optimization", {}).get("stage", 0) == 3
    birth = (
        deepspeed.zero.Init(
            data_parallel_group=grid.data.group, config_dict_or_path=ds_config, mem_efficient_linear=False, mpu=grid
        )
        if partitioned
        else nullcontext()
    )
    with birth:
        model = GPT(config, grid.parallel, recompute)
    names = {parameter: name for name, parameter in model.named_parameters()}
    if partitioned:
        init_weights(names, config, seed, lambda p: deepspeed.zero.GatheredParameters(p, modifier_rank=0))
    else:
        init_weights(names, config, seed)
    return model, names


def train_step(trainer: Trainer, batches: list[Batch]) -> StepResult:
    """One optimiser step over this data rank's micro-batches."""
    engine = trainer.engine
    rate = float(engine.get_lr()[0])
    # engine.loss_scale() is the JSON's figure, 0 where the scale is dynamic; the optimiser knows the one in use.
    scale = float(engine.optimizer.loss_scale) if engine.fp16_enabled() else 1.0
    with _floor_explained(trainer):
        if trainer.grid.layout.pp > 1:
            loss, norm = float(engine.train_batch(_pipeline_batches(trainer, batches))), None
        else:
            loss, norm = _train_sharded(trainer, batches)
    norm = engine.get_global_grad_norm() if norm is None else norm
    return StepResult(
        loss=loss,
        grad_norm=float("nan") if norm is None else float(norm),
        learning_rate=rate,
        loss_scale=scale,
        skipped=not engine.was_step_applied(),
    )


@contextmanager
def _floor_explained(trainer: Trainer) -> Iterator[None]:
    """Say which gradients overflow where the fp16 loss scale cannot fall any further: DeepSpeed only gives up.

    Watching every gradient costs time, so it begins two halvings above the floor.
    """
    scaler = getattr(trainer.engine.optimizer, "loss_scaler", None)
    floor = float(getattr(scaler, "min_scale", 0.0))
    if scaler is None or not trainer.engine.fp16_enabled() or scaler.cur_scale > 4 * floor:
        yield
        return
    overflowed: list[str] = []

    def watch(name: str) -> Callable[[Tensor], None]:
        return lambda grad: None if grad.isfinite().all() else overflowed.append(name)

    hooks = [parameter.register_hook(watch(name)) for parameter, name in trainer.names.items()]
    try:
        yield
    except Exception as error:
        if "loss scale already at minimum" not in str(error):
            raise
        first = ", ".join(list(dict.fromkeys(overflowed))[:3]) or "parameters of another rank"
        raise LossScaleFloorError(
            f"the fp16 loss scale is at its floor of {floor:g} and gradients still overflow, first of all in {first}; "
            "lower optimizer.lr, or train in bf16"
        ) from None
    finally:
        for hook in hooks:
            hook.remove()


def _train_sharded(trainer: Trainer, batches: list[Batch]) -> tuple[float, float | None]:
    engine, norm = trainer.engine, None
    engine.train()
    # DeepSpeed steps where its count of micro-batches divides by the accumulation, which a ramp or a resumed run with
    # another data degree changes: every step begins its count anew.
    engine.micro_steps = 0
    total = torch.zeros((), dtype=torch.float64, device=engine.device)
    for number, batch in enumerate(batches):
        loss = _loss(trainer, batch)
        engine.backward(loss)
        if trainer.zero_stage == 0 and number == len(batches) - 1:
            norm = _gradient_norm(trainer)  # without ZeRO DeepSpeed keeps none
            if not math.isfinite(norm):
                raise UserError(
                    f"the gradient norm is {norm}, and without ZeRO DeepSpeed 0.19.8 would write it into the weights; "
                    "set zero_optimization.stage to 1, which skips such a step, or lower optimizer.lr"
                )
        engine.step()
        total += loss.detach()
    return _mean_over_ranks(total / len(batches)), norm


def _loss(trainer: Trainer, batch: Batch) -> Tensor:
    """The loss of a micro-batch, such that its mean over the data axis is the mean over samples."""
    ulysses = trainer.grid.ulysses
    part = batch.share(ulysses.rank, ulysses.size, trainer.engine.device)
    logits = trainer.engine(part.tokens_BS, part.prefix_B, part.documents_BS)
    loss = weighted_loss(logits, part.labels_BS, part.weights_BS, trainer.entries, trainer.grid.tp)
    return loss * ulysses.size


def _pipeline_batches(trainer: Trainer, batches: list[Batch]) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
    ulysses = trainer.grid.ulysses
    for batch in batches:
        part = batch.share(ulysses.rank, ulysses.size, trainer.engine.device)
        yield part.tokens_BS, (part.labels_BS, part.weights_BS)


def _mean_over_ranks(value: Tensor) -> float:
    torch.distributed.all_reduce(value)
    return float(value) / torch.distributed.get_world_size()


def _gradient_norm(trainer: Trainer) -> float:
    """The L2 norm of the whole gradient before clipping; slices add up over the tensor ranks, whole ones count once."""
    sliced = torch.zeros((), dtype=torch.float64, device=trainer.engine.device)
    whole = torch.zeros_like(sliced)
    for parameter in trainer.names:
        assert parameter.grad is not None
        squares = parameter.grad.double().square().sum()
        if slice_of(parameter):
            sliced += squares
        else:
            whole += squares
    torch.distributed.all_reduce(sliced, group=trainer.grid.tp.group)
    return float((sliced + whole).sqrt())


@torch.no_grad()
def evaluate(trainer: Trainer, batches: list[Batch]) -> float:
    """Sum over all data ranks' samples of each sample's weighted losses; the same on every rank.

    Every data rank must give as many micro-batches of as many samples; a weight of zero makes a label not count.
    """
    engine, samples = trainer.engine, sum(batch.tokens_BS.size(0) for batch in batches)
    if trainer.grid.layout.pp > 1:
        mean = float(engine.eval_batch(_pipeline_batches(trainer, batches), num_micro_batches=len(batches)))
    else:
        engine.eval()
        total = torch.zeros((), dtype=torch.float64, device=engine.device)
        for batch in batches:
            total += _loss(trainer, batch)
        mean = _mean_over_ranks(total / len(batches))
    return mean * samples * trainer.grid.dp


def set_learning_rate(trainer: Trainer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in trainer.engine.optimizer.param_groups:
        group["lr"] = rate


def set_global_batch(trainer: Trainer, sequences: int) -> None:
    """Change the global batch by changing the gradient accumulation."""
    sequences *= trainer.grid.layout.ulysses
    if trainer.engine.train_batch_size() != sequences:
        trainer.engine.set_train_batch_size(sequences)
