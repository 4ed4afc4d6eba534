"""JSONs of the kinds that other projects use, as they are: each resolves to checked values, and DeepSpeed takes it."""

import copy
from typing import Any

import pytest

from model.engine.reading import parse_text
from model.engine.resolve import Resolved, resolve
from planner.resolve import engine_values
from recipes.registry import load
from support.json_object import JsonObject

ADAMW = (
    '"optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}'
)
SIZES = """"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto", "wall_clock_breakdown": false"""
SCALE = '"loss_scale": 0, "initial_scale_power": 16, "loss_scale_window": 500, "hysteresis": 2, "min_loss_scale": 1'
WARMUP = '"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"'

# What each is like, its text, and what stands in the resolved JSON; the recipe is gpt_345m on 8 ranks.
REAL: dict[str, tuple[str, JsonObject]] = {
    "Hugging Face, ZeRO-2": (
        f"""{{
  "fp16": {{"enabled": "auto", {SCALE}}}, "bf16": {{"enabled": "auto"}},
  {ADAMW}, "scheduler": {{"type": "WarmupLR", "params": {{{WARMUP}}}}},
  "zero_optimization": {{
    "stage": 2, "offload_optimizer": {{"device": "none", "pin_memory": true}}, "allgather_partitions": true,
    "allgather_bucket_size": 2e8, "overlap_comm": true, "reduce_scatter": true, "reduce_bucket_size": "auto",
    "contiguous_gradients": true
  }},
  {SIZES}, "steps_per_print": 2000
}}""",
        {
            "bf16.enabled": True,
            "fp16.enabled": False,
            "zero_optimization.reduce_bucket_size": 1024 * 1024,
            "zero_optimization.allgather_bucket_size": 200_000_000,
            "scheduler.params.warmup_num_steps": 3000,
            "scheduler.params.warmup_max_lr": 1.5e-4,
            "scheduler.params.warmup_min_lr": 0,
            "gradient_clipping": 1.0,
            "gradient_accumulation_steps": 4,
        },
    ),
    "Hugging Face, ZeRO-3": (
        f"""{{
  "fp16": {{"enabled": "auto", {SCALE}}}, "bf16": {{"enabled": "auto"}}, {ADAMW},
  "scheduler": {{"type": "WarmupDecayLR", "params": {{"total_num_steps": "auto", {WARMUP}}}}},
  "zero_optimization": {{
    "stage": 3, "offload_optimizer": {{"device": "none"}}, "offload_param": {{"device": "none", "pin_memory": true}},
    "overlap_comm": true, "sub_group_size": 1e9, "reduce_bucket_size": "auto", "contiguous_gradients": true,
    "stage3_prefetch_bucket_size": "auto", "stage3_param_persistence_threshold": "auto",
    "stage3_max_live_parameters": 1e9, "stage3_max_reuse_distance": 1e9,
    "stage3_gather_16bit_weights_on_model_save": "auto"
  }},
  {SIZES}
}}""",
        {
            "zero_optimization.stage3_prefetch_bucket_size": 943_718,
            "zero_optimization.stage3_param_persistence_threshold": 10_240,
            "zero_optimization.stage3_gather_16bit_weights_on_model_save": None,
            "scheduler.params.total_num_steps": 300_000,
            "scheduler.params.warmup_max_lr": 1.5e-4,
        },
    ),
    "Hugging Face, ZeRO-3 with offload": (
        f"""{{
  "bf16": {{"enabled": true}}, {ADAMW},
  "zero_optimization": {{
    "stage": 3, "offload_optimizer": {{"device": "cpu", "pin_memory": true}}, "offload_param": {{"device": "cpu"}},
    "stage3_gather_fp16_weights_on_model_save": true, "reduce_bucket_size": "auto"
  }},
  {SIZES}
}}""",
        {
            "zero_optimization.offload_optimizer.device": "cpu",
            "zero_optimization.offload_param.pin_memory": True,
            "zero_force_ds_cpu_optimizer": None,
        },
    ),
    "Accelerate, with what Apex once had": (
        """{
  "train_batch_size": 64, "gradient_accumulation_steps": 1,
  "fp16": {"enabled": true, "opt_level": "O1"}, "amp": {"enabled": false, "opt_level": "O1"},
  "scheduler": {"type": "WarmupLR",
    "params": {"last_batch_iteration": -1, "warmup_min_lr": 0, "warmup_max_lr": 3e-5, "warmup_num_steps": 100}},
  "zero_optimization": {"stage": 2, "allgather_bucket_size": 5e8, "reduce_bucket_size": 5e8, "cpu_offload": true}
}""",
        {
            "train_batch_size": 64,
            "train_micro_batch_size_per_gpu": 8,
            "amp": None,
            "fp16.opt_level": None,
            "scheduler.params.last_batch_iteration": None,
            "scheduler.params.warmup_max_lr": 3e-5,
            "zero_optimization.cpu_offload": None,
            "zero_optimization.offload_optimizer.device": "cpu",
        },
    ),
    "Megatron-DeepSpeed, ZeRO-1 in bf16": (
        """{
  "train_batch_size": 256, "train_micro_batch_size_per_gpu": 4, "steps_per_print": 10,
  "zero_optimization": {"stage": 1}, "gradient_clipping": 1.0, "prescale_gradients": false,
  "bf16": {"enabled": true}, "data_types": {"grad_accum_dtype": "fp32"}, "wall_clock_breakdown": false
}""",
        {"gradient_accumulation_steps": 8, "communication_data_type": "fp32", "steps_per_print": 10},
    ),
    "Megatron-DeepSpeed, fp16 with a predivided sum": (
        f"""{{
  "train_batch_size": 512, "train_micro_batch_size_per_gpu": 8, "steps_per_print": 1, "gradient_clipping": 1.0,
  "prescale_gradients": true, "gradient_predivide_factor": 8.0, "zero_optimization": {{"stage": 1}},
  "fp16": {{"enabled": true, {SCALE.replace('scale": 1', 'scale": 1.0')}}},
  "curriculum_learning": {{"enabled": false, "curriculum_type": "seqlen"}}, "zero_allow_untested_optimizer": true
}}""",
        {"gradient_predivide_factor": 8.0, "fp16.min_loss_scale": 1, "curriculum_learning": None},
    ),
    "bigscience": (
        """{
  "train_micro_batch_size_per_gpu": 2, "train_batch_size": 512, "gradient_clipping": 1.0,
  "zero_optimization": {"stage": 0}, "bf16": {"enabled": false}, "steps_per_print": 2000, "wall_clock_breakdown": false
}""",
        {"gradient_accumulation_steps": 32, "zero_optimization.stage": 0, "data_types.grad_accum_dtype": "fp32"},
    ),
    "DeepSpeedExamples, an image classifier": (
        """{
  "train_batch_size": 16, "steps_per_print": 2000,
  "optimizer": {"type": "Adam",
    "params": {"lr": 0.001, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7, "torch_adam": true}},
  "scheduler": {"type": "WarmupLR",
    "params": {"warmup_min_lr": 0, "warmup_max_lr": 0.001, "warmup_num_steps": 1000}},
  "gradient_clipping": 1.0, "prescale_gradients": false, "bf16": {"enabled": false},
  "fp16": {"enabled": false, "fp16_master_weights_and_grads": false, "loss_scale": 0, "initial_scale_power": 15},
  "wall_clock_breakdown": false,
  "zero_optimization": {"stage": 0, "allgather_partitions": true, "reduce_scatter": true, "overlap_comm": true,
    "allgather_bucket_size": 50000000, "reduce_bucket_size": 50000000, "contiguous_gradients": true,
    "cpu_offload": false}
}""",
        {"train_micro_batch_size_per_gpu": 2, "optimizer.params.lr": 0.001, "zero_optimization.cpu_offload": None},
    ),
    "DeepSpeedExamples, a language model": (
        """{
  "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2, "steps_per_print": 10,
  "bf16": {"enabled": true}, "gradient_clipping": 1.0, "prescale_gradients": false, "wall_clock_breakdown": false,
  "hybrid_engine": {"enabled": false, "max_out_tokens": 512, "inference_tp_size": 1},
  "zero_optimization": {"stage": 3, "memory_efficient_linear": false, "stage3_param_persistence_threshold": 1e4,
    "stage3_max_live_parameters": 3e7, "stage3_prefetch_bucket_size": 3e7, "zero_hpz_partition_size": 1,
    "zero_quantized_weights": false, "zero_quantized_gradients": false,
    "offload_param": {"device": "none"}, "offload_optimizer": {"device": "none"}}
}""",
        {
            "train_batch_size": 64,
            "zero_optimization.stage3_prefetch_bucket_size": 30_000_000,
            "zero_optimization.memory_efficient_linear": False,
            "hybrid_engine": None,
        },
    ),
    "gpt-neox": (
        """{
  "train_batch_size": 128, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4,
  "optimizer": {"type": "Adam", "params": {"lr": 6e-4, "betas": [0.9, 0.95], "eps": 1e-8, "max_grad_norm": 0.5}},
  "bfloat16": {"enabled": true}, "fp32_allreduce": true,
  "zero_optimization": {"stage": 1, "allgather_partitions": true, "allgather_bucket_size": 500000000,
    "overlap_comm": true, "reduce_scatter": true, "reduce_bucket_size": 500000000, "contiguous_gradients": true,
    "cpu_offload": false},
  "activation_checkpointing": {"partition_activations": true, "number_checkpoints": 24, "cpu_checkpointing": false,
    "synchronize_checkpoint_boundary": true, "contiguous_memory_optimization": true, "profile": false},
  "checkpoint": {"tag_validation": "Warn", "load_universal": false}, "wall_clock_breakdown": true
}""",
        {
            "gradient_clipping": 0.5,
            "optimizer.params.max_grad_norm": None,
            "bfloat16": None,
            "bf16.enabled": True,
            "communication_data_type": "fp32",
            "checkpoint": None,
            "activation_checkpointing": {},
            "log_level": "info",
        },
    ),
    "Lightning, precision by hand": (
        """{
  "zero_allow_untested_optimizer": true,
  "bf16": {"enabled": true, "auto_cast": true, "loss_scale": 0, "initial_scale_power": 16},
  "zero_optimization": {"stage": 2, "offload_optimizer": null, "contiguous_gradients": true, "overlap_comm": true,
    "find_unused_parameters": true, "allgather_bucket_size": "auto", "reduce_bucket_size": "auto"},
  "activation_checkpointing": {"partition_activations": false, "number_checkpoints": null, "profile": false}
}""",
        {"bf16.loss_scale": None, "zero_optimization.allgather_bucket_size": 500_000_000, "train_batch_size": 512},
    ),
    "ZeRO-Infinity on NVMe": (
        f"""{{
  "fp16": {{"enabled": true, {SCALE}}}, {SIZES},
  "optimizer": {{"type": "AdamW", "params": {{"torch_adam": true}}}}, "zero_force_ds_cpu_optimizer": false,
  "zero_optimization": {{
    "stage": 3, "sub_group_size": 1e8,
    "offload_optimizer": {{"device": "nvme", "nvme_path": "/local_nvme", "buffer_count": 4, "pipeline_read": false,
      "pipeline_write": false, "fast_init": false}},
    "offload_param": {{"device": "cpu", "buffer_size": 1e8, "max_in_cpu": 1e9}}
  }},
  "aio": {{"block_size": 262144, "queue_depth": 32, "thread_count": 1, "single_submit": false}}
}}""",
        {"aio.intra_op_parallelism": 1, "aio.thread_count": None, "zero_optimization.offload_param.max_in_cpu": None},
    ),
    "ZeRO++ with every monitor": (
        """{
  // comments and commas at the end, as DeepSpeed reads them
  "$schema": "docs/ds_config.schema.json",
  "train_batch_size": 1024, "train_micro_batch_size_per_gpu": 16, # eight steps
  "bf16": {"enabled": true,}, "communication_data_type": "bf16", "seq_parallel_communication_data_type": "bf16",
  "zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8, "mics_shard_size": -1, "prefetch_bucket_size": 1e7},
  "comms_logger": {"enabled": true, "verbose": true, "prof_all": true, "debug": false}, /* each
  message */
  "tensorboard": {"enabled": true, "output_path": "logs", "job_name": "mine"},
  "wandb": {"enabled": true, "team": null, "group": "mine", "project": "mine"},
  "flops_profiler": {"enabled": true, "profile_step": 10, "module_depth": -1, "top_modules": 3, "output_file": null},
  "elasticity": {"enabled": false, "micro_batch_sizes": [2, 4]}, "sparse_attention": {}, "memory_breakdown": false,
}""",
        {
            "$schema": None,
            "gradient_accumulation_steps": 8,
            "zero_optimization.stage3_prefetch_bucket_size": 10_000_000,
            "zero_optimization.prefetch_bucket_size": None,
            "comms_logger.verbose": True,
            "elasticity": None,
        },
    ),
}


