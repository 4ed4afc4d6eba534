"""Checkpoints that are whole or not there, and that any layout can read.

A checkpoint is a folder `step-00000100` with one `rank-00000.safetensors` per process and a `manifest.json`. Each rank
writes the fp32 weights and optimiser moments that it owns, as the flat tensors in which ZeRO keeps them, with an index
that says which elements of which parameter they are. Reading asks for elements by parameter name, so the number of
ranks and the ZeRO stage may differ between writing and reading; the same layout reads back the same bits.

DeepSpeed's own writer leaves shards under their final names, syncs nothing and unpickles whatever it finds (0.19.8).
Here everything is written into `step-00000100.partial`, synced, hashed and renamed: a folder without that suffix is
complete. Reading checks sizes and hashes first, and unpickles nothing.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """Elements `start … start + numel` of a flattened parameter, at `offset` of a flat tensor."""

    name: str
    start: int
    numel: int
    offset: int


@dataclass(frozen=True)
class Flat:
    """One flat fp32 tensor of the optimiser that this rank owns, and what lies in it."""

    tensor: Tensor
    fragments: tuple[Fragment, ...]


# --- Writing ---------------------------------------------------------------------------------------------------------


def save(engine: "DeepSpeedEngine", root: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write checkpoint `step` below `root` and prune to the newest `keep`; collective over all ranks.

    `state` is whatever the caller needs to go on; it must be JSON. Errors: `ValueError` on every rank where any rank
    could not write; the earlier checkpoints stay as they are.
    """
    rank = torch.distributed.get_rank()
    final = root / f"step-{step:08d}"
    partial = final.with_name(final.name + ".partial")
    problem = ""
    if rank == 0:
        problem = _attempt(lambda: _make_empty(partial))
    _agree(engine, problem, partial)
    file = partial / f"rank-{rank:05d}.safetensors"
    problem = _attempt(lambda: _write_rank(engine, file))
    _agree(engine, problem, partial)
    entry = {file.name: {"bytes": file.stat().st_size, "sha256": _digest(file)}}
    entries: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(entries, entry)
    if rank == 0:
        manifest = {
            "step": step,
            "state": state,
            "engine": _counters(engine),
            "files": {name: fact for each in entries for name, fact in each.items()},
        }
        problem = _attempt(lambda: _commit(partial, final, manifest))
    _agree(engine, problem, partial)
    if rank == 0:
        for old in completed(root)[:-keep]:
            shutil.rmtree(old)
    return final


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_rank(engine: "DeepSpeedEngine", file: Path) -> None:
    states = _base_optimizer(engine).state
    tensors: dict[str, Tensor] = {}
    index: list[list[Any]] = []
    for number, flat in enumerate(flats(engine)):
        tensors[f"{number}.{WEIGHT}"] = flat.tensor.detach()
        for key in MOMENTS:
            if key in states[flat.tensor]:
                tensors[f"{number}.{key}"] = states[flat.tensor][key]
        index += [[number, f.name, f.start, f.numel, f.offset] for f in flat.fragments]
    save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, file, {"fragments": json.dumps(index)})
    _sync(file)


