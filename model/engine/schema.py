"""The keys of the DeepSpeed JSON that this project supports, and what each may hold. Imports no torch, no DeepSpeed.

DeepSpeed ignores a mistyped top-level key in silence and rejects a nested one with a traceback. Here both are one line
that names the nearest known key. A test compares `SCHEMA` with the classes of DeepSpeed 0.19.8.
"""

import json
import math
from typing import Any

from support.errors import UserError
from support.json_object import JsonObject
from support.nearest import hint

NUMBER = (int, float)
FREE: JsonObject = {}  # a section whose keys another function checks

SCHEMA: JsonObject = {
    "train_batch_size": int,
    "train_micro_batch_size_per_gpu": int,
    "gradient_accumulation_steps": int,
    "optimizer": {"type": str, "params": FREE},
    "scheduler": {"type": str, "params": FREE},
    "gradient_clipping": NUMBER,
    "prescale_gradients": bool,
    "gradient_predivide_factor": NUMBER,
    "communication_data_type": str,
    "zero_allow_untested_optimizer": bool,
    "zero_force_ds_cpu_optimizer": bool,
    "steps_per_print": int,
    "wall_clock_breakdown": bool,
    "memory_breakdown": bool,
    "dump_state": bool,
    "bf16": {
        "enabled": bool,
        "immediate_grad_update": bool,
        "check_grad_overflow": bool,
        "bf16_master_weights_and_grads": bool,
        "bf16_optimizer_states": bool,
    },
    "fp16": {
        "enabled": bool,
        "auto_cast": bool,
        "loss_scale": NUMBER,
        "initial_scale_power": int,
        "loss_scale_window": int,
        "hysteresis": int,
        "consecutive_hysteresis": bool,
        "min_loss_scale": int,
        "fp16_master_weights_and_grads": bool,
    },
    "data_types": {"grad_accum_dtype": str},
    "zero_optimization": {
        "stage": int,
        "contiguous_gradients": bool,
        "reduce_scatter": bool,
        "reduce_bucket_size": NUMBER,
        "use_multi_rank_bucket_allreduce": bool,
        "allgather_partitions": bool,
        "allgather_bucket_size": NUMBER,
        "overlap_comm": bool,
        "offload_param": {
            "device": str,
            "nvme_path": str,
            "buffer_count": int,
            "buffer_size": NUMBER,
            "max_in_cpu": NUMBER,
            "pin_memory": bool,
        },
        "offload_optimizer": {
            "device": str,
            "nvme_path": str,
            "buffer_count": int,
            "pin_memory": bool,
            "pipeline_read": bool,
            "pipeline_write": bool,
            "fast_init": bool,
            "ratio": NUMBER,
        },
        "sub_group_size": NUMBER,
        "stage3_prefetch_bucket_size": NUMBER,
        "stage3_param_persistence_threshold": NUMBER,
        "stage3_model_persistence_threshold": NUMBER,
        "stage3_max_live_parameters": NUMBER,
        "stage3_max_reuse_distance": NUMBER,
        "ignore_unused_parameters": bool,
        "zero_hpz_partition_size": int,
        "zero_quantized_weights": bool,
        "zero_quantized_gradients": bool,
    },
    "aio": {
        "block_size": int,
        "queue_depth": int,
        "intra_op_parallelism": int,
        "single_submit": bool,
        "overlap_events": bool,
        "use_gds": bool,
    },
    "activation_checkpointing": {"granularity": str, "interval": int},
    "wandb": {"enabled": bool, "group": str, "team": str, "project": str},
    "tensorboard": {"enabled": bool, "output_path": str, "job_name": str},
    "csv_monitor": {"enabled": bool, "output_path": str, "job_name": str},
    "comms_logger": {"enabled": bool, "verbose": bool, "prof_all": bool, "debug": bool, "prof_ops": list},
    "flops_profiler": {
        "enabled": bool,
        "profile_step": int,
        "module_depth": int,
        "top_modules": int,
        "detailed": bool,
        "output_file": str,
    },
}

MONITORS = ("wandb", "tensorboard", "csv_monitor")  # sections that the training loop reads, and DeepSpeed never sees

