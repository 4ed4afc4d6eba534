"""What a checkpoint is: its folder, its manifest, and how damage is found. Imports nothing of the engine.

A checkpoint is a folder `step-00000100`. It holds a `rank-00000.safetensors` per process, an `index.json` and a
`manifest.json`. Under NVMe offload a process has more files, one for each part of its state that does not fit into
memory with the others. The manifest is sealed by its own hash, has the hash of every other file, and says of which run
and of which step the checkpoint is. Nothing is read before that was compared, and nothing is ever unpickled.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.checkpoint import index
from model.checkpoint.index import Index
from support.errors import UserError
from support.json_object import JsonObject

if TYPE_CHECKING:
    from pydantic import TypeAdapter

PARTIAL = ".partial"  # ends the name of a folder that is being written; a folder without it is complete
FILE = "manifest.json"
SHOWN = 16  # digits of a hash that a message shows

Tie = Mapping[str, str]  # what ties a checkpoint to its run, by name: its id, hashes of its recipe and its data
Accepts = Callable[[JsonObject], Any]  # takes the `state` that was saved; `TypeError` or `ValueError` where it cannot


@dataclass(frozen=True)
class _Facts:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Engine:
    optimizer_step: float
    global_steps: int
    global_samples: int
    skipped_steps: int
    loss_scaler: dict[str, Any]


@dataclass(frozen=True)
class _Manifest:
    """What a manifest must have; it may have more."""

    step: int
    tie: dict[str, str]
    state: dict[str, Any]
    engine: _Engine
    index: _Facts
    files: dict[str, _Facts]


def folder_of(root: Path, step: int) -> Path:
    """Where checkpoint `step` lies below `root`."""
    return root / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(checkpoint.name.removeprefix("step-"))


def completed(root: Path) -> list[Path]:
    """Complete checkpoints below `root`, oldest first."""
    return sorted(p for p in root.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name) and p.is_dir())


def damage(checkpoint: Path, share: int = 0, shares: int = 1) -> str:
    """What is wrong with a checkpoint, empty where nothing is. `share` of `shares` looks at every n-th file only."""
    from safetensors import SafetensorError, safe_open

    try:
        found = manifest(checkpoint)
        read_index(checkpoint, found)
        for name in sorted(found["files"])[share::shares]:
            path = checkpoint / name
            if reason := wrong_size(path, found["files"][name]["bytes"]):
                return reason
            if digest(path) != found["files"][name]["sha256"]:
                return f"{path} is not the file that its manifest describes"
            with safe_open(str(path), framework="numpy"):  # reads its header
                pass
    except SafetensorError as error:
        return f"{path} holds no tensors that can be read: {error}"
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def wrong_size(path: Path, size: int) -> str:
    """What is wrong with a file that should have that many bytes, as far as its size tells; empty where nothing is."""
    if not path.exists():
        return f"{path} is missing"
    found = path.stat().st_size
    return "" if found == size else f"{path} has {found} bytes where its manifest says {size}"


def looks_damaged(checkpoint: Path, tie: Tie) -> str:
    """Why a run with this tie cannot use a checkpoint, as far as its manifest and the sizes of its files tell."""
    try:
        found = manifest(checkpoint)
        sizes = {name: facts["bytes"] for name, facts in found["files"].items()} | {index.FILE: found["index"]["bytes"]}
        wrong = (wrong_size(checkpoint / name, size) for name, size in sizes.items())
        return foreign(found, tie) or next(filter(None, wrong), "")
    except (UserError, OSError) as error:
        return str(error)


def foreign(manifest: JsonObject, tie: Tie) -> str:
    """Why a checkpoint is not of the run with this tie, empty where it is."""
    for name, wanted in tie.items():
        if (found := manifest["tie"].get(name)) != wanted:
            of = f"{found[:SHOWN]}, not {wanted[:SHOWN]}" if found else f"unknown, not {wanted[:SHOWN]}"
            return f"it belongs to another run: its {name} is {of}"
    return ""


def seal(checkpoint: Path, tie: Tie, accepts: Accepts = dict) -> tuple[str, str]:
    """The hash of a checkpoint's manifest, and why a run cannot use it, empty where nothing in the manifest says so."""
    try:
        found = manifest(checkpoint)
        reason = foreign(found, tie)
        accepts(found["state"])
        return _digest(found), reason and f"{checkpoint}: {reason}"
    except UserError as error:
        return "", str(error)
    except (TypeError, ValueError) as error:
        return "", f"{checkpoint / FILE} holds another state than this run has: {' '.join(str(error).split())}"


def manifest(checkpoint: Path) -> JsonObject:
    """The manifest of a checkpoint. Errors: `UserError` where it cannot be read, or lacks what a manifest has."""
    from pydantic import ValidationError

    path = checkpoint / FILE
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("sha256") != _digest(content.get("manifest", {})):
        raise UserError(f"{path} was changed or torn")
    result: JsonObject = content.get("manifest", {})
    try:
        _adapter().validate_json(json.dumps(result), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path} is not whole: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    for name in result["files"]:
        if not re.fullmatch(r"[\w-]+\.safetensors", name):
            raise UserError(f"{path} names the file {name!r}, which no checkpoint has")
    steps = {"folder": step_of(checkpoint), "manifest": result["step"], "state": result["state"].get("step")}
    if len({step for step in steps.values() if step is not None}) > 1:
        raise UserError(f"{path} is of step {steps['state'] or steps['manifest']}, not of step {steps['folder']}")
    return result


@cache
def _adapter() -> "TypeAdapter[_Manifest]":
    from pydantic import TypeAdapter

    return TypeAdapter(_Manifest)


def write_manifest(checkpoint: Path, manifest: JsonObject) -> Path:
    """Write a manifest with its own hash; return its path."""
    path = checkpoint / FILE
    path.write_text(json.dumps({"manifest": manifest, "sha256": _digest(manifest)}, indent=1) + "\n")
    return path


def read_index(checkpoint: Path, manifest: JsonObject) -> Index:
    """The index of a checkpoint. Errors: `UserError` where it is not the one that the manifest describes."""
    path = checkpoint / index.FILE
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if hashlib.sha256(content).hexdigest() != manifest["index"]["sha256"]:
        raise UserError(f"{path} is not the file that its manifest describes")
    try:
        found = index.index_of(content)
    except ValueError:
        raise UserError(f"{path} is no index of a checkpoint") from None
    if strangers := set(found.files) - set(manifest["files"]):
        raise UserError(f"{path} names the file {min(strangers)!r}, which its manifest does not have")
    return found


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def facts(path: Path) -> JsonObject:
    """What a manifest says of a file."""
    return {"bytes": path.stat().st_size, "sha256": digest(path)}


def _digest(manifest: Any) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
