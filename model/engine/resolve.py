"""The DeepSpeed JSON of a run: every "auto" filled in, every default that acts written down. Imports no torch."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

from model.engine import batch, said
from model.engine.normal import Normal
from model.engine.problems import refuse
from model.engine.rules import broken_by_layout, broken_rules, following
from model.engine.table import NEEDED, ROWS, Row
from model.engine.values import offloads, precision, sent_in, summed_in, zero_stage
from model.layout import Layout
from support.json_object import JsonObject

NEVER = 2**31 - 1  # for `steps_per_print`: DeepSpeed's own lines would break up the progress display
OWN_OPTIMIZER = {"torch_adam": True, "fused": True}  # without an optimizer in the JSON: it needs no compiler
HALVES = ("bf16", "fp16")
ADAM = tuple(f"optimizer.params.{name}" for name in ("lr", "betas", "eps", "weight_decay"))
PEAK = "scheduler.params.warmup_max_lr"


@dataclass(frozen=True)
class Resolved:
    """A DeepSpeed JSON without "auto", a line for each key that differs from the recipe, and a line for each thing that
    was translated, dropped or has no effect.
    """

    json: JsonObject
    deviations: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def dtype(self) -> str:
        """Precision of the weights in forward and backward: "bf16", "fp16" or "fp32"."""
        return precision(self.json)


def resolve(
    config: JsonObject,
    recipe_values: JsonObject,
    data_degree: int,
    where: str,
    ramp: tuple[int, ...] = (),
    layout: Layout | None = None,
) -> Resolved:
    """Check a JSON, and fill every "auto" from the recipe. An explicit value beats the recipe's and is a deviation.

    `recipe_values` has the recipe's value for a key; the gradient accumulation follows: global batch = micro-batch x
    accumulation x data degree. Its "precision" is that of the recipe's own JSON. `ramp` lists the smaller global
    batches that the run begins with. Errors: `JsonError` with all that is wrong.
    """
    normal = Normal(config)
    result, notes = normal.json, normal.notes
    given, clips = {**result.get("zero_optimization", {})}, "gradient_clipping" in result
    deviations = _from_recipe(result, recipe_values)
    with_layout = broken_by_layout(result, layout, data_degree) if layout else ()
    broken = following(normal.problems, chain(broken_rules(result), with_layout))
    if not {problem.key for problem in broken} & set(batch.KEYS):
        arithmetic = batch.Arithmetic(result, recipe_values, data_degree, ramp)
        deviations, broken = arithmetic.deviations + deviations, broken + arithmetic.problems
    refuse(broken, config, where)
    if not clips:
        notes.append(f"gradient_clipping is {result['gradient_clipping']}: the JSON does not say it")
    notes += said.without_effect(result, given)
    deviations += _gradients(result) + said.other_hands(result)
    notes += said.speaking(result)
    _defaults(result)
    return Resolved(result, tuple(deviations), tuple(notes))


def filled(config: JsonObject, recipe_values: JsonObject) -> JsonObject:
    """A checked JSON in its normal form, without "auto" but for the batch, and without the defaults."""
    result = Normal(config).json
    _from_recipe(result, recipe_values)
    return result


def _from_recipe(config: JsonObject, values: JsonObject) -> list[str]:
    """Fill all "auto" but the batch's, in place. Return the optimizer's deviations."""
    optimizer = config.setdefault("optimizer", {})
    optimizer.setdefault("type", ROWS["optimizer.type"].default)
    params = optimizer.setdefault("params", dict(OWN_OPTIMIZER))
    deviations = []
    for path in ADAM:
        name, wanted = path.rpartition(".")[2], values.get(path)
        if params.setdefault(name, "auto") == "auto":
            params[name] = wanted
        elif params[name] != wanted:
            deviations.append(f"{path} is {params[name]} (recipe: {wanted})")
    if params.get("torch_adam") and params.get("bias_correction"):
        del params["bias_correction"]  # torch always corrects, and does not know the name
    config.setdefault("gradient_clipping", "auto")
    _halves(config, str(values.get("precision", "fp32")))
    kind = str(config.get("scheduler", {}).get("type"))
    if kind in ROWS[PEAK].of:  # DeepSpeed would take 0.001 for WarmupDecayLR
        config["scheduler"].setdefault("params", {}).setdefault("warmup_max_lr", "auto")
    _fill(config, "", {**values, PEAK: params["lr"]}, kind)
    return deviations


def _halves(config: JsonObject, wanted: str) -> None:
    """An "auto" precision is that of the recipe's own JSON, unless the other half precision is switched on."""
    other = dict(zip(HALVES, reversed(HALVES), strict=True))
    for name in HALVES:
        section = config.get(name, {})
        if section.get("enabled") == "auto":
            section["enabled"] = name == wanted and config.get(other[name], {}).get("enabled") is not True


