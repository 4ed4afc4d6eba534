"""What a JSON does that nobody would see, in lines: no effect at all, or one that the recipe does not know of."""

from model.engine.table import ROWS
from model.engine.values import has_bf16_optimizer, zero_stage
from support.json_object import JsonObject

FROM_LOG = ("wall_clock_breakdown", "memory_breakdown", "dump_state")  # what they say stands in DeepSpeed's log


def without_effect(config: JsonObject, given: JsonObject) -> list[str]:
    """A line for each key that DeepSpeed would pass over. `given` is the JSON's own `zero_optimization`."""
    stage, lines = zero_stage(config), []
    for key in given:
        row = ROWS[f"zero_optimization.{key}"]
        if row.stages and stage not in row.stages and given[key] not in ("auto", row.default):
            lines.append(f"{row.key} has no effect in ZeRO stage {stage}")
    half = config.get("bf16", {})
    if half.get("bf16_master_weights_and_grads") is True and has_bf16_optimizer(config):
        lines.append("bf16.bf16_master_weights_and_grads has no effect where gradients are added up in fp32 in stage 1")
    if half.get("check_grad_overflow") is False:
        lines.append("bf16.check_grad_overflow has no effect: a step whose gradient is not finite is always skipped")
    for name, section in config.items():
        if f"{name}.enabled" in ROWS and section and "enabled" not in section:
            lines.append(f'{name} has no effect without "enabled": true')
    if "aio" in config and config.get("zero_optimization", {}).get("offload_optimizer", {}).get("device") != "nvme":
        lines.append("aio has no effect without offload_optimizer on nvme")
    if config.get("prescale_gradients") and config.get("gradient_predivide_factor", 1) != 1:
        lines.append("gradient_predivide_factor has no effect beside prescale_gradients")
    recompute = config.get("activation_checkpointing", {})
    if "interval" in recompute and "granularity" not in recompute:
        lines.append('activation_checkpointing.interval has no effect without "granularity": "full" or "selective"')
    return lines


def other_hands(config: JsonObject) -> list[str]:
    """A line for each thing that the JSON takes out of the recipe's hands, beside values."""
    lines, params = [], config["optimizer"]["params"]
    if config["optimizer"]["type"] == "Adam" and params.get("adam_w_mode") is False:
        lines.append("optimizer is Adam, which adds the weight decay to the gradient (recipe: AdamW)")
    if params.get("bias_correction") is False:
        lines.append("optimizer.params.bias_correction is false (recipe: AdamW, which corrects)")
    scheduler = config.get("scheduler")
    if scheduler is not None:
        kind, own = scheduler["type"], scheduler.get("params", {})
        lines.append(f"scheduler is {kind} (recipe: its own warm-up and decay)")
        if kind == "OneCycle" and own.get("cycle_momentum", True):
            low, high = own.get("cycle_min_mom", 0.8), own.get("cycle_max_mom", 0.9)
            lines.append(f"OneCycle sets the betas to {low} … {high} and 0.99 (recipe: {params['betas']})")
    return lines


def speaking(config: JsonObject) -> list[str]:
    """Switch DeepSpeed's log on where the JSON asks for what is said there, in place. Return a line for it.

    A section `comms_logger` switches the logger on by being there, whatever its `enabled` says (DeepSpeed 0.19.8).
    """
    comms, lines = config.get("comms_logger", {}), []
    if not comms.get("enabled"):
        config.pop("comms_logger", None)
    elif not comms.get("verbose"):
        lines.append('comms_logger has no effect without "verbose": true: nobody asks for its summary')
    asked = [key for key in FROM_LOG if config.get(key)]
    asked += ["comms_logger"] if comms.get("enabled") and comms.get("verbose") else []
    if asked and "log_level" not in config:
        config["log_level"] = "info"
        lines.append(f"log_level is info, because {asked[0]} speaks in DeepSpeed's log")
    elif "steps_per_print" in config and config.get("log_level") not in ("debug", "info"):
        lines.append(
            "steps_per_print shows nothing while DeepSpeed's log is off; intervals.log_every sets the run's lines"
        )
    return lines
