"""The one untyped value that this project has: an object of a JSON file, or one that becomes such an object."""

from typing import Any

# Whoever takes a value out of it checks or knows its type. Where all keys are known, a TypedDict or a dataclass is
# better.
JsonObject = dict[str, Any]
