"""The one untyped value that this project has: an object of a JSON file, or one that becomes such an object."""

import math
from typing import Any

# Whoever takes a value out of it checks or knows its type. Where all keys are known, a TypedDict or a dataclass is
# better.
JsonObject = dict[str, Any]


def finite(value: Any) -> Any:
    """The same value with null for every number that is not finite: JSON knows no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def differences(before: JsonObject, after: JsonObject, path: str = "") -> list[tuple[str, Any, Any]]:
    """The keys, at any depth, that differ: `a.b`, the value before and the value after, None where there is none."""
    found: list[tuple[str, Any, Any]] = []
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) or isinstance(new, dict):
            inside = [each if isinstance(each, dict) else {} for each in (old, new)]
            found += differences(inside[0], inside[1], f"{path}{key}.")
        elif old != new:
            found.append((f"{path}{key}", old, new))
    return found
