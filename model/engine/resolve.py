"""The "auto" values of the DeepSpeed JSON, filled in from the recipe. Imports neither torch nor DeepSpeed."""

import copy
from dataclasses import dataclass

from model.engine import schedulers
from model.engine.config import precision, sent_in, summed_in, zero_stage
from model.engine.schema import AUTO_KEYS
from support.errors import UserError
from support.json_object import JsonObject

CLIPPING = 1.0  # DeepSpeed's default for `gradient_clipping`; its documentation does not say so
NEVER = 2**31 - 1  # for `steps_per_print`: DeepSpeed's own lines would break up the progress display


@dataclass(frozen=True)
class Resolved:
    """A DeepSpeed JSON without "auto", and a line for each key that differs from the recipe."""

    json: JsonObject
    deviations: tuple[str, ...]

    @property
    def dtype(self) -> str:
        """Precision of the weights in forward and backward: "bf16", "fp16" or "fp32"."""
        return precision(self.json)


def resolve(
    config: JsonObject, recipe_values: JsonObject, data_degree: int, where: str, ramp: tuple[int, ...] = ()
) -> Resolved:
    """Fill every "auto" from the recipe. An explicit value beats the recipe's and is listed as a deviation.

    `recipe_values` has a value for each of `AUTO_KEYS` except the gradient accumulation. That follows from the others:
    global batch = micro-batch x accumulation x data degree. `ramp` lists the smaller global batches that the run begins
    with. Errors: `UserError` where the numbers do not multiply out.
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
            nearest = [near for near in (size - size % unit, size - size % unit + unit) if near]
            raise UserError(
                f"{where}: the batch-size ramp has a global batch of {size}, which micro-batch x data degree = {unit} "
                f"does not divide; the nearest that do: {', '.join(map(str, nearest))}"
            )
    deviations += _resolve_gradients(result)
    if "scheduler" in result:
        deviations += schedulers.fill(result["scheduler"], params)
    result.setdefault("gradient_clipping", CLIPPING)
    result.setdefault("steps_per_print", NEVER)
    return Resolved(result, tuple(deviations))


def _resolve_gradients(config: JsonObject) -> list[str]:
    """Write down in which precision gradients are added up and sent. Return a line where it is coarser than usual.

    Without these keys DeepSpeed 0.19.8 does both in the training's precision. It then sends in that precision even
    what it has summed in fp32.
    """
    stage, sums = zero_stage(config), summed_in(config)
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


def _resolve_accumulation(config: JsonObject, data_degree: int, where: str) -> None:
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
