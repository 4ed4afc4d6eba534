"""Numbers that DeepSpeed 0.19.8 gets wrong, a test each, with what stands here in their place.

A test that fails says that DeepSpeed has mended or moved something: then the refusal or the remedy beside it can go.
`test_traps_state.py` has what it saves, reads and logs, `test_traps_start.py` how it is configured, built and launched.
"""

import math
from typing import Any

import pytest
import torch

from model.engine import config as engine_config
from model.engine.build import build, initialize
from model.engine.device import check_device
from model.engine.engine import LossScaleFloorError
from model.engine.rules import broken_by_layout
from model.grid import make_grid
from model.layout import Layout
from support.errors import UserError
from tests.distributed import run_ranks
from tests.model import alone, training


def after_each(function: Any, arguments: tuple[Any, ...]) -> list[Any]:
    """Several small engines in the same ranks: a start costs more than they do."""
    return [function(argument) for argument in arguments]


def after_a_clipped_step(stage: int) -> tuple[list[float], float]:
    """fp16 with the gradient (3, -4), clipped to the norm 1: the weights after a step, and the loss scale."""
    scaling = {"enabled": True, "initial_scale_power": 10, "hysteresis": 1}
    subject = alone.engine(alone.config(stage, fp16=scaling, gradient_clipping=1.0), alone.Slope(2))
    alone.step(subject, 3.0, -4.0)
    return subject.module.weight.tolist(), subject.optimizer.loss_scale


def test_fp16_without_zero_divides_by_a_scale_that_it_never_multiplied_by() -> None:
    """By hand: the clipped gradient is (0.6, -0.8), half of it is taken from 1. DeepSpeed takes 1.5 / scale or less,
    which rounds to nothing."""
    (right, scale), (wrong, wrong_scale) = run_ranks(1, after_each, after_a_clipped_step, (1, 0))[0]
    assert right == pytest.approx([0.7, 1.4], abs=1e-3) and scale == 1024
    assert wrong_scale >= 1024 and wrong == pytest.approx([1.0, 1.0], abs=3e-3)
    with pytest.raises(ValueError, match="mis-scales gradients"):
        engine_config.check({"fp16": {"enabled": True}}, "x")


def adam_steps_after_initialisation(precision: str) -> set[float]:
    adam = {"type": "AdamW", "params": {"torch_adam": True}}
    subject = alone.engine(alone.config(0, precision, optimizer=adam))
    base = getattr(subject.optimizer, "optimizer", subject.optimizer)
    return {float(state["step"]) for state in base.state.values()}


def test_half_precision_without_zero_starts_with_a_hidden_step() -> None:
    assert run_ranks(1, after_each, adam_steps_after_initialisation, ("bf16", "fp16")) == [[{1.0}, {1.0}]]
    for precision in ("bf16", "fp16"):
        with pytest.raises(ValueError, match="hidden optimizer step"):
            engine_config.check({precision: {"enabled": True}}, "x")


def norm_of_slices(stage: int) -> float:
    """The norm of a gradient of which tensor rank 0 holds the slice (3) and rank 1 the slice (4)."""
    grid = make_grid(Layout(tp=2))
    model = alone.Slope()
    model.weight.tensor_model_parallel = True  # type: ignore[assignment]
    subject = alone.engine(alone.config(stage, "bf16"), model, grid)
    alone.step(subject, 3.0 + grid.tp.rank)
    return float(subject.get_global_grad_norm())


def test_half_precision_without_zero_forgets_which_parameters_are_slices() -> None:
    """By hand: 5. DeepSpeed asks the gradients for the mark that the parameters carry, and leaves out rank 1's."""
    assert run_ranks(2, after_each, norm_of_slices, (1, 0)) == [[5.0, 3.0]] * 2
    with pytest.raises(ValueError, match="bf16 with ZeRO stage 0"):
        engine_config.check({"bf16": {"enabled": True}}, "x")


def worst_loss(name: str, layout: Layout, pipeline: dict[str, Any] | None, stage: int) -> float:
    from model.engine import build as building

    kept = building.initialize
    world = torch.distributed.get_world_size()
    config = training.engine_json(name, layout.data_degree(world))
    config["zero_optimization"]["stage"] = stage

    def initialize(model: Any, ds_config: dict[str, Any], mpu: Any = None) -> Any:
        if pipeline is not None:
            ds_config = {**ds_config, "pipeline": pipeline}
        return kept(model, ds_config, mpu)

    building.initialize = initialize
    subject = building.build(training.config_for(layout), layout, config, training.SEED, training.ENTRIES)
    losses = [training.step(subject, samples).loss for samples in training.batches(6)]
    reference = training.run_plain(6).losses
    return max(abs(a - b) for a, b in zip(losses, reference, strict=True))


def test_a_pipeline_without_zero_clips_by_a_wrong_norm() -> None:
    assert max(run_ranks(2, worst_loss, "pipeline_fp32", Layout(pp=2), None, 1)) < 1e-5
    assert max(run_ranks(2, worst_loss, "pipeline_fp32", Layout(pp=2), None, 0)) > 1e-4
    (problem,) = broken_by_layout({}, Layout(pp=2))
    assert "clips by a norm that misses the other stages" in problem.what


def test_a_pipeline_takes_sequence_parallel_activations_for_equal_ones() -> None:
    layout = Layout(tp=2, pp=2, sequence_parallel=True)
    assert max(run_ranks(4, worst_loss, "pipeline_fp32", layout, None, 1)) < 1e-5
    assert max(run_ranks(4, worst_loss, "pipeline_fp32", layout, {}, 1)) > 1e-3


