"""The state of DeepSpeed's engine and optimisers, for checkpoints: where it lies, and how it is renewed.

DeepSpeed does not promise to keep these fields and methods. Each function names the file and the test, as in
`inside.py`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from support.json_object import JsonObject

SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # the JSON has the scaler's settings


@dataclass(frozen=True)
class Piece:
    """Elements `start … start + numel` of a flattened parameter, which lie at `offset` of a flat tensor."""

    parameter: nn.Parameter
    start: int
    numel: int
    offset: int


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimiser inside ZeRO's; without ZeRO the engine has the torch optimiser itself.

    Read in runtime/zero/stage_1_and_2.py. Shown by test_a_resumed_run_goes_on_bit_for_bit.
    """
    outer = engine.optimizer
    optimizer: torch.optim.Optimizer = getattr(outer, "optimizer", outer)
    return optimizer


def flats_of_stages_1_and_2(engine: Any) -> Iterator[tuple[Tensor, list[Piece]]]:
    """This rank's flat fp32 tensors in ZeRO stages 1 and 2, with what lies in each.

    bf16 weights with fp32 sums have an optimiser of their own, which gives the same fields other names. Read in
    runtime/zero/stage_1_and_2.py, runtime/bf16_optimizer.py and utils/mixed_precision_linkage.py. Shown by
    test_another_layout_reads_the_same_state.
    """
    optimizer = engine.optimizer
    own = hasattr(optimizer, "bf16_groups")
    groups = optimizer.bf16_groups if own else optimizer.bit16_groups
    tensors = optimizer.fp32_groups_flat_partition if own else optimizer.single_partition_of_fp32_groups
    for parameters, tensor in zip(groups, tensors, strict=True):
        mapped = [(p, p._hp_mapping) for p in parameters if p._hp_mapping is not None]  # None: another rank has it
        yield (
            tensor,
            [
                Piece(p, m.lp_fragment_address.start, m.lp_fragment_address.numel, m.hp_fragment_address.start)
                for p, m in mapped
            ],
        )


def flats_of_stage_3(engine: Any) -> Iterator[tuple[Tensor, list[Piece]]]:
    """This rank's flat fp32 tensors in ZeRO stage 3, one a sub-group, with what lies in each.

    Read in runtime/zero/stage3.py. Shown by test_another_layout_reads_the_same_state.
    """
    optimizer = engine.optimizer
    for parameters, tensor in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        pieces = []
        for p in parameters:
            _, offset, _ = optimizer.grad_position[optimizer.get_param_id(p)]
            start, part = part_of_stage_3(p)
            if part.numel():
                pieces.append(Piece(p, start, part.numel(), offset))
        yield tensor, pieces


def part_of_stage_3(parameter: Any) -> tuple[int, Tensor]:
    """This rank's part of a parameter in ZeRO stage 3, flat and without its padding, and where it begins.

    Read in runtime/zero/partition_parameters.py. Shown by test_another_layout_reads_the_same_state.
    """
    size = parameter.ds_tensor.ds_numel
    start = torch.distributed.get_rank(parameter.ds_process_group) * size
    return start, parameter.ds_tensor.data.view(-1)[: max(0, min(size, parameter.ds_numel - start))]


def is_swapped(engine: Any, number: int) -> bool:
    """Whether NVMe offload keeps the state of a sub-group of stage 3 in files. It leaves small ones in memory.

    Read in runtime/zero/stage3.py. Shown by test_states_in_files_train_save_and_resume_as_states_in_memory.
    """
    return bool(engine.optimizer._swappable_optimizer_subgroup(number))


@contextmanager
def swapped_in(engine: Any, number: int) -> Iterator[None]:
    """Have the state of a swapped sub-group in memory for a while. Changes to it are written back at the end.

    Read in runtime/zero/stage3.py. Shown by test_states_in_files_train_save_and_resume_as_states_in_memory.
    """
    engine.optimizer._optimizer_states_and_gradient_swap_in(number)
    try:
        yield
    finally:
        engine.optimizer._optimizer_states_and_gradient_swap_out(number)


def refresh_stages_1_and_2(engine: Any) -> None:
    """Copy the fp32 weights of all data ranks into the weights that compute; collective.

    Read in runtime/zero/stage_1_and_2.py. Shown by test_a_resumed_run_goes_on_bit_for_bit.
    """
    engine.optimizer.update_lp_params()


def refresh_stage_3(engine: Any, number: int) -> None:
    """Copy the fp32 weights of a sub-group into this rank's part of the weights that compute.

    Read in runtime/zero/stage3.py. Shown by test_a_resumed_run_goes_on_bit_for_bit.
    """
    optimizer = engine.optimizer
    optimizer.fp16_partitioned_groups_flat[number].data.copy_(optimizer.fp32_partitioned_groups_flat[number].data)
    optimizer._unflatten_partitioned_parameters(number)


def share_stage_3(engine: Any) -> None:
    """Renew the weights that stage 3 holds beside each rank's part; collective.

    They are ZeRO++'s second copies inside a node, and the small parameters that every rank keeps whole. Read in
    runtime/zero/stage3.py. Shown by test_resumed_adapters_go_on_bit_for_bit.
    """
    kept = engine.optimizer.persistent_parameters
    if kept:
        kept[0].partition(kept)  # else what is whole is not gathered again
    for parameter in engine.module.parameters():  # DeepSpeed's own invalidation passes over what is frozen
        parameter.ds_secondary_tensor = None
    if kept:
        kept[0].all_gather(kept)


def counters(engine: Any) -> JsonObject:
    """The numbers of the engine's state: its counts, and the state of the fp16 loss scaler, empty without fp16.

    Read in runtime/engine.py and runtime/fp16/loss_scaler.py. Shown by test_a_resumed_run_goes_on_bit_for_bit.
    """
    scaler = vars(engine.optimizer.loss_scaler) if engine.fp16_enabled() else {}
    return {
        "global_steps": engine.global_steps,
        "global_samples": engine.global_samples,
        "skipped_steps": engine.skipped_steps,
        "loss_scaler": {key: value for key, value in scaler.items() if key in SCALER_STATE},
    }


def set_counters(engine: Any, numbers: JsonObject) -> None:
    """Set what `counters` has read, and place the scheduler of the JSON at the count of steps that were taken.

    A scheduler that is given no position begins at its first step. Read in runtime/engine.py and
    runtime/lr_schedules.py. Shown by test_a_scheduler_goes_on_at_its_step_whatever_set_the_rate_before.
    """
    for name in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, name, numbers[name])
    if numbers["loss_scaler"] and engine.fp16_enabled() and engine.dynamic_loss_scale():
        vars(engine.optimizer.loss_scaler).update(numbers["loss_scaler"])
    taken = engine.global_steps - engine.skipped_steps
    if engine.lr_scheduler and taken:
        # A scheduler is a function of the steps taken, whatever set the rate of the steps before.
        engine.lr_scheduler.step(taken - 1)
