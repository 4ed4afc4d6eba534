"""What a rank tells at first, and how rank 0 reads what may come from another version of this project."""

from dataclasses import dataclass
from typing import Any

from launch.preflight.node import Node
from training.facts import Facts


@dataclass(frozen=True)
class Told:
    """The facts of a rank; the first rank of a machine has its node; what is wrong with recipe and JSON there."""

    facts: Facts
    node: Node | None = None
    problem: str = ""


def read(rank: int, value: Any) -> Told:
    """What a rank told. Of what another version tells otherwise only the host and what is to be alike are read."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Told).validate_python(value)
    except ValidationError:
        known = value.get("facts", {}) if isinstance(value, dict) else {}
        return Told(Facts(rank, str(known.get("host", "?")), dict(known.get("alike", {}))))