AUTO_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "optimizer.params.lr",
    "optimizer.params.betas",
    "optimizer.params.eps",
    "optimizer.params.weight_decay",
)
ADAM_PARAMS = ("lr", "betas", "eps", "weight_decay", "torch_adam", "fused", "foreach", "adam_w_mode", "bias_correction")
OPTIMIZERS = ("Adam", "AdamW")
# The lowest and the highest value of a number. A number that is not listed may be any finite one from 0.
# DeepSpeed checks few of them: it halves a loss scale of 2^500 for hundreds of steps, and with `steps_per_print` 0 it
# never prints a step.
FRACTIONS = ("zero_optimization.offload_optimizer.ratio",)  # all other numbers of this section count something
BOUNDS: dict[str, tuple[float, float]] = {
    "train_batch_size": (1, math.inf),
    "train_micro_batch_size_per_gpu": (1, math.inf),
    "gradient_accumulation_steps": (1, math.inf),
    "gradient_predivide_factor": (1, math.inf),
    "steps_per_print": (1, math.inf),
    "fp16.initial_scale_power": (0, 32),
    "fp16.loss_scale_window": (1, math.inf),
    "fp16.hysteresis": (1, math.inf),
    "fp16.min_loss_scale": (1, math.inf),
    "zero_optimization.reduce_bucket_size": (1, math.inf),
    "zero_optimization.sub_group_size": (1, math.inf),
    "zero_optimization.zero_hpz_partition_size": (1, math.inf),
    "activation_checkpointing.interval": (1, math.inf),
}


def check_keys(config: JsonObject, where: str) -> None:
    """Refuse unknown keys, values of a wrong type and numbers out of their bounds.

    Errors: `UserError` that starts with `where` and names the key.
    """
    _check_section(config, SCHEMA, "", where)
    optimizer = config.get("optimizer", {})
    kind = optimizer.get("type", "AdamW")
    if kind not in OPTIMIZERS:
        raise UserError(f"{where}: optimizer.type {kind!r} is not supported; choose one of {', '.join(OPTIMIZERS)}")
    params = optimizer.get("params", {})
    for key in params:
        if key not in ADAM_PARAMS:
            raise UserError(f"{where}: unknown key optimizer.params.{key}; {hint(key, ADAM_PARAMS)}")
    _check_adam(params, where)


def _check_section(section: JsonObject, schema: JsonObject, prefix: str, where: str) -> None:
    for key, value in section.items():
        path = prefix + key
        if key not in schema:
            raise UserError(f"{where}: unknown key {path}; {hint(key, schema)}")
        expected = schema[key]
        if value == "auto" and path not in AUTO_KEYS:
            raise UserError(
                f'{where}: {path} cannot be "auto": the recipe owns only {", ".join(AUTO_KEYS)}; give it a value, or '
                "take it out"
            )
        if value is None:
            raise UserError(f"{where}: {path} is null; give it a value or take it out")
        if value == "auto":
            continue
        if isinstance(expected, dict):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {path} must be an object, not {json.dumps(value)}")
            if expected is not FREE:
                _check_section(value, expected, path + ".", where)
        elif not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
            name = "a number" if expected is NUMBER else f"of type {expected.__name__}"
            raise UserError(f"{where}: {path} must be {name}, not {json.dumps(value)}")
        elif expected in (int, NUMBER):
            _check_bounds(path, value, where)


def _check_bounds(path: str, value: float, where: str) -> None:
    low, high = BOUNDS.get(path, (0, math.inf))
    if path.startswith("zero_optimization.") and path not in FRACTIONS and value % 1:
        raise UserError(f"{where}: {path} is {value}; it must be a whole number")
    if not (math.isfinite(value) and low <= value <= high):
        most = f" and at most {high:g}" if math.isfinite(high) else ", and finite"
        raise UserError(f"{where}: {path} is {value}; it must be at least {low:g}{most}")


def _check_adam(params: JsonObject, where: str) -> None:
    def number(value: Any, low: float, high: float) -> bool:
        return isinstance(value, NUMBER) and not isinstance(value, bool) and low <= value < high

    betas = params.get("betas", "auto")
    good = {
        "lr": params.get("lr", "auto") == "auto" or number(params["lr"], 0, math.inf),
        "eps": params.get("eps", "auto") == "auto" or number(params["eps"], 0, math.inf),
        "weight_decay": params.get("weight_decay", "auto") == "auto" or number(params["weight_decay"], 0, math.inf),
        "betas": betas == "auto"
        or (isinstance(betas, list) and len(betas) == 2 and all(number(b, 0, 1) for b in betas)),
    }
    for key in params.keys() - good.keys():
        good[key] = isinstance(params[key], bool)
    for key, fits in good.items():
        if not fits:
            raise UserError(f"{where}: optimizer.params.{key} cannot be {json.dumps(params[key])}")
    if params.get("fused") and params.get("foreach"):
        raise UserError(f"{where}: optimizer.params.fused and foreach exclude each other; switch one off")
