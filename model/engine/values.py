"""What a JSON says: its precision, its ZeRO stage, how gradients are added up. Imports neither torch nor DeepSpeed."""

from model.layout import Layout
from support.json_object import JsonObject

MONITORS = ("wandb", "tensorboard", "csv_monitor")  # sections that the training loop reads, and DeepSpeed never sees


def precision(config: JsonObject) -> str:
    """The precision that a DeepSpeed JSON asks for: "bf16", "fp16" or "fp32"; an "auto" asks for none."""
    return next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled") is True), "fp32")


def zero_stage(config: JsonObject) -> int:
    """The ZeRO stage that a DeepSpeed JSON asks for, 0 to 3. DeepSpeed's default is 0."""
    stage = config.get("zero_optimization", {}).get("stage", 0)
    return 0 if stage == "auto" else int(stage)


def offloads(config: JsonObject, section: str) -> bool:
    """Whether a JSON offloads: `section` is "offload_optimizer" or "offload_param"."""
    return config.get("zero_optimization", {}).get(section, {}).get("device", "none") not in ("none", "auto")


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
    low = config.get("bf16", {}).get("bf16_master_weights_and_grads") is True
    default = "fp32" if kind == "bf16" and not low else kind
    asked = config.get("data_types", {}).get("grad_accum_dtype", "auto")
    return default if asked == "auto" else str(asked)


def has_bf16_optimizer(config: JsonObject) -> bool:
    """Whether DeepSpeed 0.19.8 takes its bf16 optimizer in place of ZeRO's (`_do_optimizer_sanity_check`)."""
    half = precision(config) == "bf16" and summed_in(config) == "fp32"
    return half and zero_stage(config) == 1 and not offloads(config, "offload_optimizer")


def sent_in(config: JsonObject, stage: int) -> str:
    """The precision in which data ranks reduce gradients in a ZeRO stage: what the JSON says, or a default.

    The default is the precision of what is reduced. Stages 0 and 1 reduce the sum over all micro-batches, stages 2 and
    3 reduce the gradients of each micro-batch.
    """
    default = summed_in(config) if stage < 2 else precision(config)
    return str(config.get("communication_data_type", default))
