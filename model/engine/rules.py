"""Values of the JSON that do not go with each other or with a layout: DeepSpeed fails on them, or computes wrongly."""

from collections.abc import Iterable, Iterator
from itertools import product

from model.engine.problems import Problem
from model.engine.table import ROWS
from model.engine.values import has_bf16_optimizer, offloads, precision, summed_in, zero_stage
from model.layout import Layout
from support.json_object import JsonObject

ZERO = "zero_optimization"
PEAK = "warmup_max_lr"
# Where one of these is wrong in itself, what follows from it is not judged.
DECIDING = {f"{name}{key}" for name, key in product((ZERO, "bf16", "fp16"), ("", ".stage", ".enabled"))}
TORCH_ONLY = ("fused", "foreach")  # parameters that torch's Adam has and DeepSpeed's kernels do not


def following(problems: list[Problem], rules: Iterable[Problem]) -> list[Problem]:
    """All problems, given those of single keys: a rule is not judged by a key that is wrong in itself."""
    wrong = {problem.key for problem in problems}
    return problems if wrong & DECIDING else problems + [problem for problem in rules if problem.key not in wrong]


def broken_rules(config: JsonObject) -> Iterator[Problem]:
    """What does not go together in a JSON in its normal form; an "auto" is not judged."""
    yield from _precision(config)
    yield from _gradients(config)
    yield from _offload(config)
    yield from _optimizer(config)
    yield from _scheduler(config)


def _on(config: JsonObject, section: str, key: str = "enabled") -> bool:
    return config.get(section, {}).get(key) is True


def _precision(config: JsonObject) -> Iterator[Problem]:
    kind, stage = precision(config), zero_stage(config)
    if _on(config, "bf16") and _on(config, "fp16"):
        yield Problem("fp16.enabled", "bf16 and fp16 are both enabled", "switch one off")
    if stage == 0 and kind != "fp32":
        yield Problem(
            f"{ZERO}.stage" if ZERO in config else f"{kind}.enabled",
            f"{kind} with ZeRO stage 0 takes a hidden optimizer step at the start and mis-scales gradients in "
            "DeepSpeed 0.19.8",
            "set zero_optimization.stage to 1",
        )
    low, alone = "bf16_master_weights_and_grads", _on(config, "bf16", "bf16_optimizer_states")
    if alone and not _on(config, "bf16", low):
        yield Problem("bf16.bf16_optimizer_states", f"bf16.bf16_optimizer_states needs bf16.{low}", "set that to true")
    elif _on(config, "bf16", low) and not (alone or _kernel_on_cpu(config) or has_bf16_optimizer(config)):
        yield Problem(
            f"bf16.{low}",
            f"bf16.{low} needs bf16.bf16_optimizer_states, or DeepSpeed's own Adam on the CPU",
            "set that to true too, or offload the optimizer to the CPU and take torch_adam out",
        )
    low = "fp16_master_weights_and_grads"
    if _on(config, "fp16", low) and not _kernel_on_cpu(config):
        yield Problem(
            f"fp16.{low}",
            f"fp16.{low} needs DeepSpeed's own Adam on the CPU",
            "offload the optimizer to the CPU and take torch_adam out, or switch it off",
        )
    half = config.get("fp16", {})
    power, floor = (half.get(key, ROWS[f"fp16.{key}"].default) for key in ("initial_scale_power", "min_loss_scale"))
    if kind == "fp16" and type(power) is type(floor) is int and not half.get("loss_scale") and floor > 2**power:
        what = f"fp16.min_loss_scale {floor} is above the first loss scale, 2^{power} = {2**power}"
        yield Problem("fp16.min_loss_scale", what, "lower it, or raise initial_scale_power")
    wanted = config.get("data_types", {}).get("param_dtype")
    if wanted not in (None, "auto", kind):
        remedy = f"it must be {kind}, or taken out"
        yield Problem(
            "data_types.param_dtype", f"data_types.param_dtype is {wanted} and the JSON trains in {kind}", remedy
        )


def _kernel_on_cpu(config: JsonObject) -> bool:
    return offloads(config, "offload_optimizer") and not _params(config).get("torch_adam")


def _params(config: JsonObject) -> JsonObject:
    params: JsonObject = config.get("optimizer", {}).get("params", {})
    return params


def _gradients(config: JsonObject) -> Iterator[Problem]:
    """Gradients are added up in the training's precision or in fp32. They may be sent in bf16 too."""
    kind = precision(config)
    for name, value in (
        ("data_types.grad_accum_dtype", summed_in(config)),
        ("communication_data_type", config.get("communication_data_type", kind)),
    ):
        known = dict.fromkeys((kind, "bf16", "fp32") if name == "communication_data_type" else (kind, "fp32"))
        if value not in known:
            yield Problem(name, f"{name} is {value}", f"with {kind} it must be {' or '.join(known)}")
    neutral = {"prescale_gradients": False, "gradient_predivide_factor": 1}
    scaled = [name for name, value in neutral.items() if config.get(name, value) != value]
    if scaled and zero_stage(config) > 1:
        yield Problem(
            scaled[0],
            "prescale_gradients and gradient_predivide_factor need ZeRO stage 0 or 1: in stage 3 a factor of 2 halves "
            "the gradients in DeepSpeed 0.19.8",
            "take them out",
        )


