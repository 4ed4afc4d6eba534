"""What DeepSpeed 0.19.8 gets wrong, a test each. One that fails says that DeepSpeed has mended or moved something:
then the refusal or the remedy that stands beside it here can go."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from model import engine_config
from model.engine import LossScaleFloorError, check_device
from model.layout import Layout
from tests.distributed import run_ranks
from tests.model import training


def raw(stage: int, precision: str = "", **more: Any) -> dict[str, Any]:
    """A JSON as DeepSpeed alone would take it, past our checks."""
    config = training.engine_json("zero1_fp32", torch.distributed.get_world_size())
    config["zero_optimization"] = {"stage": stage}
    if precision:
        config[precision] = {"enabled": True}
    return {**config, **more}


def adam_steps_after_initialisation(precision: str) -> list[float]:
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=training.model(), model_parameters=list(training.model().parameters()), config=raw(0, precision)
    )
    base = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return [float(state["step"]) for state in base.state.values()]


def test_half_precision_without_zero_starts_with_a_hidden_step() -> None:
    (steps,) = run_ranks(1, adam_steps_after_initialisation, "bf16")
    assert steps and set(steps) == {1.0}
    with pytest.raises(ValueError, match="hidden optimizer step"):
        engine_config.check({"bf16": {"enabled": True}}, "x")
    with pytest.raises(ValueError, match="hidden optimizer step"):
        engine_config.check({"fp16": {"enabled": True}}, "x")


def worst_loss(name: str, layout: Layout, pipeline: dict[str, Any] | None, stage: int) -> float:
    from model import engine

    kept = engine.initialize
    world = torch.distributed.get_world_size()
    config = training.engine_json(name, layout.data_degree(world))
    config["zero_optimization"]["stage"] = stage

    def initialize(model: Any, ds_config: dict[str, Any], grid: Any) -> Any:
        if pipeline is not None:
            ds_config = {**ds_config, "pipeline": pipeline}
        return kept(model, ds_config, grid)

    engine.initialize = initialize
    subject = engine.build(training.config_for(layout), layout, config, training.SEED)
    losses = [training.step(subject, samples).loss for samples in training.batches(6)]
    reference = training.run_plain(6).losses
    return max(abs(a - b) for a, b in zip(losses, reference, strict=True))


def test_a_pipeline_without_zero_clips_by_a_wrong_norm() -> None:
    assert max(run_ranks(2, worst_loss, "pipeline_fp32", Layout(pp=2), None, 1)) < 1e-5
    assert max(run_ranks(2, worst_loss, "pipeline_fp32", Layout(pp=2), None, 0)) > 1e-4
    with pytest.raises(ValueError, match="clips by a norm that misses the other stages"):
        engine_config.check_layout({}, Layout(pp=2), "x")


def test_a_pipeline_takes_sequence_parallel_activations_for_equal_ones() -> None:
    layout = Layout(tp=2, pp=2, sequence_parallel=True)
    assert max(run_ranks(4, worst_loss, "pipeline_fp32", layout, None, 1)) < 1e-5
    assert max(run_ranks(4, worst_loss, "pipeline_fp32", layout, {}, 1)) > 1e-3


@pytest.mark.parametrize("stage", [2, 3])
def test_a_pipeline_with_zero_2_or_3_is_refused_before_anything_starts(stage: int) -> None:
    with pytest.raises(ValueError, match=f"ZeRO stage {stage} does not go with layout.pp 2"):
        engine_config.check_layout({"zero_optimization": {"stage": stage}}, Layout(pp=2), "x")


def accepts_a_typing_error() -> bool:
    from deepspeed.runtime.config import DeepSpeedConfig

    return bool(DeepSpeedConfig(raw(1, gradient_cliping=1.0)).gradient_clipping is not None)


def test_a_mistyped_key_is_ignored_in_silence() -> None:
    assert run_ranks(1, accepts_a_typing_error) == [True]
    with pytest.raises(ValueError, match="unknown key gradient_cliping; did you mean gradient_clipping"):
        engine_config.check({"gradient_cliping": 1.0}, "x")


def norm_without_zero() -> tuple[Any, float]:
    subject = training.trainer("zero0_fp32")
    result = training.step(subject, training.batches(1)[0])
    return subject.engine.get_global_grad_norm(), result.grad_norm


def test_no_norm_is_kept_without_zero() -> None:
    ((deepspeeds, ours),) = run_ranks(1, norm_without_zero)
    assert deepspeeds is None
    assert math.isclose(ours, training.run_plain(1).norms[0], rel_tol=1e-5)


def load_from_nothing(folder: Path) -> Any:
    return training.trainer("zero1_fp32").engine.load_checkpoint(str(folder))


def test_a_missing_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert run_ranks(1, load_from_nothing, tmp_path) == [(None, None)]


def test_quantised_communication_is_refused_without_a_gpu() -> None:
    with pytest.raises(ValueError, match="zero_quantized_weights needs a GPU"):
        check_device({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}})


def run_into_the_floor() -> str:
    subject = training.trainer("zero1_fp16", fp16={"enabled": True, "initial_scale_power": 2, "hysteresis": 1})
    parameter = next(p for p, name in subject.names.items() if name == "blocks.1.mlp.up.weight")
    parameter.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(LossScaleFloorError) as caught:
        for samples in training.batches(6):
            training.step(subject, samples)
    return str(caught.value)


def test_the_loss_scale_at_its_floor_is_explained() -> None:
    (said,) = run_ranks(1, run_into_the_floor)
    assert "at its floor of 1" in said and "blocks.1.mlp.up.weight" in said


def test_the_launcher_ends_well_when_its_inner_process_is_killed(tmp_path: Path) -> None:
    """DeepSpeed's `deepspeed` exits 0; why `launch.local.run` is not believed until the run has left its report."""
    (tmp_path / "sleeper.py").write_text("import time\nopen('up', 'w')\ntime.sleep(60)\n")
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "1", "--no_local_rank", "sleeper.py"]
    env = {**os.environ, "DS_ACCELERATOR": "cpu"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "up").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children = psutil.Process(process.pid).children(recursive=True)
    inner = next(child for child in children if child.children())
    inner.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == 0
    for child in children:
        if child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            child.kill()


def test_deepspeed_s_version_is_the_one_that_was_examined() -> None:
    import deepspeed

    assert deepspeed.__version__.startswith("0.19.8")
