"""All keys of the DeepSpeed JSON, from the table `keys.json`: what each may hold, and what becomes of it here.

The table is made from the classes, constants and signatures of DeepSpeed 0.19.8, and a test holds it against them. This
module reads the table alone: it imports neither torch nor DeepSpeed.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

NEEDED = "required"  # in `Row.of`: a scheduler has no default
DTYPES = {
    "fp32": ("fp32", "float32", "float", "torch.float32"),
    "bf16": ("bf16", "bfp16", "bfloat16", "torch.bfloat16"),
    "fp16": ("fp16", "float16", "half", "torch.float16"),
}
KINDS = {
    "flag": "true or false",
    "whole": "a whole number",
    "number": "a number",
    "pair": "a list of two numbers",
    "text": "a text",
    "list": "a list of texts",
    "dtype": " or ".join(DTYPES),
    "section": "an object",
    "free": "an object",
}


@dataclass(frozen=True)
class Row:
    """A key of the JSON.

    `type` is one of `KINDS`; in a "free" section no key is known. A number is at least `low`, at most `high` and
    smaller than `below`, a whole one a multiple of `step`; `only` lists all values that there
    are, without regard to case where `anycase` is set. `why` says why others are not, or why a key is dropped.

    `here` says what becomes of it: "taken" by DeepSpeed, "ours" (the model reads it), "moved" to the key `to` (with the
    value `as_` where it is true), "dropped" with a line, "silent" (dropped without one), "off" (dropped where it is
    switched off, and refused else).

    `auto` says what "auto" stands for: "recipe" (its value, or one that follows from it), "default", or nothing: the
    key cannot be "auto". `stages` are the ZeRO stages that read it. `of` has the default for each scheduler that knows
    the key.
    """

    key: str
    type: str
    doc: str
    default: Any = None
    low: float = -math.inf
    high: float = math.inf
    below: float = math.inf
    step: int = 1
    only: tuple[Any, ...] = ()
    anycase: bool = False
    here: str = "taken"
    why: str = ""
    auto: str = ""
    to: str = ""
    as_: Any = None
    stages: tuple[int, ...] = ()
    of: dict[str, Any] = field(default_factory=dict)

    @property
    def may_be_null(self) -> bool:
        """Whether null is the same as leaving the key out."""
        return self.default is None and (self.type != "section" or bool(self.auto))

    @cached_property
    def words(self) -> str:
        """What a value must be, in words."""
        if self.only:
            return (
                " or ".join(map(str, self.only)) if len(self.only) < 3 else f"one of {', '.join(map(str, self.only))}"
            )
        limits = [f"at least {self.low:g}"] if math.isfinite(self.low) else []
        limits += [f"at most {self.high:g}"] if math.isfinite(self.high) else []
        limits += [f"below {self.below:g}"] if math.isfinite(self.below) else []
        limits += [f"a multiple of {self.step}"] if self.step > 1 else []
        return KINDS[self.type] + (f" of {' and '.join(limits)}" if limits else "")

    def fitted(self, value: Any) -> Any:
        """The value in its canonical form. Errors: `ValueError` where it does not fit."""
        value = self._typed(value)
        if self.only:
            same = {str(each).lower(): each for each in self.only} if self.anycase else {}
            value = same.get(str(value).lower(), value)
            if value not in self.only:
                raise ValueError
        for number in value if self.type == "pair" else [value]:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                inside = self.low <= number <= self.high and number < self.below
                if not (inside and math.isfinite(number)):
                    raise ValueError
        return value

    def _typed(self, value: Any) -> Any:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        fits = {
            "flag": isinstance(value, bool),
            "whole": number and math.isfinite(value) and value % self.step == 0,
            "number": number,
            "pair": isinstance(value, list) and len(value) == 2 and all(type(each) in (int, float) for each in value),
            "text": isinstance(value, str),
            "list": isinstance(value, list) and all(isinstance(each, str) for each in value),
            "dtype": isinstance(value, str),
        }[self.type]
        if not fits or (self.type == "dtype" and not any(value.lower() in each for each in DTYPES.values())):
            raise ValueError
        if self.type == "dtype":
            return {spelling: kind for kind, all_ in DTYPES.items() for spelling in all_}.get(value.lower(), value)
        return int(value) if self.type == "whole" else value


def _read() -> Iterator[Row]:
    rows = json.loads((Path(__file__).parent / "keys.json").read_text(encoding="utf-8"))
    for key, values in rows.items():
        values["as_"] = values.pop("as", None)
        lists = {name: tuple(values[name]) for name in ("only", "stages") if name in values}
        yield Row(key, **{**values, **lists})


ROWS = {row.key: row for row in _read()}


def inside(prefix: str) -> dict[str, Row]:
    """The rows right inside a section, by the last part of their keys; "" is the whole JSON."""
    start = f"{prefix}." if prefix else ""
    found = {key.removeprefix(start): row for key, row in ROWS.items() if key.startswith(start)}
    return {key: row for key, row in found.items() if "." not in key}