def _offload(config: JsonObject) -> Iterator[Problem]:
    stage = zero_stage(config)
    for name, least in (("offload_optimizer", 1), ("offload_param", 3)):  # DeepSpeed 0.19.8 passes over it in silence
        key, device = f"{ZERO}.{name}", config.get(ZERO, {}).get(name, {}).get("device")
        if offloads(config, name) and stage < least:
            yield Problem(f"{key}.device", f"{key} needs ZeRO stage {least} or more", "raise stage")
        elif device == "nvme" and stage != 3:
            yield Problem(f"{key}.device", f"{key}.device nvme needs ZeRO stage 3", "set stage to 3")
        if device == "nvme" and not config[ZERO][name].get("nvme_path"):
            yield Problem(f"{key}.device", f"{key} needs nvme_path", "give a folder on a fast local disk")


def _optimizer(config: JsonObject) -> Iterator[Problem]:
    params, start = _params(config), "optimizer.params"
    if params.get("fused") and params.get("foreach"):
        yield Problem(f"{start}.fused", f"{start}.fused and foreach exclude each other", "switch one off")
    if params and not params.get("torch_adam"):
        for name in TORCH_ONLY:
            if name in params:
                remedy = "set torch_adam to true, or take it out"
                yield Problem(f"{start}.{name}", f"{start}.{name} belongs to torch's Adam", remedy)
    if params.get("torch_adam") and params.get("bias_correction") is False:
        yield Problem(
            f"{start}.bias_correction",
            f"{start}.bias_correction is false, and torch's Adam always corrects",
            "take it out, or take torch_adam out",
        )


def _scheduler(config: JsonObject) -> Iterator[Problem]:
    section = config.get("scheduler", {})
    kind, params = section.get("type"), section.get("params", {})
    steps, row = params.get("total_num_steps"), ROWS["scheduler.params.warmup_num_steps"]
    warmup = params.get("warmup_num_steps", row.of.get(kind))
    if type(steps) is type(warmup) is int and kind in row.of and steps < warmup:
        yield Problem(
            "scheduler.params.total_num_steps",
            f"total_num_steps {steps} is below warmup_num_steps {warmup}",
            "raise it, or lower warmup_num_steps",
        )
    for low, high in (("cycle_min_lr", "cycle_max_lr"), ("cycle_min_mom", "cycle_max_mom"), ("warmup_min_lr", PEAK)):
        least, most = (params.get(key, ROWS[f"scheduler.params.{key}"].of.get(kind)) for key in (low, high))
        if all(type(each) in (int, float) for each in (least, most)) and least > most and low in params:
            key = f"scheduler.params.{low}"
            yield Problem(key, f"{key} {least:g} is above {high} {most:g}", f"lower it, or raise {high}")


def broken_by_layout(config: JsonObject, layout: Layout, data_degree: int | None = None) -> Iterator[Problem]:
    """With what of a layout DeepSpeed cannot run a JSON, or runs it wrong; with a data degree also of a world."""
    stage, zero = zero_stage(config), config.get(ZERO, {})
    if layout.pp > 1 and stage > 1:
        yield Problem(
            f"{ZERO}.stage",
            f"ZeRO stage {stage} does not go with layout.pp {layout.pp}: a pipeline keeps gradients of its "
            "micro-batches whole until its last one, which stages 2 and 3 would give away after each",
            "use stage 1, for example ds_configs/pipeline_bf16.json",
        )
    if layout.pp > 1 and stage == 0:
        yield Problem(
            f"{ZERO}.stage",
            f"layout.pp {layout.pp} with ZeRO stage 0 clips by a norm that misses the other stages in DeepSpeed 0.19.8",
            "use stage 1, for example ds_configs/pipeline_fp32.json",
        )
    if layout.tp > 1 and zero.get("zero_hpz_partition_size", 1) not in (1, "auto"):
        yield Problem(
            f"{ZERO}.zero_hpz_partition_size",
            f"zero_hpz_partition_size does not go with layout.tp {layout.tp}: DeepSpeed forms its groups of "
            "neighbouring ranks, which hold different slices",
            "use one of the two",
        )
    timed = {
        "wall_clock_breakdown": config.get("wall_clock_breakdown"),
        "flops_profiler": _on(config, "flops_profiler"),
    }
    for key, on in timed.items():
        if layout.pp > 1 and on:
            what = f"{key} does not go with layout.pp {layout.pp}: DeepSpeed 0.19.8 starts a timer twice and fails"
            yield Problem(key, what, "switch it off")
    copies, world = zero.get("zero_hpz_partition_size", 1), layout.ranks_per_replica * (data_degree or 1)
    if data_degree and world % min(copies, world):
        sizes = [str(size) for size in range(2, world + 1) if world % size == 0]
        yield Problem(
            f"{ZERO}.zero_hpz_partition_size",
            f"zero_hpz_partition_size {copies} does not divide {world} ranks",
            f"take the GPUs of a node: {', '.join(sizes[:6])}",
        )
    if layout.pp > 1:
        for name in ("offload_optimizer", "offload_param"):
            if offloads(config, name):
                what = f"offload does not go with layout.pp {layout.pp}"
                yield Problem(f"{ZERO}.{name}.device", what, "use one of the two")
