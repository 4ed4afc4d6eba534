"""The DeepSpeed JSON: read, checked key by key, its "auto" values filled in. Imports neither torch nor DeepSpeed.

DeepSpeed ignores a mistyped top-level key in silence and rejects a nested one with a traceback; here both are one
line that names the nearest known key. `SCHEMA` lists what this project supports of DeepSpeed 0.19.8; a test holds its
sections against DeepSpeed's own classes.
"""

import copy
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.engine import schedulers
from model.layout import Layout
from support.errors import UserError
from support.nearest import hint

NUMBER = (int, float)
FREE: dict[str, Any] = {}  # a section whose keys are somebody else's

SCHEMA: dict[str, Any] = {
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
PRECISIONS = ("bf16", "fp16", "fp32")
# What a number may be, lowest and highest, where it is not any finite one from 0. DeepSpeed takes most of them as they
# come: a scale of 2^500 is halved for hundreds of steps, and no step is ever printed after "every 0".
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
CLIPPING = 1.0  # DeepSpeed's default, which its documentation does not tell


@dataclass(frozen=True)
class Resolved:
    """A DeepSpeed JSON without "auto", and the keys where it says something else than the recipe."""

    json: dict[str, Any]
    deviations: tuple[str, ...]

    @property
    def dtype(self) -> str:
        """Precision of the weights in forward and backward: "bf16", "fp16" or "fp32"."""
        return precision(self.json)


def precision(config: dict[str, Any]) -> str:
    """The precision that a DeepSpeed JSON asks for: "bf16", "fp16" or "fp32"."""
    return next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")), "fp32")


def fp32_json(config: dict[str, Any], pipelined: bool) -> str:
    """The shipped JSON that does in fp32 what this one does in another precision."""
    stage = config.get("zero_optimization", {}).get("stage", 0)
    return f"ds_configs/{'pipeline' if pipelined else f'zero{stage}'}_fp32.json"


def summed_in(config: dict[str, Any]) -> str:
    """The precision in which the gradients of a step's micro-batches are added up, where the JSON does not say it fp32
    for bf16: 8 bits lose what is small beside the sum. fp16 has 11 and adds up in fp16, as DeepSpeed does."""
    kind: str = precision(config)
    low = config.get("bf16", {}).get("bf16_master_weights_and_grads")
    default = "fp32" if kind == "bf16" and not low else kind
    return str(config.get("data_types", {}).get("grad_accum_dtype", default))


def sent_in(config: dict[str, Any], stage: int) -> str:
    """The precision in which data ranks reduce gradients in a ZeRO stage, where the JSON does not say it that of what
    is reduced: the sums of all micro-batches in stages 0 and 1, each micro-batch's own in stages 2 and 3."""
    default = summed_in(config) if stage < 2 else precision(config)
    return str(config.get("communication_data_type", default))


def read(path: Path) -> dict[str, Any]:
    """Read and check a JSON file. Errors: `UserError` with file, key and remedy."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text; give a DeepSpeed JSON") from None
    except FileNotFoundError:
        known = sorted(str(file) for file in path.parent.glob("*.json"))
        raise UserError(f"{path} does not exist; {hint(str(path), known)}") from None
    try:
        config = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno} is not JSON: {error.msg}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold a JSON object")
    check(config, str(path))
    return config


def check(config: dict[str, Any], where: str) -> None:
    """Refuse unknown keys, wrong types and combinations in which DeepSpeed computes wrong numbers.

    Errors: `UserError` that starts with `where`.
    """
    _check_section(config, SCHEMA, "", where)
    optimizer = config.get("optimizer", {})
    kind = optimizer.get("type", "AdamW")
    if kind not in OPTIMIZERS:
        raise UserError(f"{where}: optimizer.type {kind!r} is not supported; choose one of {', '.join(OPTIMIZERS)}")
    for key in optimizer.get("params", {}):
        if key not in ADAM_PARAMS:
            raise UserError(f"{where}: unknown key optimizer.params.{key}; {hint(key, ADAM_PARAMS)}")
    _check_adam(optimizer.get("params", {}), where)
    if "scheduler" in config:
        schedulers.check(config["scheduler"], where)
    zero = config.get("zero_optimization", {}).get("stage", 0)
    if zero not in (0, 1, 2, 3):
        raise UserError(f"{where}: zero_optimization.stage is {zero}; it must be 0, 1, 2 or 3")
    _check_offload(config.get("zero_optimization", {}), where)
    if config.get("bf16", {}).get("enabled") and config.get("fp16", {}).get("enabled"):
        raise UserError(f"{where}: bf16 and fp16 are both enabled; switch one off")
    recompute = config.get("activation_checkpointing", {})
    if recompute.get("granularity", "full") not in ("full", "selective"):
        raise UserError(
            f'{where}: activation_checkpointing.granularity is {recompute["granularity"]!r}; it must be "full" or '
            '"selective"'
        )
    _check_gradients(config, where)
    if zero == 0 and precision(config) != "fp32":
        raise UserError(
            f"{where}: {precision(config)} with ZeRO stage 0 takes a hidden optimizer step at the start and mis-scales "
            "gradients in DeepSpeed 0.19.8; set zero_optimization.stage to 1"
        )


def _check_gradients(config: dict[str, Any], where: str) -> None:
    """Gradients are added up and sent in fp32 or in the training's precision, and in nothing else."""
    kind = precision(config)
    for name, value in (
        ("data_types.grad_accum_dtype", summed_in(config)),
        ("communication_data_type", config.get("communication_data_type", kind)),
    ):
        known = dict.fromkeys((kind, "bf16", "fp32") if name == "communication_data_type" else (kind, "fp32"))
        if value not in known:
            raise UserError(f"{where}: {name} is {value!r}; with {kind} it must be {' or '.join(known)}")
    scaled = config.get("gradient_predivide_factor", 1) != 1 or config.get("prescale_gradients")
    if scaled and config.get("zero_optimization", {}).get("stage", 0) > 1:
        raise UserError(
            f"{where}: prescale_gradients and gradient_predivide_factor need ZeRO stage 0 or 1: in stage 3 a factor of "
            "2 halves the gradients in DeepSpeed 0.19.8; take them out"
        )


def _check_offload(zero: dict[str, Any], where: str) -> None:
    places = {"offload_param": ("none", "cpu"), "offload_optimizer": ("none", "cpu", "nvme")}
    for name, known in places.items():
        section = zero.get(name, {})
        device = section.get("device", "none")
        if device not in known:
            raise UserError(
                f"{where}: zero_optimization.{name}.device is {device!r}; it must be one of {', '.join(known)}"
            )
        if device == "nvme" and not section.get("nvme_path"):
            raise UserError(f"{where}: zero_optimization.{name} needs nvme_path, a folder on a fast local disk")
        if device == "nvme" and zero.get("stage") != 3:
            raise UserError(f"{where}: zero_optimization.{name}.device nvme needs ZeRO stage 3; set stage to 3")
    if zero.get("offload_optimizer", {}).get("ratio", 1) != 1:
        raise UserError(
            f"{where}: zero_optimization.offload_optimizer.ratio below 1 leaves a second optimizer on the GPU, whose "
            "rate DeepSpeed 0.19.8 never changes and whose state is not saved; take ratio out"
        )


def _check_adam(params: dict[str, Any], where: str) -> None:
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
    for key, fits in good.items():
        if not fits:
            raise UserError(f"{where}: optimizer.params.{key} cannot be {json.dumps(params[key])}")


def check_layout(config: dict[str, Any], layout: Layout, where: str) -> None:
    """Refuse an engine that cannot run a layout, or runs it wrong. Errors: `UserError` with the reason."""
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if layout.pp > 1 and stage > 1:
        raise UserError(
            f"{where}: ZeRO stage {stage} does not go with layout.pp {layout.pp}: a pipeline keeps gradients of its "
            "micro-batches whole until its last one, which stages 2 and 3 would give away after each; use stage 1, for "
            "example ds_configs/pipeline_bf16.json"
        )
    if layout.pp > 1 and stage == 0:
        raise UserError(
            f"{where}: layout.pp {layout.pp} with ZeRO stage 0 clips by a norm that misses the other stages in "
            "DeepSpeed 0.19.8; use stage 1, for example ds_configs/pipeline_fp32.json"
        )
    if layout.tp > 1 and config.get("zero_optimization", {}).get("zero_hpz_partition_size", 1) > 1:
        raise UserError(
            f"{where}: zero_hpz_partition_size does not go with layout.tp {layout.tp}: DeepSpeed forms its groups of "
            "neighbouring ranks, which hold different slices; use one of the two"
        )
    if layout.pp > 1 and config.get("zero_optimization", {}).keys() & {"offload_optimizer", "offload_param"}:
        raise UserError(f"{where}: offload does not go with layout.pp {layout.pp}; use one of the two")


def _check_section(section: dict[str, Any], schema: dict[str, Any], prefix: str, where: str) -> None:
    for key, value in section.items():
        path = prefix + key
        if key not in schema:
            raise UserError(f"{where}: unknown key {path}; {hint(key, schema)}")
        expected = schema[key]
        if value == "auto" and path not in AUTO_KEYS and expected is not FREE and prefix != "optimizer.params.":
            raise UserError(f'{where}: {path} cannot be "auto"; the recipe owns only {", ".join(AUTO_KEYS)}')
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
    if not (math.isfinite(value) and low <= value <= high):
        most = f" and at most {high:g}" if math.isfinite(high) else ", and finite"
        raise UserError(f"{where}: {path} is {value}; it must be at least {low:g}{most}")


def resolve(
    config: dict[str, Any], recipe_values: dict[str, Any], data_degree: int, where: str, ramp: tuple[int, ...] = ()
) -> Resolved:
    """Fill every "auto" from the recipe; an explicit value beats it and is listed as a deviation.

    `recipe_values` has a value for each of `AUTO_KEYS` but the gradient accumulation, which follows from the others:
    global batch = micro-batch x accumulation x data degree. `ramp` is the smaller global batches that a run begins
    with. Errors: `UserError` where that does not multiply out.
    """
    result = copy.deepcopy(config)
    for key in AUTO_KEYS[:3]:
        result.setdefault(key, "auto")
    optimizer = result.setdefault("optimizer", {})
    optimizer.setdefault("type", "AdamW")
    params = optimizer.setdefault("params", {"torch_adam": True, "fused": True})
    for key in AUTO_KEYS[3:]:
        params.setdefault(key.rsplit(".", 1)[1], "auto")
    deviations = []
    for path, wanted in recipe_values.items():
        holder, key = (params, path.rsplit(".", 1)[1]) if path.startswith("optimizer.") else (result, path)
        if holder[key] == "auto":
            holder[key] = wanted
        elif holder[key] != wanted:
            deviations.append(f"{path} is {holder[key]} (recipe: {wanted})")
    _resolve_accumulation(result, data_degree, where)
    unit = result["train_micro_batch_size_per_gpu"] * data_degree
    for size in ramp:
        if size % unit:
            raise UserError(
                f"{where}: the batch-size ramp has a global batch of {size}, which micro-batch x data degree = {unit} "
                f"does not divide; the nearest that do: {size - size % unit}, {size - size % unit + unit}"
            )
    deviations += _resolve_gradients(result)
    if "scheduler" in result:
        deviations += schedulers.fill(result["scheduler"], params)
    result.setdefault("gradient_clipping", CLIPPING)
    result.setdefault("steps_per_print", 2**31 - 1)  # DeepSpeed's own lines would break up the progress display
    return Resolved(result, tuple(deviations))


def _resolve_gradients(config: dict[str, Any]) -> list[str]:
    """Write down in which precision gradients are added up and sent; say where that is coarser than it would be.

    Left to itself DeepSpeed 0.19.8 does both in the training's precision, the sending also where it sums in fp32.
    """
    stage, sums = config.get("zero_optimization", {}).get("stage", 0), summed_in(config)
    said = []
    if sums not in ("fp32", summed_in({**config, "data_types": {}})):
        said.append(f"data_types.grad_accum_dtype is {sums} (usual here: fp32): sums of many micro-batches are inexact")
    config["data_types"] = {"grad_accum_dtype": sums}
    asked = config.pop("communication_data_type", None)
    usual = sent_in(config, stage)
    if asked not in (None, "fp32", usual):
        said.append(f"communication_data_type is {asked} (usual here: {usual}): sums over many ranks are inexact")
    config["communication_data_type"] = asked or usual
    return said


def _resolve_accumulation(config: dict[str, Any], data_degree: int, where: str) -> None:
    batch, micro = config["train_batch_size"], config["train_micro_batch_size_per_gpu"]
    accumulation = config["gradient_accumulation_steps"]
    for name, value in (("global batch", batch), ("micro-batch", micro)):
        if value < 1:
            raise UserError(f"{where}: the {name} is {value}; it must be at least 1")
    if accumulation == "auto":
        unit = micro * data_degree
        if batch % unit:
            nearest = sorted({max(unit, batch - batch % unit), batch - batch % unit + unit})
            raise UserError(
                f"{where}: global batch {batch} does not divide by micro-batch {micro} x data degree {data_degree} "
                f"= {unit}; the nearest global batches that do: {', '.join(map(str, nearest))}"
                f"{_micro_batches(batch, micro, data_degree)}"
            )
        config["gradient_accumulation_steps"] = batch // unit
    elif batch != micro * accumulation * data_degree:
        raise UserError(
            f"{where}: global batch {batch} is not micro-batch {micro} x accumulation {accumulation} x data degree "
            f'{data_degree} = {micro * accumulation * data_degree}; set gradient_accumulation_steps to "auto", or '
            f"train_batch_size to {micro * accumulation * data_degree}"
        )


def _micro_batches(batch: int, micro: int, data_degree: int) -> str:
    if batch % data_degree:
        return ""
    share = batch // data_degree
    divisors = [size for size in range(1, share + 1) if share % size == 0]
    nearest = sorted(divisors, key=lambda size: abs(size - micro))[:2]
    return f"; the nearest micro-batches for {batch}: {', '.join(map(str, sorted(nearest)))}"


def _no_constant(name: str) -> Any:
    raise UserError(f"{name} is no number in JSON; give a finite one")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise UserError(f"key {key} stands twice; remove one")
        result[key] = value
    return result
