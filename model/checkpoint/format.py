"""What a checkpoint is: its folder, its manifest, its index, and how damage is found. Imports nothing of the engine.

A checkpoint is a folder `step-00000100`. It holds a `rank-00000.safetensors` per process and a `manifest.json`. Under
NVMe offload a process has more files, one for each part of its state that does not fit into memory with the others.

A file holds flat fp32 tensors (weights and optimiser moments) as ZeRO keeps them. Its metadata hold an index, which
says where the elements of each parameter lie in them. Who reads asks for elements by the parameter's name. So the
number of ranks, the layout and the ZeRO stage may differ between writing and reading.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from model.parallel import Slice
from support.errors import UserError
from support.json_object import JsonObject

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
PARTIAL = ".partial"  # ends the name of a folder that is being written; a folder without it is complete
INDEX = "fragments"  # the key of the index in a file's metadata


@dataclass(frozen=True)
class Fragment:
    """Elements `start … start + numel` of a parameter, at `offset` of a flat tensor.

    They are counted in this rank's part of the flattened parameter. The part is the whole parameter, or the slice `cut`
    of it where tensor slicing cuts it. `shape` is the shape of the part.
    """

    name: str
    start: int
    numel: int
    offset: int
    shape: tuple[int, ...]
    cut: Slice | None


def tensor_key(flat: int, kind: str) -> str:
    """The name, in a file, of the weights or a moment of flat tensor number `flat`."""
    return f"{flat}.{kind}"


def index_text(fragments: Iterable[tuple[int, Fragment]]) -> str:
    """The index of a file, as its metadata hold it. Each fragment comes with the number of its flat tensor."""
    return json.dumps(
        [
            [flat, f.name, f.start, f.numel, f.offset, f.shape, f.cut and dataclasses.astuple(f.cut)]
            for flat, f in fragments
        ]
    )


def index_of(text: str) -> list[tuple[int, Fragment]]:
    """What `index_text` has written."""
    return [
        (flat, Fragment(name, start, numel, offset, tuple(shape), Slice(*cut) if cut else None))
        for flat, name, start, numel, offset, shape, cut in json.loads(text)
    ]


def folder_of(root: Path, step: int) -> Path:
    """Where checkpoint `step` lies below `root`."""
    return root / f"step-{step:08d}"


def completed(root: Path) -> list[Path]:
    """Complete checkpoints below `root`, oldest first."""
    return sorted(p for p in root.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name))


def damage(checkpoint: Path, share: int = 0, shares: int = 1) -> str:
    """What is wrong with a checkpoint, empty where nothing is. `share` of `shares` looks at every n-th file only."""
    try:
        files = manifest(checkpoint)["files"]
        for name in sorted(files)[share::shares]:
            path = checkpoint / name
            if not path.exists():
                return f"{path} is missing"
            if path.stat().st_size != files[name]["bytes"]:
                return f"{path} has {path.stat().st_size} bytes where its manifest says {files[name]['bytes']}"
            if digest(path) != files[name]["sha256"]:
                return f"{path} is not the file that its manifest describes"
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def manifest(checkpoint: Path) -> JsonObject:
    """The manifest of a checkpoint. Errors: `UserError` where it cannot be read."""
    path = checkpoint / "manifest.json"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("sha256") != _manifest_digest(content.get("manifest", {})):
        raise UserError(f"{path} was changed or torn")
    result: JsonObject = content["manifest"]
    return result


def write_manifest(checkpoint: Path, manifest: JsonObject) -> Path:
    """Write a manifest with its own hash; return its path."""
    path = checkpoint / "manifest.json"
    path.write_text(json.dumps({"manifest": manifest, "sha256": _manifest_digest(manifest)}, indent=1) + "\n")
    return path


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def facts(path: Path) -> JsonObject:
    """What a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": digest(path)}


def _manifest_digest(manifest: JsonObject) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
