"""Starting: the process group, DeepSpeed without its noise, and the engine around this rank's part of the model."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from functools import partial
from typing import Any

import torch
from torch import nn

from model.config import NO_ADAPTERS, GPTConfig, LoRA
from model.engine import inside
from model.engine.baton import let_builds_end_with_their_process
from model.engine.config import recomputed_blocks, zero_stage
from model.engine.engine import Engine
from model.engine.meeting import check_one_launch, choose_interface
from model.engine.pipelined import PipelinedEngine
from model.engine.sharded import ShardedEngine
from model.engine.values import MONITORS
from model.gpt import GPT
from model.grid import Grid, make_grid
from model.init import init_weights
from model.layout import Layout
from model.lora import adapt
from support.errors import CrashedError, UserError
from support.json_object import JsonObject

REFUSALS = (AssertionError, ValueError)  # what DeepSpeed raises where it checks


def quiet_deepspeed() -> None:
    """Load DeepSpeed without its noise, without the CPU kernel that has to be compiled, and with fp16 on every CPU.

    On a CPU DeepSpeed compiles `deepspeed_shm_comm` at the start. That takes half a minute, and the kernel reduces over
    the wrong group. gloo does not need it.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch|deepspeed")
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|deepspeed")
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.ERROR)
    inside.leave_out_shared_memory_kernel()
    inside.allow_fp16_on_cpu()
    let_builds_end_with_their_process()


@contextmanager
def _silent() -> Iterator[None]:
    """Drop what DeepSpeed prints while it builds (memory readings, a dozen lines a group). Errors are raised."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


@contextmanager
def _refusals_in_one_line(kinds: tuple[type[Exception], ...] = REFUSALS) -> Iterator[None]:
    """Say in one line what DeepSpeed refuses in the JSON: our own checks do not know all of its rules.

    `kinds` are the errors that can only be refusals. Errors: `UserError`.
    """
    try:
        yield
    except kinds as error:
        reason = str(error).rstrip(".") or "it does not say why"
        if not isinstance(error, REFUSALS):
            reason = f"{type(error).__name__}: {reason}"  # such as the bare name of a key that is missing
        raise UserError(
            f"DeepSpeed refuses this JSON: {reason}; change it, or where the JSON is right, report this with what "
            "STAGECRAFT_TRACEBACK=1 adds"
        ) from error


def start_process_group() -> None:
    """Join the process group that the launcher described in the environment (NCCL on GPUs, gloo on CPUs).

    Errors: `CrashedError` where the ranks cannot reach each other, or are of two launches.
    """
    quiet_deepspeed()
    import deepspeed

    choose_interface()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        with _silent():
            deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo")
    except torch.distributed.DistNetworkError as error:
        raise CrashedError(f"the ranks cannot meet: {error}; give the launcher another --master_port") from None
    check_one_launch()


def build(
    config: GPTConfig, layout: Layout, ds_config: JsonObject, seed: int, entries: int, lora: LoRA = NO_ADAPTERS
) -> Engine:
    """This rank's part of the model with its initial weights, in DeepSpeed's engine as the resolved JSON says.

    Collective. `entries` is the number of ids of the tokeniser, at most `config.vocab_size`. With a rank in `lora`
    adapters train and nothing else.
    """
    quiet_deepspeed()
    grid = make_grid(layout)
    recompute = recomputed_blocks(ds_config.get("activation_checkpointing", {}), config.num_layers)
    make = _pipelined if layout.pp > 1 else _sharded
    with _silent():
        return make(config, grid, _for_deepspeed(ds_config, layout), recompute, seed, entries, lora)


def check_json(ds_config: JsonObject, layout: Layout, world_size: int) -> None:
    """Let DeepSpeed read a resolved JSON before there is any rank, as it will among `world_size` of them.

    Errors: `UserError` with what it refuses.
    """
    quiet_deepspeed()
    with _silent(), _refusals_in_one_line((Exception,)):
        inside.read_config(_for_deepspeed(ds_config, layout), layout.data_degree(world_size) * layout.ulysses)


def _for_deepspeed(ds_config: JsonObject, layout: Layout) -> JsonObject:
    """A resolved JSON as DeepSpeed gets it: without what is done here."""
    # DeepSpeed's monitors log the rate and the scale of the next step; the training loop logs by itself.
    ours = {*MONITORS, "activation_checkpointing"}
    result = {key: value for key, value in ds_config.items() if key not in ours}
    # DeepSpeed takes Ulysses ranks for data ranks (see `Grid`), so its batch arithmetic counts their samples again.
    result["train_batch_size"] *= layout.ulysses
    return result


def _pipelined(
    config: GPTConfig,
    grid: Grid,
    ds_config: JsonObject,
    recompute: tuple[str, ...],
    seed: int,
    entries: int,
    lora: LoRA,
) -> Engine:
    from model.pipeline import GPTPipeline

    model = GPTPipeline(config, grid, recompute, entries)
    if lora.rank:
        adapt(model, lora)
        inside.forget_tied_gradients(model)
    names = model.plain_names()
    init_weights(names, config, seed)
    if grid.layout.sequence_parallel:
        # DeepSpeed takes activations for equal on all tensor ranks and sends a part from each; here they differ.
        ds_config["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    return PipelinedEngine(initialize(model, ds_config), grid, names, entries, lora)


def _sharded(
    config: GPTConfig,
    grid: Grid,
    ds_config: JsonObject,
    recompute: tuple[str, ...],
    seed: int,
    entries: int,
    lora: LoRA,
) -> Engine:
    """Stage 3 partitions the model while it is built: only one parameter is whole at a time."""
    import deepspeed

    partitioned = zero_stage(ds_config) == 3
    with _refusals_in_one_line():
        place = (
            deepspeed.zero.Init(
                data_parallel_group=grid.data.group, config_dict_or_path=ds_config, mem_efficient_linear=False, mpu=grid
            )
            if partitioned
            else nullcontext()
        )
    gather = partial(deepspeed.zero.GatheredParameters, modifier_rank=0) if partitioned else nullcontext
    with place:
        model = GPT(config, grid.parallel, recompute)
        if lora.rank:
            adapt(model, lora)
    names = {parameter: name for name, parameter in model.named_parameters()}
    init_weights(names, config, seed, gather)
    # A pipeline tells DeepSpeed of its tensor ranks by its topology; here the grid does.
    mpu = grid if grid.layout.tp > 1 else None
    return ShardedEngine(initialize(model, ds_config, mpu), grid, names, entries, lora)


def initialize(model: nn.Module, ds_config: JsonObject, mpu: Grid | None = None) -> Any:
    """Wrap a model in DeepSpeed's engine, with the JSON's AdamW.

    Weight decay acts on matrices only. Parameters of one axis (biases, norm weights) are a group without decay. What is
    frozen is in none.
    """
    import deepspeed

    decay = ds_config["optimizer"]["params"]["weight_decay"]
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if len(inside.shape_of(p)) > 1], "weight_decay": decay},
        {"params": [p for p in trained if len(inside.shape_of(p)) <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    with _refusals_in_one_line():
        engine, *_ = deepspeed.initialize(model=model, model_parameters=groups, config=ds_config, mpu=mpu)
    return engine
