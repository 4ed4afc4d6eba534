"""Writing checkpoints that are whole or not there.

DeepSpeed 0.19.8 leaves shards under their final names and syncs nothing. Here everything is written into
`step-00000100.partial`, synced, hashed and renamed.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint.format import (
    INDEX,
    PARTIAL,
    WEIGHT,
    completed,
    facts,
    folder_of,
    index_text,
    tensor_key,
    write_manifest,
)
from model.checkpoint.zero import Flat, ZeroState, state_of
from model.engine import inside
from model.engine.engine import Engine
from support.errors import CrashedError
from support.files import give_name, sync
from support.json_object import JsonObject


def save(engine: Engine, root: Path, step: int, state: JsonObject, keep: int) -> Path:
    """Write checkpoint `step` below `root` and prune to the newest `keep`; collective over all ranks.

    `state` is whatever the caller needs to go on; it must be JSON. Errors: `CrashedError` on every rank where any rank
    could not write; the earlier checkpoints stay as they are.
    """
    rank, held = torch.distributed.get_rank(), state_of(engine)
    final = folder_of(root, step)
    partial = final.with_name(final.name + PARTIAL)
    problem = _attempt(lambda: _make_empty(partial)) if rank == 0 else ""
    _agree(problem, partial)
    files: list[Path] = []
    problem = _attempt(lambda: files.extend(_write_rank(held, partial / f"rank-{rank:05d}")))
    _agree(problem, partial)
    entry: JsonObject = {}
    problem = _attempt(lambda: entry.update({file.name: facts(file) for file in files}))
    _agree(problem, partial)
    entries: list[JsonObject] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(entries, entry)
    if rank == 0:
        manifest = {
            "step": step,
            "state": state,
            "engine": {"optimizer_step": held.steps(), **inside.counters(engine.deepspeed)},
            "files": {name: fact for each in entries for name, fact in each.items()},
        }
        problem = _attempt(lambda: _commit(partial, final, manifest))
    _agree(problem, partial)
    if rank == 0:
        _prune(root, final, keep)
    return final


def _prune(root: Path, newest: Path, keep: int) -> None:
    """Keep `newest` and the checkpoints before it, `keep` in all.

    Checkpoints after `newest` are of steps that a resumed run takes again.
    """
    past = [path for path in completed(root) if path <= newest]
    for path in {*completed(root), *root.glob(f"step-*{PARTIAL}")} - set(past[-keep:]):
        shutil.rmtree(path, ignore_errors=True)


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write_rank(held: ZeroState, stem: Path) -> list[Path]:
    """Write what this rank owns: all that is in memory in one file, each flat tensor that is swapped out in its own."""
    everything = dict(enumerate(held.flats()))
    swapped = [number for number in everything if held.is_swapped(number)]
    resident = stem.with_name(f"{stem.name}.safetensors")
    _write_flats(held, {n: flat for n, flat in everything.items() if n not in swapped}, resident)
    written = [resident]
    for number in swapped:
        written.append(stem.with_name(f"{stem.name}-{number:05d}.safetensors"))
        with held.in_memory(number):
            _write_flats(held, {number: everything[number]}, written[-1])
    return written


def _write_flats(held: ZeroState, chosen: dict[int, Flat], file: Path) -> None:
    tensors: dict[str, Tensor] = {}
    index = []
    for number, flat in chosen.items():
        mine = [(number, fragment) for fragment in flat.fragments if held.writes(fragment)]
        if not mine:
            continue
        index += mine
        for key, value in {WEIGHT: flat.tensor.detach(), **held.moments(flat)}.items():
            tensors[tensor_key(number, key)] = value.flatten().cpu()
    save_file(tensors, file, {INDEX: index_text(index)})
    sync(file)


def _commit(partial: Path, final: Path, manifest: JsonObject) -> None:
    """The last act of a checkpoint: its manifest, and its name."""
    sync(write_manifest(partial, manifest))
    give_name(partial, final)  # a resumed run may take the same step again


def _attempt(write: Callable[[], Any]) -> str:
    """Run `write`; the reason where the file system refused, else nothing."""
    try:
        write()
    except (OSError, SafetensorError) as error:
        return str(error) or type(error).__name__
    return ""


def _agree(problem: str, partial: Path) -> None:
    """Go on together or fail together: one rank with a full disk must not leave the others waiting. Collective."""
    problems: list[str] = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(problems, problem)
    reason = next((p for p in problems if p), "")
    if not reason:
        return
    if torch.distributed.get_rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
    good = completed(partial.parent)
    kept = f"the last good checkpoint is {good[-1]}" if good else "there is no earlier checkpoint"
    raise CrashedError(
        f"checkpoint {partial.with_suffix('')} could not be written: {reason}; {kept}; "
        "make room and go on with --resume"
    )
