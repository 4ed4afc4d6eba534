"""The DeepSpeed JSON: reading it, checking it, and what it says. Imports neither torch nor DeepSpeed.

`schema.py` has the keys, `schedulers.py` the learning-rate schedulers, `resolve.py` fills in the "auto" values.
"""

import json
from pathlib import Path
from typing import Any

from model.engine import schedulers, schema
from model.layout import Layout
from support.errors import UserError
from support.json_object import JsonObject
from support.nearest import hint

MOST_DIGITS = 19  # of a whole number; no count goes beyond 2^63, and what is beyond 1e308 is no float


def precision(config: JsonObject) -> str:
    """The precision that a DeepSpeed JSON asks for: "bf16", "fp16" or "fp32"."""
    return next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")), "fp32")


def zero_stage(config: JsonObject) -> int:
    """The ZeRO stage that a DeepSpeed JSON asks for, 0 to 3. DeepSpeed's default is 0."""
    stage: int = config.get("zero_optimization", {}).get("stage", 0)
    return stage


def recomputed_blocks(section: JsonObject, num_layers: int) -> tuple[str, ...]:
    """What each block computes again in the backward pass: "full", "selective" (the core of its attention) or "".

    `section` is the JSON's `activation_checkpointing`: its `granularity` holds for every `interval`-th block.
    """
    kind, interval = section.get("granularity", ""), section.get("interval", 1)
    return tuple(kind if index % interval == 0 else "" for index in range(num_layers))


def fp32_json(config: JsonObject, layout: Layout) -> str:
    """The shipped JSON that does in fp32 what this one does in another precision."""
    name = "pipeline" if layout.pp > 1 else f"zero{zero_stage(config)}"
    return f"ds_configs/{name}_fp32.json"


def summed_in(config: JsonObject) -> str:
    """The precision in which the gradients of a step's micro-batches are added up: what the JSON says, or a default.

    The default for bf16 is fp32, because the 8 bits of bf16 lose a small number that is added to a large sum. The
    default for fp16 is fp16, which has 11 bits; so does DeepSpeed.
    """
    kind = precision(config)
    low = config.get("bf16", {}).get("bf16_master_weights_and_grads")
    default = "fp32" if kind == "bf16" and not low else kind
    return str(config.get("data_types", {}).get("grad_accum_dtype", default))


def sent_in(config: JsonObject, stage: int) -> str:
    """The precision in which data ranks reduce gradients in a ZeRO stage: what the JSON says, or a default.

    The default is the precision of what is reduced. Stages 0 and 1 reduce the sum over all micro-batches, stages 2 and
    3 reduce the gradients of each micro-batch.
    """
    default = summed_in(config) if stage < 2 else precision(config)
    return str(config.get("communication_data_type", default))


def read(path: Path) -> JsonObject:
    """Read and check a JSON file. Errors: `UserError` with file, key and remedy."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text; give a DeepSpeed JSON") from None
    except FileNotFoundError:
        known = sorted(str(file) for file in path.parent.glob("*.json"))
        remedy = hint(str(path), known) if known else "give a DeepSpeed JSON, for example ds_configs/zero1_bf16.json"
        raise UserError(f"{path} does not exist; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; give a DeepSpeed JSON") from None
    try:
        config = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_int=_whole)
    except json.JSONDecodeError as error:
        raise UserError(f"{path} line {error.lineno} is not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold a JSON object")
    check(config, str(path))
    return config


def check(config: JsonObject, where: str) -> None:
    """Refuse unknown keys, wrong types and combinations in which DeepSpeed computes wrong numbers.

    Errors: `UserError` that starts with `where`.
    """
    schema.check_keys(config, where)
    if "scheduler" in config:
        schedulers.check(config["scheduler"], where)
    stage = zero_stage(config)
    if stage not in (0, 1, 2, 3):
        raise UserError(f"{where}: zero_optimization.stage is {stage}; it must be 0, 1, 2 or 3")
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
    if stage == 0 and precision(config) != "fp32":
        raise UserError(
            f"{where}: {precision(config)} with ZeRO stage 0 takes a hidden optimizer step at the start and mis-scales "
            "gradients in DeepSpeed 0.19.8; set zero_optimization.stage to 1"
        )


def _check_gradients(config: JsonObject, where: str) -> None:
    """Refuse a precision that does not fit the training's.

    Gradients are added up in the training's precision or in fp32. They may be sent in bf16 too.
    """
    kind = precision(config)
    for name, value in (
        ("data_types.grad_accum_dtype", summed_in(config)),
        ("communication_data_type", config.get("communication_data_type", kind)),
    ):
        known = dict.fromkeys((kind, "bf16", "fp32") if name == "communication_data_type" else (kind, "fp32"))
        if value not in known:
            raise UserError(f"{where}: {name} is {value!r}; with {kind} it must be {' or '.join(known)}")
    scaled = config.get("gradient_predivide_factor", 1) != 1 or config.get("prescale_gradients")
    if scaled and zero_stage(config) > 1:
        raise UserError(
            f"{where}: prescale_gradients and gradient_predivide_factor need ZeRO stage 0 or 1: in stage 3 a factor of "
            "2 halves the gradients in DeepSpeed 0.19.8; take them out"
        )


def _check_offload(zero: JsonObject, where: str) -> None:
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
    for name, least in (("offload_optimizer", 1), ("offload_param", 3)):  # DeepSpeed 0.19.8 passes over it in silence
        if zero.get(name, {}).get("device", "none") != "none" and zero.get("stage", 0) < least:
            raise UserError(f"{where}: zero_optimization.{name} needs ZeRO stage {least} or more; raise stage")
    if zero.get("offload_optimizer", {}).get("ratio", 1) != 1:
        raise UserError(
            f"{where}: zero_optimization.offload_optimizer.ratio below 1 leaves a second optimizer on the GPU, whose "
            "rate DeepSpeed 0.19.8 never changes and whose state is not saved; take ratio out"
        )


def check_layout(config: JsonObject, layout: Layout, where: str) -> None:
    """Refuse a JSON with which DeepSpeed cannot run a layout, or runs it wrong. Errors: `UserError` with the reason."""
    stage = zero_stage(config)
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


def _no_constant(name: str) -> Any:
    raise UserError(f"{name} is no number in JSON; give a finite one")


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise UserError(f"a number of {len(digits)} digits is too large; give one of at most {MOST_DIGITS}")
    return int(digits)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> JsonObject:
    result: JsonObject = {}
    for key, value in pairs:
        if key in result:
            raise UserError(f"key {key} stands twice; remove one")
        result[key] = value
    return result