def _commit(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    path = partial / "manifest.json"
    path.write_text(json.dumps(manifest, indent=1) + "\n")
    _sync(path)
    _sync(partial)
    if final.exists():  # the same step again, from a resumed run
        shutil.rmtree(final)
    os.rename(partial, final)
    _sync(final.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _attempt(write: Callable[[], Any]) -> str:
    """Run `write`; the reason where the file system refused, else nothing."""
    try:
        write()
    except (OSError, SafetensorError) as error:
        return str(error) or type(error).__name__
    return ""


def _agree(engine: "DeepSpeedEngine", problem: str, partial: Path) -> None:
    """Go on together or fail together: one rank with a full disk must not leave the others waiting."""
    problems: list[str] = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(problems, problem)
    reason = next((p for p in problems if p), "")
    if not reason:
        return
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    good = completed(partial.parent)
    kept = f"the last good checkpoint is {good[-1]}" if good else "there is no earlier checkpoint"
    raise ValueError(
        f"checkpoint {partial.with_suffix('')} could not be written: {reason}; {kept}; "
        "make room and go on with --resume"
    )


# --- The engine's state ----------------------------------------------------------------------------------------------


def _base_optimizer(engine: "DeepSpeedEngine") -> torch.optim.Optimizer:
    """The torch optimiser inside ZeRO's."""
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer


def flats(engine: "DeepSpeedEngine") -> list[Flat]:
    """The flat fp32 tensors of this rank with their contents, for every ZeRO stage."""
    stage = engine.zero_optimization_stage()
    if stage == 3:
        return list(_stage3_flats(engine))
    if stage == 0:
        owner = torch.distributed.get_rank() == 0  # every rank holds everything; one writes it
        return [
            Flat(p, (Fragment(engine.param_names[p], 0, p.numel(), 0),) if owner else ())
            for group in _base_optimizer(engine).param_groups
            for p in group["params"]
        ]
    return list(_stage12_flats(engine))


def _stage12_flats(engine: "DeepSpeedEngine") -> Iterator[Flat]:
    optimizer = engine.optimizer
    # bf16 weights with fp32 accumulation have an optimiser of their own, which names the same things otherwise.
    own = hasattr(optimizer, "bf16_groups")
    groups = optimizer.bf16_groups if own else optimizer.bit16_groups
    tensors = optimizer.fp32_groups_flat_partition if own else optimizer.single_partition_of_fp32_groups
    for parameters, tensor in zip(groups, tensors, strict=True):
        mapped = [(p, p._hp_mapping) for p in parameters if p._hp_mapping is not None]
        fragments = (
            Fragment(
                engine.param_names[p],
                mapping.lp_fragment_address.start,
                mapping.lp_fragment_address.numel,
                mapping.hp_fragment_address.start,
            )
            for p, mapping in mapped
        )
        yield Flat(tensor, tuple(fragments))


def _stage3_flats(engine: "DeepSpeedEngine") -> Iterator[Flat]:
    optimizer = engine.optimizer
    for parameters, tensor in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        fragments = []
        for p in parameters:
            _, offset, _ = optimizer.grad_position[optimizer.get_param_id(p)]
            size = p.ds_tensor.ds_numel
            start = torch.distributed.get_rank(p.ds_process_group) * size
            numel = min(size, p.ds_numel - start)  # the last rank's part is padded
            if numel > 0:
                fragments.append(Fragment(engine.param_names[p], start, numel, offset))
        yield Flat(tensor, tuple(fragments))


def _counters(engine: "DeepSpeedEngine") -> dict[str, Any]:
    """Everything of the engine's state that is a number."""
    optimizer = _base_optimizer(engine)
    steps = [s["step"] for s in optimizer.state.values() if "step" in s]
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    numbers = {k: v for k, v in vars(scaler).items() if isinstance(v, (int, float))} if scaler else {}
    return {
        "optimizer_step": float(steps[0]) if steps else 0.0,
        "global_steps": engine.global_steps,
        "global_samples": engine.global_samples,
        "micro_steps": engine.micro_steps,
        "skipped_steps": engine.skipped_steps,
        "loss_scaler": numbers if engine.fp16_enabled() else {},
        "scheduler": engine.lr_scheduler.state_dict() if engine.lr_scheduler else None,
    }


# --- Reading ---------------------------------------------------------------------------------------------------------


def completed(root: Path) -> list[Path]:
    """Complete checkpoints below `root`, oldest first."""
    return sorted(p for p in root.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name))


def damage(checkpoint: Path, share: int = 0, shares: int = 1) -> str:
    """What is wrong with a checkpoint, empty where nothing is. `share` of `shares` looks at every n-th file only."""
    try:
        files = manifest(checkpoint)["files"]
    except ValueError as error:
        return str(error)
    for name in sorted(files)[share::shares]:
        path = checkpoint / name
        if not path.exists():
            return f"{path} is missing"
        if path.stat().st_size != files[name]["bytes"]:
            return f"{path} has {path.stat().st_size} bytes where its manifest says {files[name]['bytes']}"
        if _digest(path) != files[name]["sha256"]:
            return f"{path} is not the file that its manifest describes"
    return ""


def manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Errors: `ValueError` where it cannot be read."""
    try:
        result: dict[str, Any] = json.loads((checkpoint / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{checkpoint / 'manifest.json'} cannot be read: {error}") from None
    return result


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Reader:
    """Reads elements of parameters by name from a checkpoint that any layout has written."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self._files: dict[str, Any] = {}
        self._keys: dict[str, set[str]] = {}
        self._places: dict[str, list[tuple[str, int, Fragment]]] = {}
        for name in manifest(checkpoint)["files"]:
            self._files[name] = safe_open(str(checkpoint / name), framework="pt")
            self._keys[name] = set(self._files[name].keys())
            for number, parameter, start, numel, offset in json.loads(self._files[name].metadata()["fragments"]):
                place = (name, number, Fragment(parameter, start, numel, offset))
                self._places.setdefault(parameter, []).append(place)

    def names(self) -> list[str]:
        """The parameters in this checkpoint."""
        return sorted(self._places)

    def has(self, name: str, key: str) -> bool:
        """Whether a moment was written: an optimiser that has not stepped has none."""
        return any(f"{number}.{key}" in self._keys[file] for file, number, _ in self._places.get(name, []))

    def read(self, name: str, start: int, numel: int, key: str = WEIGHT) -> Tensor:
        """Elements `start … start + numel` of a flattened parameter or moment, fp32.

        Errors: `ValueError` where the checkpoint does not hold all of them.
        """
        result = torch.empty(numel)
        found = 0
        for file, number, piece in self._places.get(name, []):
            low, high = max(start, piece.start), min(start + numel, piece.start + piece.numel)
            if low < high:
                at = piece.offset + low - piece.start
                result[low - start : high - start] = self._files[file].get_slice(f"{number}.{key}")[
                    at : at + high - low
                ]
                found += high - low
        if found != numel:
            raise ValueError(
                f"checkpoint {self.checkpoint} holds {found} of {numel} elements of {name}: it is of another "
                "model shape; use the recipe that wrote it"
            )
        return result

    def weights(self, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
        """All parameters, whole, fp32. Errors: `ValueError` where the checkpoint is of another shape."""
        strangers = sorted(set(self.names()) ^ set(shapes))
        if strangers:
            raise ValueError(
                f"checkpoint {self.checkpoint} is of another model shape: {strangers[0]} stands on one side "
                "only; use the recipe that wrote it"
            )
        return {name: self.read(name, 0, math.prod(shape)).view(shape) for name, shape in shapes.items()}


def load_newest(engine: "DeepSpeedEngine", root: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Load the newest undamaged checkpoint below `root` into the engine; collective over all ranks.

    Returns the `state` that was saved with it, or None where nothing was saved yet. Errors: `ValueError` where all
    that was saved is damaged.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for checkpoint in reversed(completed(root)):
        problems: list[str] = [""] * world
        torch.distributed.all_gather_object(problems, damage(checkpoint, rank, world))
        reason = next((p for p in problems if p), "")
        if not reason:
            load(engine, checkpoint)
            state: dict[str, Any] = manifest(checkpoint)["state"]
            return state
        say(f"passing over a damaged checkpoint: {reason}")
    if completed(root):
        raise ValueError(f"every checkpoint below {root} is damaged; restore one, or start a new run")
    return None


@torch.no_grad()
def load(engine: "DeepSpeedEngine", checkpoint: Path) -> None:
    """Load a checkpoint into the engine, whatever layout wrote it."""
    reader, numbers = Reader(checkpoint), manifest(checkpoint)["engine"]
    optimizer = _base_optimizer(engine)
    for flat in _all_fragments(engine):
        state: dict[str, Any] = optimizer.state[flat.tensor]
        for fragment in flat.fragments:
            target = flat.tensor.view(-1)[fragment.offset : fragment.offset + fragment.numel]
            target.copy_(reader.read(fragment.name, fragment.start, fragment.numel))
            for key in MOMENTS:
                if reader.has(fragment.name, key):
                    moment = state.setdefault(key, torch.zeros_like(flat.tensor)).view(-1)
                    part = moment[fragment.offset : fragment.offset + fragment.numel]
                    part.copy_(reader.read(fragment.name, fragment.start, fragment.numel, key))
        if numbers["optimizer_step"]:
            for key in MOMENTS:
                state.setdefault(key, torch.zeros_like(flat.tensor))
            state["step"] = torch.tensor(numbers["optimizer_step"], device=flat.tensor.device)
    _refresh_weights(engine)
    for name in ("global_steps", "global_samples", "micro_steps", "skipped_steps"):
        setattr(engine, name, numbers[name])
    if numbers["loss_scaler"] and engine.fp16_enabled():
        vars(engine.optimizer.loss_scaler).update(numbers["loss_scaler"])
    if numbers["scheduler"] and engine.lr_scheduler:
        engine.lr_scheduler.load_state_dict(numbers["scheduler"])


def _all_fragments(engine: "DeepSpeedEngine") -> list[Flat]:
    """As `flats`, but without ZeRO every rank takes everything."""
    if engine.zero_optimization_stage() > 0:
        return flats(engine)
    return [Flat(f.tensor, (Fragment(engine.param_names[f.tensor], 0, f.tensor.numel(), 0),)) for f in flats(engine)]


def _refresh_weights(engine: "DeepSpeedEngine") -> None:
    """Copy the fp32 weights into the ones that compute."""
    stage = engine.zero_optimization_stage()
    if stage in (1, 2):
        engine.optimizer.update_lp_params()
    if stage == 3:
        optimizer = engine.optimizer
        for number, tensor in enumerate(optimizer.fp32_partitioned_groups_flat):
            optimizer.fp16_partitioned_groups_flat[number].data.copy_(tensor.data)
            optimizer._unflatten_partitioned_parameters(number)
        optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
