"""The JSON's `scheduler`: what DeepSpeed's learning-rate schedulers take, checked. Imports neither torch nor DeepSpeed.

DeepSpeed 0.19.8 answers a wrong parameter with a traceback. It takes a wrong `warmup_type` for another one in silence,
and it does not check numbers.
"""

import json
import math
from collections.abc import Callable
from typing import Any

from support.errors import UserError
from support.json_object import JsonObject
from support.nearest import hint


def _number(low: float, high: float) -> Callable[[Any], bool]:
    def fits(value: Any) -> bool:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value < high

    return fits


def _whole(low: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= low


# What a value may be, and how to say it.
RATE = (_number(0, math.inf), "a number of at least 0")
SHARE = (_number(0, math.nextafter(1, 2)), "a number from 0 to 1")
MOMENTUM = (_number(0, 1), "a number from 0 to below 1")
STEPS = (_whole(1), "a whole number of at least 1")
COUNT = (_whole(0), "a whole number of at least 0")
FLAG = (lambda value: isinstance(value, bool), "true or false")
CURVE = (lambda value: value in ("log", "linear"), '"log" or "linear"')

Rule = tuple[Callable[[Any], bool], str]
_WARMUP: dict[str, Rule] = {"warmup_num_steps": STEPS, "warmup_type": CURVE}
_RATES: dict[str, Rule] = {"warmup_min_lr": RATE, "warmup_max_lr": RATE}
# Not `decay_mom_rate`, which lets OneCycle's momentum grow beyond 1.
SCHEDULERS: dict[str, dict[str, Rule]] = {
    "WarmupLR": {**_WARMUP, **_RATES},
    "WarmupDecayLR": {**_WARMUP, **_RATES, "total_num_steps": STEPS},
    "WarmupCosineLR": {**_WARMUP, "total_num_steps": STEPS, "warmup_min_ratio": SHARE, "cos_min_ratio": SHARE},
    "OneCycle": {
        "cycle_min_lr": RATE,
        "cycle_max_lr": RATE,
        "decay_lr_rate": RATE,
        "cycle_first_step_size": STEPS,
        "cycle_second_step_size": STEPS,
        "cycle_first_stair_count": COUNT,
        "cycle_second_stair_count": COUNT,
        "decay_step_size": COUNT,
        "cycle_momentum": FLAG,
        "cycle_min_mom": MOMENTUM,
        "cycle_max_mom": MOMENTUM,
    },
    "LRRangeTest": {
        "lr_range_test_min_lr": RATE,
        "lr_range_test_step_size": STEPS,
        "lr_range_test_step_rate": RATE,
        "lr_range_test_staircase": FLAG,
    },
}
REQUIRED = ("total_num_steps", "cycle_min_lr", "cycle_max_lr")  # where a scheduler takes them
WARMUP_STEPS = 1000  # DeepSpeed's default


def check(section: JsonObject, where: str) -> None:
    """Refuse a `scheduler` that DeepSpeed would refuse only later, or would run as another one.

    Errors: `UserError` of one line that starts with `where` and names key and remedy.
    """
    kind, params = section.get("type"), section.get("params", {})
    if kind not in SCHEDULERS:
        raise UserError(f"{where}: unknown scheduler.type {kind}; {hint(str(kind), SCHEDULERS)}")
    rules = SCHEDULERS[kind]
    for key, value in params.items():
        if key not in rules:
            raise UserError(f"{where}: unknown key scheduler.params.{key}; {hint(key, rules)}")
        fits, words = rules[key]
        if not fits(value) and not (key == "warmup_max_lr" and value == "auto"):
            raise UserError(f"{where}: scheduler.params.{key} must be {words}, not {json.dumps(value)}")
    for key in REQUIRED:
        if key in rules and key not in params:
            raise UserError(f"{where}: scheduler {kind} needs scheduler.params.{key}")
    warmup = params.get("warmup_num_steps", WARMUP_STEPS)
    if "total_num_steps" in rules and params["total_num_steps"] < warmup:
        raise UserError(
            f"{where}: total_num_steps {params['total_num_steps']} is below warmup_num_steps {warmup}; "
            "raise it, or lower warmup_num_steps"
        )


def fill(section: JsonObject, params: JsonObject) -> list[str]:
    """Set the peak of a warm-up to the optimizer's rate where the JSON gives none. Return a line for each thing that
    the scheduler takes out of the recipe's hands.

    DeepSpeed would take 0.001 as the peak of WarmupDecayLR. `params` are the optimizer's, resolved.
    """
    kind, own = section["type"], section.setdefault("params", {})
    if "warmup_max_lr" in SCHEDULERS[kind] and own.get("warmup_max_lr", "auto") == "auto":
        own["warmup_max_lr"] = params["lr"]
    said = [f"scheduler is {kind} (recipe: its own warm-up and decay)"]
    if kind == "OneCycle" and own.get("cycle_momentum", True):
        low, high = own.get("cycle_min_mom", 0.8), own.get("cycle_max_mom", 0.9)
        said.append(f"OneCycle sets the betas to {low} … {high} and 0.99 (recipe: {params['betas']})")
    return said