def _fill(section: JsonObject, prefix: str, values: JsonObject, scheduler: str) -> None:
    for key, value in list(section.items()):
        path = prefix + key
        if isinstance(value, dict):
            _fill(value, f"{path}.", values, scheduler)
        elif value == "auto" and path not in batch.KEYS:
            row = ROWS[path]
            section[key] = (
                values.get(path, _default(row, scheduler)) if row.auto == "recipe" else _default(row, scheduler)
            )
            if section[key] in (None, NEEDED):
                del section[key]


def _default(row: Row, scheduler: str) -> Any:
    return row.of.get(scheduler) if row.of else row.default


def _gradients(config: JsonObject) -> list[str]:
    """Write down in which precision gradients are added up and sent. Return a line where it is coarser than usual.

    Without these keys DeepSpeed 0.19.8 does both in the training's precision. It then sends in that precision even
    what it has summed in fp32.
    """
    stage, sums = zero_stage(config), summed_in(config)
    lines = []
    if sums not in ("fp32", summed_in({**config, "data_types": {}})):
        lines.append(
            f"data_types.grad_accum_dtype is {sums} (usual here: fp32): sums of many micro-batches are inexact"
        )
    config["data_types"] = {"grad_accum_dtype": sums}
    asked = config.pop("communication_data_type", None)
    usual = sent_in(config, stage)
    if asked not in (None, "fp32", usual):
        lines.append(f"communication_data_type is {asked} (usual here: {usual}): sums over many ranks are inexact")
    config["communication_data_type"] = asked or usual
    return lines


def _defaults(config: JsonObject) -> None:
    """Write down every default of DeepSpeed's that acts, in place."""
    stage, kind = zero_stage(config), str(config.get("scheduler", {}).get("type"))
    config.setdefault("steps_per_print", NEVER)
    if stage:  # DeepSpeed's own rule, which its table of defaults does not have
        config["zero_optimization"].setdefault("overlap_comm", stage == 3)
    for row in ROWS.values():
        *sections, key = row.key.split(".")
        default = _default(row, kind)
        if row.here != "taken" or row.type in ("section", "free") or default in (None, NEEDED):
            continue
        if not row.stages or stage in row.stages:
            holder = _acting(config, sections)
            if holder is not None:
                holder.setdefault(key, default)


def _acting(config: JsonObject, sections: list[str]) -> JsonObject | None:
    """The section that holds a key, where DeepSpeed reads it."""
    name, zero = ".".join(sections), config.get("zero_optimization", {})
    if name == "aio":
        used = zero.get("offload_optimizer", {}).get("device") == "nvme"
        return dict.setdefault(config, "aio", {}) if used else None
    holder: Any = config
    for section in sections:
        holder = holder.get(section)
        if holder is None:
            return None
    switched = {"zero_optimization": bool(zero_stage(config)), "scheduler.params": True, "optimizer": True, "": True}
    switched |= {f"zero_optimization.{each}": offloads(config, each) for each in ("offload_optimizer", "offload_param")}
    return holder if switched.get(name, holder.get("enabled") is True) else None
