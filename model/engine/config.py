"""The DeepSpeed JSON: reading it, checking it, and what it says. Imports neither torch nor DeepSpeed.

`reading.py` reads the text, `table.py` has the keys, `normal.py` checks them one by one, `rules.py` checks them with
each other, `values.py` says what a JSON asks for, and `resolve.py` fills in the "auto" values.
"""

from pathlib import Path

from model.engine.normal import Normal
from model.engine.problems import refuse
from model.engine.reading import JsonFile, parse
from model.engine.rules import broken_rules, following
from model.engine.values import fp32_json, precision, recomputed_blocks, sent_in, summed_in, zero_stage
from support.json_object import JsonObject

__all__ = [
    "check",
    "fp32_json",
    "parse",
    "precision",
    "read",
    "recomputed_blocks",
    "sent_in",
    "summed_in",
    "zero_stage",
]


def read(path: Path) -> JsonFile:
    """Read and check a JSON file; it comes as it was given. Errors: `UserError` with file, line, key and remedy."""
    config = parse(path)
    check(config, str(path))
    return config


def check(config: JsonObject, where: str) -> None:
    """Refuse unknown keys, wrong values and combinations in which DeepSpeed computes wrong numbers.

    Errors: `JsonError` with all that is wrong; each line starts with `where`.
    """
    normal = Normal(config)
    refuse(following(normal.problems, broken_rules(normal.json)), config, where)
