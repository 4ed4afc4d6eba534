"""Checkpoints that are whole or not there, and that any layout can read.

A checkpoint is a folder `step-00000100` with a `rank-00000.safetensors` per process (more of them under NVMe offload,
so that what does not fit into memory need not) and a `manifest.json`. Each rank
writes the fp32 weights and optimiser moments that it owns, as the flat tensors in which ZeRO keeps them, with an index
that says which elements of which parameter they are. Reading asks for elements by parameter name, so the number of
ranks and the ZeRO stage may differ between writing and reading; the same layout reads back the same bits.

DeepSpeed's own writer leaves shards under their final names, syncs nothing and unpickles whatever it finds (0.19.8).
Here everything is written into `step-00000100.partial`, synced, hashed and renamed: a folder without that suffix is
complete. Reading checks sizes and hashes first, and unpickles nothing.
"""

import dataclasses
import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from model.engine.engine import Trainer
from model.parallel import Slice, slice_of
from support.errors import UserError
from support.files import give_name, sync

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # the rest is the JSON's
TIED = "embed.weight"  # held by the first and the last stage of a pipeline


@dataclass(frozen=True)
class Fragment:
    """Elements `start … start + numel` of a parameter, at `offset` of a flat tensor.

    `start` counts in this rank's flattened part of the parameter: all of it, or where tensor slicing cuts it, the
    slice `cut`. `shape` is that part's shape.
    """

    name: str
    start: int
    numel: int
    offset: int
    shape: tuple[int, ...]
    cut: Slice | None


@dataclass(frozen=True)
class Flat:
    """One flat fp32 tensor of the optimiser that this rank owns, and what lies in it."""

    tensor: Tensor
    fragments: tuple[Fragment, ...]


# --- Writing ---------------------------------------------------------------------------------------------------------