def resolved(kind: str) -> Resolved:
    recipe = load("345m")
    given = parse_text(REAL[kind][0], "x")
    before = copy.deepcopy(given)
    result = resolve(given, engine_values(recipe), 8, "x", recipe.batch.ramp, recipe.layout)
    assert given == before  # the run keeps it as it was given
    return result


def at(config: JsonObject, path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


@pytest.mark.parametrize("kind", list(REAL))
def test_a_real_json_resolves(kind: str) -> None:
    config = resolved(kind).json
    assert {path: at(config, path) for path in REAL[kind][1]} == REAL[kind][1]


@pytest.mark.parametrize("kind", list(REAL))
def test_what_is_resolved_resolves_to_itself(kind: str) -> None:
    """A start that reads the JSON that another one kept gets the same."""
    recipe, first = load("345m"), resolved(kind).json
    again = resolve(copy.deepcopy(first), engine_values(recipe), 8, "x", recipe.batch.ramp, recipe.layout)
    assert again.json == first


class World:
    """Eight data ranks, as `mpu` tells DeepSpeed."""

    def get_data_parallel_world_size(self) -> int:
        return 8


@pytest.mark.parametrize("kind", list(REAL))
def test_deepspeed_takes_what_is_resolved(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import logging

    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.utils import logger

    monkeypatch.setattr(logger, "level", logging.ERROR)
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 0)
    config = resolved(kind).json
    config.pop("activation_checkpointing", None)  # the model reads it
    taken = DeepSpeedConfig(copy.deepcopy(config), mpu=World())
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert getattr(taken, key) == config[key], key
    for key in ("gradient_clipping", "prescale_gradients", "gradient_predivide_factor", "dump_state"):
        assert getattr(taken, key) == config[key], key
    zero = taken.zero_config.model_dump(by_alias=True)
    for key, value in config.get("zero_optimization", {}).items():
        if not isinstance(value, dict):
            assert zero[key] == value, key
    for name, theirs in (("bf16", taken.bfloat16_config), ("fp16", taken.float16_config)):
        for key, value in config.get(name, {}).items():
            assert getattr(theirs, key) == value, f"{name}.{key}"


SAID = {
    "Accelerate, with what Apex once had": [
        "zero_optimization.cpu_offload is written zero_optimization.offload_optimizer, as DeepSpeed spells it now",
        "fp16.opt_level is dropped: it belongs to Apex, which DeepSpeed 0.19.8 has no more",
        "amp is dropped: off",
        "gradient_clipping is 1.0: the JSON does not say it",
    ],
    "bigscience": [
        "steps_per_print shows nothing while DeepSpeed's log is off; intervals.log_every sets the run's lines"
    ],
    "DeepSpeedExamples, a language model": [
        "hybrid_engine is dropped: off",
        "steps_per_print shows nothing while DeepSpeed's log is off; intervals.log_every sets the run's lines",
    ],
    "gpt-neox": [
        "bfloat16 is written bf16, as DeepSpeed spells it now",
        "optimizer.params.max_grad_norm is written gradient_clipping, as DeepSpeed spells it now",
        "fp32_allreduce is written communication_data_type, as DeepSpeed spells it now",
        "activation_checkpointing.partition_activations, number_checkpoints, cpu_checkpointing, "
        "synchronize_checkpoint_boundary, contiguous_memory_optimization, profile are dropped: the model recomputes by "
        "granularity and interval",
        "checkpoint is dropped: checkpoints are this project's own",
        "log_level is info, because wall_clock_breakdown speaks in DeepSpeed's log",
    ],
}


@pytest.mark.parametrize("kind", list(SAID))
def test_nothing_is_changed_in_silence(kind: str) -> None:
    assert list(resolved(kind).notes) == SAID[kind]


def test_deviations_of_a_real_json_are_the_recipe_s_own_numbers() -> None:
    assert resolved("gpt-neox").deviations == (
        "train_batch_size is 128 (recipe: 512)",
        "train_micro_batch_size_per_gpu is 4 (recipe: 16)",
        "optimizer.params.lr is 0.0006 (recipe: 0.00015)",
        "optimizer.params.betas is [0.9, 0.95] (recipe: [0.9, 0.999])",
    )