def refuses_in_a_pipeline(stage: int) -> str:
    config = training.engine_json("pipeline_fp32", 1)
    config["zero_optimization"]["stage"] = stage
    with pytest.raises(UserError, match="DeepSpeed refuses this JSON") as caught:
        build(training.CONFIG, Layout(pp=2), config, training.SEED, training.ENTRIES)
    assert isinstance(caught.value.__cause__, AssertionError)
    return str(caught.value.__cause__)


def test_a_pipeline_refuses_zero_2_and_3_after_the_start_only() -> None:
    for said in run_ranks(2, after_each, refuses_in_a_pipeline, (2, 3))[0]:
        assert "ZeRO-2 and ZeRO-3 are incompatible with pipeline parallelism" in said
    for stage in (2, 3):
        (problem,) = broken_by_layout({"zero_optimization": {"stage": stage}}, Layout(pp=2))
        assert problem.what.startswith(f"ZeRO stage {stage} does not go with layout.pp 2")


def norms_by_sequence_groups(stages: tuple[int, ...]) -> list[float]:
    """The norm, stage by stage, where the two halves of a sequence have the gradients 3 and 5."""
    from deepspeed.runtime.sequence_parallel import parallel_state_sp

    parallel_state_sp.initialize_sequence_parallel(2)
    norms = []
    for stage in stages:
        subject = alone.engine(alone.config(stage), mpu=parallel_state_sp)
        alone.step(subject, 3.0 + 2.0 * torch.distributed.get_rank())
        norms.append(float(subject.get_global_grad_norm()))
    return norms


def norm_on_our_grid() -> float:
    grid = make_grid(Layout(ulysses=2))
    subject = initialize(alone.Slope(), training.engine_json("zero1_fp32", 2, micro=8))
    alone.step(subject, 3.0 + 2.0 * grid.ulysses.rank)
    return float(subject.get_global_grad_norm())


def test_deepspeed_s_sequence_groups_sum_where_they_should_average() -> None:
    """By hand: the mean is 4. Adam divides the factor out again; clipping does not."""
    assert run_ranks(2, norms_by_sequence_groups, (1, 2, 3)) == [[8.0, 8.0, 4.0]] * 2
    assert run_ranks(2, norm_on_our_grid) == [4.0] * 2


def after_a_nan(stage: int) -> tuple[float, bool]:
    subject = alone.engine(alone.config(stage))
    alone.step(subject, math.nan if torch.distributed.get_rank() == 1 else 1.0)
    return subject.module.weight.item(), subject.was_step_applied()


def test_fp32_without_zero_writes_a_nan_into_the_weights() -> None:
    """tests/faults/test_not_finite.py shows that our engine skips it."""
    for with_zero, (weight, applied) in run_ranks(2, after_each, after_a_nan, (1, 0)):
        assert with_zero == (1.0, False)  # skipped
        assert math.isnan(weight) and applied


def accumulations() -> tuple[int, int]:
    """Micro-batches that DeepSpeed counts for 16 samples on two tensor ranks: its own tensor slicing, and an mpu."""
    from deepspeed.runtime.config import DeepSpeedConfig

    own = alone.config(1, train_batch_size=16, tensor_parallel={"autotp_size": 2})
    ours = training.trainer("zero1_fp32", Layout(tp=2), micro=1).deepspeed
    return DeepSpeedConfig(own).gradient_accumulation_steps, ours.gradient_accumulation_steps()


def test_deepspeed_s_own_tensor_slicing_counts_its_ranks_as_data_ranks() -> None:
    """By hand: tensor ranks share their samples, so that 16 of them take 16 micro-batches of 1."""
    assert run_ranks(2, accumulations) == [(8, 16)] * 2
    with pytest.raises(ValueError, match=r"tensor_parallel is switched on; layout\.tp"):
        engine_config.check({"tensor_parallel": {"autotp_size": 2}}, "x")


def norm_without_zero() -> tuple[Any, float]:
    subject = training.trainer("zero0_fp32")
    result = training.step(subject, training.batches(1)[0])
    return subject.deepspeed.get_global_grad_norm(), result.grad_norm


def test_no_norm_is_kept_without_zero() -> None:
    ((deepspeeds, ours),) = run_ranks(1, norm_without_zero)
    assert deepspeeds is None
    assert math.isclose(ours, training.run_plain(1).norms[0], rel_tol=1e-5)


def test_quantised_communication_is_refused_without_a_gpu() -> None:
    with pytest.raises(ValueError, match="zero_quantized_weights needs a GPU"):
        check_device({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}})


def fall_to_the_floor() -> str:
    """DeepSpeed's own words, which say nothing of where, and are no error of a kind of their own."""
    scaling = {"enabled": True, "initial_scale_power": 1, "hysteresis": 1}
    subject = alone.engine(alone.config(1, fp16=scaling))
    with pytest.raises(Exception, match="loss scale already at minimum") as caught:
        for _ in range(4):
            alone.step(subject, math.inf)
    assert caught.type is Exception
    return str(caught.value)


def run_into_the_floor() -> str:
    subject = training.trainer("zero1_fp16", fp16={"enabled": True, "initial_scale_power": 2, "hysteresis": 1})
    parameter = next(p for p, name in subject.names.items() if name == "blocks.1.mlp.up.weight")
    parameter.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(LossScaleFloorError) as caught:
        for samples in training.batches(6):
            training.step(subject, samples)
    return str(caught.value)


def test_the_loss_scale_at_its_floor_is_explained() -> None:
    (deepspeeds,) = run_ranks(1, fall_to_the_floor)
    assert "weight" not in deepspeeds
    (said,) = run_ranks(1, run_into_the_floor)
    assert "at its floor of 1" in said and "blocks.1.mlp.up.weight" in said