def save(trainer: Trainer, root: Path, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write checkpoint `step` below `root` and prune to the newest `keep`; collective over all ranks.

    `state` is whatever the caller needs to go on; it must be JSON. Errors: `UserError` on every rank where any rank
    could not write; the earlier checkpoints stay as they are.
    """
    rank = torch.distributed.get_rank()
    final = root / f"step-{step:08d}"
    partial = final.with_name(final.name + ".partial")
    problem = ""
    if rank == 0:
        problem = _attempt(lambda: _make_empty(partial))
    _agree(trainer, problem, partial)
    files: list[Path] = []
    problem = _attempt(lambda: files.extend(_write_rank(trainer, partial / f"rank-{rank:05d}")))
    _agree(trainer, problem, partial)
    entry: dict[str, Any] = {}
    problem = _attempt(lambda: entry.update({f.name: {"bytes": f.stat().st_size, "sha256": _digest(f)} for f in files}))
    _agree(trainer, problem, partial)
    entries: list[dict[str, Any]] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(entries, entry)
    if rank == 0:
        manifest = {
            "step": step,
            "state": state,
            "engine": _counters(trainer),
            "files": {name: fact for each in entries for name, fact in each.items()},
        }
        problem = _attempt(lambda: _commit(partial, final, manifest))
    _agree(trainer, problem, partial)
    if rank == 0:
        _prune(root, final, keep)
    return final


def _prune(root: Path, newest: Path, keep: int) -> None:
    """Keep `newest` and the ones before it; what is after it belongs to a future that a resumed run takes again."""
    past = [path for path in completed(root) if path <= newest]
    for path in {*completed(root), *root.glob("step-*.partial")} - set(past[-keep:]):
        shutil.rmtree(path, ignore_errors=True)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_rank(trainer: Trainer, stem: Path) -> list[Path]:
    """Write what this rank owns: all that is in memory in one file, a sub-group that is swapped out in its own."""
    everything = dict(enumerate(flats(trainer)))
    swapped = [number for number in everything if _is_swapped(trainer, number)]
    resident = stem.with_name(f"{stem.name}.safetensors")
    _write_flats(trainer, {n: flat for n, flat in everything.items() if n not in swapped}, resident)
    written = [resident]
    for number in swapped:
        written.append(stem.with_name(f"{stem.name}-{number:05d}.safetensors"))
        with _swapped_in(trainer, number):
            _write_flats(trainer, {number: everything[number]}, written[-1])
    return written


def _write_flats(trainer: Trainer, chosen: dict[int, Flat], file: Path) -> None:
    states = _base_optimizer(trainer).state
    tensors: dict[str, Tensor] = {}
    index: list[list[Any]] = []
    for number, flat in chosen.items():
        mine = [f for f in flat.fragments if _is_writer(trainer, f)]
        if not mine:
            continue
        tensors[f"{number}.{WEIGHT}"] = flat.tensor.detach()
        for key in MOMENTS:
            if key in states[flat.tensor]:
                tensors[f"{number}.{key}"] = states[flat.tensor][key]
        for f in mine:
            index.append([number, f.name, f.start, f.numel, f.offset, f.shape, f.cut and dataclasses.astuple(f.cut)])
    save_file({k: v.flatten().cpu() for k, v in tensors.items()}, file, {"fragments": json.dumps(index)})
    sync(file)


def _is_writer(trainer: Trainer, fragment: Fragment) -> bool:
    """Whether this rank writes a fragment that several hold: the first of them does."""
    grid = trainer.grid
    if fragment.cut is None and grid.tp.rank > 0:
        return False  # whole on every tensor rank
    if fragment.name == TIED and grid.stage > 0:
        return False  # the last stage's copy of the embedding
    return trainer.zero_stage > 0 or grid.data.rank == 0


def _commit(partial: Path, final: Path, manifest: dict[str, Any]) -> None:
    path = partial / "manifest.json"
    path.write_text(json.dumps({"manifest": manifest, "sha256": _manifest_digest(manifest)}, indent=1) + "\n")
    sync(path)
    give_name(partial, final)  # a resumed run may take the same step again


def _attempt(write: Callable[[], Any]) -> str:
    """Run `write`; the reason where the file system refused, else nothing."""
    try:
        write()
    except (OSError, SafetensorError) as error:
        return str(error) or type(error).__name__
    return ""


def _agree(trainer: Trainer, problem: str, partial: Path) -> None:
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
    raise UserError(
        f"checkpoint {partial.with_suffix('')} could not be written: {reason}; {kept}; "
        "make room and go on with --resume"
    )


# --- The engine's state ----------------------------------------------------------------------------------------------


def _base_optimizer(trainer: Trainer) -> torch.optim.Optimizer:
    """The torch optimiser inside ZeRO's."""
    outer = trainer.engine.optimizer
    optimizer: torch.optim.Optimizer = getattr(outer, "optimizer", outer)
    return optimizer


def flats(trainer: Trainer) -> list[Flat]:
    """The flat fp32 tensors of this rank with their contents, for every ZeRO stage."""
    if trainer.zero_stage == 3:
        return list(_stage3_flats(trainer))
    if trainer.zero_stage == 0:
        return [Flat(p, (_fragment(trainer, p, 0, p.numel(), 0),)) for p in trainer.names]
    return list(_stage12_flats(trainer))


def _fragment(trainer: Trainer, parameter: nn.Parameter, start: int, numel: int, offset: int) -> Fragment:
    shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
    return Fragment(trainer.names[parameter], start, numel, offset, shape, slice_of(parameter))


def _stage12_flats(trainer: Trainer) -> Iterator[Flat]:
    optimizer = trainer.engine.optimizer
    # bf16 weights with fp32 accumulation have an optimiser of their own, which names the same things otherwise.
    own = hasattr(optimizer, "bf16_groups")
    groups = optimizer.bf16_groups if own else optimizer.bit16_groups
    tensors = optimizer.fp32_groups_flat_partition if own else optimizer.single_partition_of_fp32_groups
    for parameters, tensor in zip(groups, tensors, strict=True):
        mapped = [(p, p._hp_mapping) for p in parameters if p._hp_mapping is not None]
        fragments = (
            _fragment(trainer, p, m.lp_fragment_address.start, m.lp_fragment_address.numel, m.hp_fragment_address.start)
            for p, m in mapped
        )
        yield Flat(tensor, tuple(fragments))


def _stage3_flats(trainer: Trainer) -> Iterator[Flat]:
    optimizer = trainer.engine.optimizer
    for parameters, tensor in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        fragments = []
        for p in parameters:
            _, offset, _ = optimizer.grad_position[optimizer.get_param_id(p)]
            size = p.ds_tensor.ds_numel
            start = torch.distributed.get_rank(p.ds_process_group) * size
            numel = min(size, p.ds_numel - start)  # the last rank's part is padded
            if numel > 0:
                fragments.append(_fragment(trainer, p, start, numel, offset))
        yield Flat(tensor, tuple(fragments))


def _is_swapped(trainer: Trainer, number: int) -> bool:
    """Whether NVMe offload keeps the state of a sub-group in files: it leaves small ones in memory."""
    return trainer.zero_stage == 3 and trainer.engine.optimizer._swappable_optimizer_subgroup(number)


@contextmanager
def _swapped_in(trainer: Trainer, number: int) -> Iterator[None]:
    """Have the state of a sub-group in memory for a while; what is changed of it is written back."""
    if not _is_swapped(trainer, number):
        yield
        return
    optimizer = trainer.engine.optimizer
    optimizer._optimizer_states_and_gradient_swap_in(number)
    try:
        yield
    finally:
        optimizer._optimizer_states_and_gradient_swap_out(number)


def _counters(trainer: Trainer) -> dict[str, Any]:
    """Everything of the engine's state that is a number."""
    engine = trainer.engine
    steps = [s["step"] for s in _base_optimizer(trainer).state.values() if "step" in s]
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    numbers = {k: v for k, v in vars(scaler).items() if k in SCALER_STATE} if scaler else {}
    return {
        "optimizer_step": float(steps[0]) if steps else 0.0,
        "global_steps": engine.global_steps,
        "global_samples": engine.global_samples,
        "skipped_steps": engine.skipped_steps,
        "loss_scaler": numbers if engine.fp16_enabled() else {},
    }


# --- Reading ---------------------------------------------------------------------------------------------------------


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
            if _digest(path) != files[name]["sha256"]:
                return f"{path} is not the file that its manifest describes"
    except (ValueError, OSError) as error:
        return str(error)
    return ""


def manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Errors: `UserError` where it cannot be read."""
    path = checkpoint / "manifest.json"
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict) or content.get("sha256") != _manifest_digest(content.get("manifest", {})):
        raise UserError(f"{path} was changed or torn")
    result: dict[str, Any] = content["manifest"]
    return result


def _manifest_digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class _Place:
    """Where a fragment was written."""

    file: str
    flat: int
    fragment: Fragment


class Reader:
    """Reads elements of parameters by name from a checkpoint that any layout has written."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint
        self._files: dict[str, Any] = {}
        self._keys: dict[str, set[str]] = {}
        self._places: dict[str, list[_Place]] = {}
        for name in manifest(checkpoint)["files"]:
            self._files[name] = safe_open(str(checkpoint / name), framework="pt")
            self._keys[name] = set(self._files[name].keys())
            for flat, parameter, start, numel, offset, shape, cut in json.loads(
                self._files[name].metadata()["fragments"]
            ):
                fragment = Fragment(parameter, start, numel, offset, tuple(shape), Slice(*cut) if cut else None)
                self._places.setdefault(parameter, []).append(_Place(name, flat, fragment))

    def names(self) -> list[str]:
        """The parameters in this checkpoint."""
        return sorted(self._places)

    def has(self, name: str, key: str) -> bool:
        """Whether a moment was written: an optimiser that has not stepped has none."""
        return any(f"{place.flat}.{key}" in self._keys[place.file] for place in self._places.get(name, []))

    def read(self, wanted: Fragment, key: str = WEIGHT) -> Tensor:
        """The elements of a fragment's weight or moment, fp32, flat.

        Errors: `UserError` where the checkpoint does not hold all of them.
        """
        if all(place.fragment.cut != wanted.cut for place in self._places.get(wanted.name, [])):
            part = self.whole(wanted.name, key)
            part = (wanted.cut.of(part) if wanted.cut else part).flatten()
            if part.numel() != math.prod(wanted.shape):
                raise self._another_shape(wanted.name, part.numel(), math.prod(wanted.shape))
            return part[wanted.start : wanted.start + wanted.numel]
        return self._range(wanted, key)

    def whole(self, name: str, key: str = WEIGHT) -> Tensor:
        """A parameter's weight or moment, whole. Errors: `UserError` where a part of it is missing."""
        places = self._places.get(name, [])
        if not places:
            raise self._another_shape(name, 0, 1)
        first = places[0].fragment
        size = first.cut.size if first.cut else 1
        parts = []
        for rank in range(size):
            cut = Slice(first.cut.dim, size, rank) if first.cut else None
            everything = Fragment(name, 0, math.prod(first.shape), 0, first.shape, cut)
            parts.append(self._range(everything, key).view(first.shape))
        return torch.cat(parts, first.cut.dim) if first.cut else parts[0]

    def _range(self, wanted: Fragment, key: str) -> Tensor:
        """Elements of a part of a parameter that was written as that part."""
        result = torch.empty(wanted.numel)
        found, stop = 0, wanted.start + wanted.numel
        for place in self._places.get(wanted.name, []):
            piece = place.fragment
            low, high = max(wanted.start, piece.start), min(stop, piece.start + piece.numel)
            if piece.cut == wanted.cut and low < high:
                at = piece.offset + low - piece.start
                flat = self._files[place.file].get_slice(f"{place.flat}.{key}")
                result[low - wanted.start : high - wanted.start] = flat[at : at + high - low]
                found += high - low
        if found != wanted.numel or any(p.fragment.shape != wanted.shape for p in self._places[wanted.name]):
            raise self._another_shape(wanted.name, found, wanted.numel)
        return result

    def weights(self, shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
        """All parameters, whole, fp32. Errors: `UserError` where the checkpoint is of another shape."""
        strangers = sorted(set(self.names()) ^ set(shapes))
        if strangers:
            raise self._another_shape(strangers[0], 0, 1)
        result = {name: self.whole(name) for name in shapes}
        for name, shape in shapes.items():
            if result[name].shape != shape:
                raise self._another_shape(name, result[name].numel(), shape.numel())
        return result

    def _another_shape(self, name: str, found: int, wanted: int) -> UserError:
        return UserError(
            f"checkpoint {self.checkpoint} holds {found} of {wanted} elements of {name}: it is of another model shape; "
            "use the recipe that wrote it"
        )


def load_newest(trainer: Trainer, root: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Load the newest undamaged checkpoint below `root` into the engine; collective over all ranks.

    Returns the `state` that was saved with it, or None where nothing was saved yet. Errors: `UserError` where all
    that was saved is damaged.
    """
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for checkpoint in reversed(completed(root)):
        problems: list[str] = [""] * world
        torch.distributed.all_gather_object(problems, damage(checkpoint, rank, world))
        reason = next((p for p in problems if p), "")
        if not reason:
            load(trainer, checkpoint)
            state: dict[str, Any] = manifest(checkpoint)["state"]
            return state
        say(f"passing over a damaged checkpoint: {reason}")
    if completed(root):
        raise UserError(f"every checkpoint below {root} is damaged; restore one, or start a new run")
    return None


@torch.no_grad()
def load(trainer: Trainer, checkpoint: Path) -> None:
    """Load a checkpoint into the engine, whatever layout wrote it."""
    reader, numbers, engine = Reader(checkpoint), manifest(checkpoint)["engine"], trainer.engine
    optimizer = _base_optimizer(trainer)
    # torch's Adam keeps its count beside the weights when fused, on the CPU otherwise.
    fused = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    for number, flat in enumerate(flats(trainer)):
        with _swapped_in(trainer, number):
            device = flat.tensor.device if fused else torch.device("cpu")
            state: dict[str, Any] = optimizer.state[flat.tensor]
            for key in MOMENTS if numbers["optimizer_step"] else ():
                state[key] = torch.zeros_like(flat.tensor)
                state["step"] = torch.tensor(numbers["optimizer_step"], device=device)
            for fragment in flat.fragments:
                place = slice(fragment.offset, fragment.offset + fragment.numel)
                flat.tensor.view(-1)[place].copy_(reader.read(fragment))
                for key in MOMENTS:
                    if reader.has(fragment.name, key):
                        state[key].view(-1)[place].copy_(reader.read(fragment, key))
            _refresh_weights(trainer, number)
    _share_weights(trainer)
    for name in ("global_steps", "global_samples", "skipped_steps"):
        setattr(engine, name, numbers[name])
    if numbers["loss_scaler"] and engine.fp16_enabled() and engine.dynamic_loss_scale():
        vars(engine.optimizer.loss_scaler).update(numbers["loss_scaler"])
    taken = engine.global_steps - engine.skipped_steps
    if engine.lr_scheduler and taken:
        # Every scheduler is a function of the steps taken: place it there, whatever set the rate of the steps before.
        engine.lr_scheduler.step(taken - 1)


def _refresh_weights(trainer: Trainer, number: int) -> None:
    """Copy the fp32 weights of a sub-group into the ones that compute; ZeRO-1 and 2 do it for all at once."""
    optimizer = trainer.engine.optimizer
    if trainer.zero_stage == 3:
        optimizer.fp16_partitioned_groups_flat[number].data.copy_(optimizer.fp32_partitioned_groups_flat[number].data)
        optimizer._unflatten_partitioned_parameters(number)


def _share_weights(trainer: Trainer) -> None:
    """Make the weights that compute the same on all ranks that hold them."""
    optimizer = trainer.engine.optimizer
    if trainer.zero_stage in (1, 2):
        optimizer.update_lp_params()
    if trainer.zero_stage == 3:
        optimizer.invalidate_secondary_tensor()  # ZeRO++'s second copies are of the old weights
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)
