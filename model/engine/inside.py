"""What reaches into DeepSpeed's inside: fields and methods that it does not promise to keep. All of it stands here,
but for the state that checkpoints hold, `held.py`, and for what has it skip steps, `skipping.py`.

Each function says in which file of DeepSpeed 0.19.8 its field was read, and which test shows what goes wrong where the
field is gone or means something else. Two hooks cannot stand here, because they are overridden methods of a subclass:
`GPTPipeline._partition_layers` in `model/pipeline.py`, and the methods of `model/grid.py` that DeepSpeed calls.
"""

import copy
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from support.json_object import JsonObject

EXAMINED = ("0.19.8",)  # the versions of DeepSpeed in which everything below was read and tested


def unexamined_version() -> str:
    """One line where the installed DeepSpeed is none of `EXAMINED`, else nothing."""
    installed = importlib.metadata.version("deepspeed")
    if installed.split("+")[0] in EXAMINED:
        return ""
    return (
        f"DeepSpeed {installed} is installed, and this project was checked with {', '.join(EXAMINED)} only: "
        f"install deepspeed=={EXAMINED[-1]}, or run the tests in tests/model first"
    )


# --- Starting --------------------------------------------------------------------------------------------------------


def leave_out_shared_memory_kernel() -> None:
    """Do not compile DeepSpeed's shared-memory reduction, which ignores its group.

    Read in ops/__init__.py. Shown by test_the_shared_memory_reduction_ignores_its_group.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def allow_fp16_on_cpu() -> None:
    """Let a CPU train in fp16. torch computes fp16 on every CPU; DeepSpeed refuses it where the hardware does not.

    Read in accelerator/cpu_accelerator.py. Shown by test_fp16_is_refused_on_a_cpu_that_computes_it_in_software.
    """
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        accelerator.is_fp16_supported = lambda: True


@contextmanager
def groups_of(
    axes: dict[str, list[list[int]]], made: dict[str, Any], split: Callable[[list[list[int]]], Any]
) -> Iterator[None]:
    """Let DeepSpeed have one group for each of its axes: that of `made`, or else what `split` makes of the axis.

    It has every rank make every group, 697 for the 2,240 ranks of 530B. Read in runtime/pipe/topology.py and
    runtime/pipe/module.py. Shown by test_a_rank_makes_one_group_an_axis.
    """
    from deepspeed import comm

    axis_of = {tuple(ranks): name for name, groups in axes.items() for ranks in groups}
    made = dict(made)

    def new_group(ranks: Iterable[int]) -> Any:
        ranks = tuple(ranks)
        if ranks not in axis_of:
            # DeepSpeed asks its world for this rank's number, and sends nothing over a group of one.
            assert len(ranks) in (1, comm.get_world_size()), f"DeepSpeed makes a group of another axis: {ranks}"
            return torch.distributed.group.WORLD if len(ranks) > 1 else None
        name = axis_of[ranks]
        if name not in made:
            made[name] = split(axes[name])
        return made[name] if comm.get_rank() in ranks else None

    original, comm.new_group = comm.new_group, new_group
    try:
        yield
    finally:
        comm.new_group = original


def read_config(ds_config: JsonObject, data_ranks: int) -> None:
    """Let DeepSpeed read and check a JSON as its engine does, among so many data ranks that are not there.

    It counts its ranks between reading and checking. Read in runtime/config.py. Shown by
    test_what_deepspeed_refuses_is_known_before_there_are_ranks.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    class Pretended(DeepSpeedConfig):
        def _configure_train_batch_size(self) -> None:
            self.world_size = data_ranks
            super()._configure_train_batch_size()

    Pretended(copy.deepcopy(ds_config))


def can_compile(builder: str) -> bool:
    """Whether this machine has what a kernel is compiled from. `builder` is the name of DeepSpeed's class for it.

    Read in accelerator/abstract_accelerator.py. Shown by test_offload_without_its_library_is_said.
    """
    from deepspeed.accelerator import get_accelerator

    return bool(get_accelerator().create_op_builder(builder).is_compatible(verbose=False))


def cut_pipeline(pipeline: Any, boundaries: list[int]) -> None:
    """Give this rank of a `PipelineModule` the layers of its stage. Stage i has layers `boundaries[i : i + 2]`.

    Read in runtime/pipe/module.py. Shown by test_a_pipeline_is_cut_by_cost_and_not_as_deepspeed_would.
    """
    stage = pipeline._topo.get_coord(pipeline.global_rank).pipe
    pipeline.parts = boundaries
    pipeline._set_bounds(start=boundaries[stage], stop=boundaries[stage + 1])


def forget_tied_gradients(pipeline: Any) -> None:
    """Send no gradients of the embedding between the first and the last stage of a `PipelineModule`: it is frozen.

    DeepSpeed's optimiser for bf16 with fp32 sums has no place for them. The stages begin with the same values, which
    were sent when the pipeline was built or read from one checkpoint. Read in runtime/pipe/module.py and
    runtime/pipe/engine.py. Shown by test_adapters_in_half_precision_follow_fp32.
    """
    pipeline.tied_comms.clear()


# --- Training --------------------------------------------------------------------------------------------------------


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """The shape of this rank's slice of a parameter. ZeRO stage 3 has flattened and partitioned it.

    Read in runtime/zero/partition_parameters.py. Shown by test_a_layout_trains_like_plain_pytorch.
    """
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def gathered(parameters: list[nn.Parameter]) -> AbstractContextManager[None]:
    """Parameters that ZeRO stage 3 has partitioned, whole until the context ends; collective.

    Read in runtime/zero/partition_parameters.py. Shown by test_weights_of_the_moment_answer_as_a_plain_model.
    """
    import deepspeed

    result: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(parameters)
    return result


def count_micro_batches_anew(engine: Any) -> None:
    """Begin a step with no micro-batch counted.

    DeepSpeed steps when its count of all micro-batches divides by the accumulation. A batch-size ramp changes the
    accumulation, and so does a run that is resumed on another number of ranks. Read in runtime/engine.py. Shown by
    test_a_growing_batch_trains_like_plain_pytorch.
    """
    engine.micro_steps = 0


@dataclass(frozen=True)
class LossScale:
    """The fp16 loss scale in use, and the lowest value that it may fall to."""

    current: float
    floor: float


def loss_scale(engine: Any) -> LossScale | None:
    """The loss scale of this moment, None without fp16. `engine.loss_scale()` is 0 where the scale is dynamic.

    Read in runtime/fp16/loss_scaler.py. Shown by test_the_loss_scale_at_its_floor_is_explained.
    """
    if not engine.fp16_enabled():
        return None
    scaler = engine.optimizer.loss_scaler
    return LossScale(float(scaler.cur_scale), float(getattr(scaler, "min_scale", 0.0)))


def hold_loss_scale(engine: Any) -> None:
    """Keep the loss scale of this moment through the next step; the scaler goes on to find the one after it.

    DeepSpeed raises the scale within a step, and then divides by it gradients that were multiplied by the lower one.
    Read in runtime/zero/stage_1_and_2.py and runtime/zero/stage3.py. Shown by
    test_a_rising_loss_scale_does_not_halve_a_step.
    """
    if engine.fp16_enabled():
        engine.optimizer.override_loss_scale(engine.optimizer.loss_scaler.cur_scale)


def gave_up_at_floor(error: Exception) -> bool:
    """Whether an error of DeepSpeed says that the loss scale cannot fall any further. It has no type of its own.

    Read in runtime/fp16/loss_scaler.py. Shown by test_the_loss_scale_at_its_floor_is_explained.
    """
    return "loss scale already at minimum" in str(error)
