"""What adapters lie on: a checkpoint of them holds nothing else, and names its base. Imports nothing of the engine."""

from dataclasses import dataclass

from support.errors import UserError
from support.json_object import JsonObject

KEY = "base"  # of a manifest


@dataclass(frozen=True)
class Base:
    """A checkpoint with all weights of a model, the fingerprint of these, and what adapters are multiplied by."""

    path: str
    fingerprint: str
    scale: float


def base_of(manifest: JsonObject) -> Base | None:
    """What the adapters of a checkpoint lie on; None where it holds all weights. Errors: `UserError`."""
    found = manifest.get(KEY)
    try:
        return found and Base(str(found["path"]), str(found["fingerprint"]), float(found["scale"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"the manifest of step {manifest['step']} names no base that adapters lie on") from None
