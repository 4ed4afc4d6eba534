"""The JSON Schema that editors check and complete a DeepSpeed JSON with, made from the table of keys.

`python -m model.engine.json_schema` writes it anew.
"""

import json
import math
from pathlib import Path

from model.engine.table import ROWS, Row, inside
from support.files import write
from support.json_object import JsonObject

FILE = Path(__file__).resolve().parents[2] / "docs" / "ds_config.schema.json"
TYPES = {"flag": "boolean", "whole": "number", "number": "number", "text": "string", "dtype": "string"}
WHAT_BECOMES = {"moved": "Written {to} now.", "dropped": "Dropped here: {why}.", "off": "Must be off here: {why}."}


def schema() -> JsonObject:
    """The whole schema: every key with its type, its bounds and a line that says what it is."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A DeepSpeed JSON as Stagecraft takes it",
        **_object(""),
    }


def _object(prefix: str) -> JsonObject:
    return {
        "type": "object",
        "properties": {key: _property(row) for key, row in inside(prefix).items()},
        "additionalProperties": False,
    }


def _property(row: Row) -> JsonObject:
    becomes = WHAT_BECOMES.get(row.here, "").format(to=row.to, why=row.why)
    default = {} if row.default is None else {"default": row.default}
    described: JsonObject = {"description": f"{row.doc} {becomes}".strip(), **default}
    if row.here in ("moved", "dropped", "off"):
        described["deprecated"] = True
    if row.type == "section":
        section = _object(row.to if row.here == "moved" else row.key)
        return described | section | ({"type": ["object", "null"]} if row.may_be_null else {})
    if row.type == "free" or row.here == "off":
        return described
    values = [_value(row)] + [{"const": "auto"}] * bool(row.auto) + [{"type": "null"}] * row.may_be_null
    return described | ({"anyOf": values} if len(values) > 1 else values[0])


def _value(row: Row) -> JsonObject:
    if row.only:
        return {"enum": list(row.only)} if not row.anycase else {"type": "string"}
    if row.type in ("pair", "list"):
        each = _limits(row) | {"type": "number"} if row.type == "pair" else {"type": "string"}
        return {"type": "array", "items": each}
    limits = _limits(row) if TYPES[row.type] == "number" else {}
    return {"type": TYPES[row.type], **limits, **({"multipleOf": row.step} if row.type == "whole" else {})}


def _limits(row: Row) -> JsonObject:
    """A whole number may be written 5e8: to JSON Schema it is a number of which 1 is a divisor."""
    limits = {"minimum": row.low, "maximum": row.high, "exclusiveMaximum": row.below}
    return {name: value for name, value in limits.items() if math.isfinite(value)}


if __name__ == "__main__":
    write(FILE, json.dumps(schema(), indent=1) + "\n")
    print(f"{FILE}: {len(ROWS)} keys")
