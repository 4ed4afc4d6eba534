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
