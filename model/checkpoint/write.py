"""Writing checkpoints that are whole or not there.

DeepSpeed 0.19.8 leaves shards under their final names and syncs nothing. Here everything is written into
`step-00000100.partial`, synced, hashed and renamed.
"""

import shutil
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import index
from model.checkpoint.format import (
    PARTIAL,
    Tie,
    completed,
    facts,
    folder_of,
    foreign,
    looks_damaged,
    manifest,
    step_of,
    write_manifest,
    wrong_size,
)
from model.checkpoint.index import WEIGHT, Fragment, index_text, tensor_key
from model.checkpoint.together import first_of, gathered, told
from model.checkpoint.zero import Flat, ZeroState, state_of
from model.engine import inside
from model.engine.engine import Engine
from support.errors import CrashedError, UserError
from support.files import give_name, sync
from support.json_object import JsonObject

Written = dict[str, tuple[JsonObject, list[tuple[int, Fragment]]]]  # by file: its facts, and what lies in it
Spared = Callable[[list[int]], Collection[int]]  # of the steps that are saved, those that must stay


def save(
    engine: Engine,
    root: Path,
    step: int,
    state: JsonObject,
    keep: int,
    tie: Tie | None = None,
    spared: Spared = lambda steps: (),
) -> Path:
    """Write checkpoint `step` below `root` and prune to the newest `keep`; collective over all ranks.

    `state` is whatever the caller needs to go on; it must be JSON. `tie` says of which run the checkpoint is. Rank 0
    asks `spared` which checkpoints stay besides. Errors: `CrashedError` on every rank where any rank could not write;
    the earlier checkpoints stay as they are.
    """
    rank, held, tie = torch.distributed.get_rank(), state_of(engine), dict(tie or {})
    final = folder_of(root, step)
    partial = final.with_name(final.name + PARTIAL)
    problem = told(_attempt(lambda: _make_empty(partial)) if rank == 0 else "")
    if not problem:
        written: Written = {}
        problem = _attempt(lambda: written.update(_write_rank(held, partial / f"rank-{rank:05d}")))
        numbers = {"optimizer_step": held.steps(), **inside.counters(engine.deepspeed)}
        everyone = gathered((problem, written))
        if rank == 0:
            problem = first_of([each[0] for each in everyone])
            files = {name: each for _, part in everyone for name, each in part.items()}
            content = {"step": step, "tie": tie, "state": state, "engine": numbers}
            problem = problem or _attempt(lambda: _commit(partial, final, content, files))
        problem = told(problem)
    if problem:
        _fail(problem, partial, tie)
    if rank == 0:
        _prune(root, final, keep, tie, spared)
    return final


def _prune(root: Path, newest: Path, keep: int, tie: Tie, spared: Spared) -> None:
    """Keep `newest` and the sound checkpoints before it, `keep` in all, and those that are spared.

    One that looks damaged does not count, and stays until the sound ones after it are enough: it may be the storage
    that fails for a moment. `newest` was hashed a moment ago: it is left whatever became of the others. Checkpoints
    after it are of steps that a resumed run takes again. What belongs to another run is not ours to remove.
    """
    found = [path for path in completed(root) if not (path.is_symlink() or _is_foreign(path, tie))]
    sound = [path for path in found if path < newest and not looks_damaged(path, tie)] + [newest]
    stay = {folder_of(root, step) for paths in (found, sound) for step in spared([step_of(path) for path in paths])}
    void = [path for path in found if path > newest or (path < sound[-keep:][0] and path not in stay)]
    for path in (*void, *root.glob(f"step-*{PARTIAL}")):
        _remove(path)


def _is_foreign(checkpoint: Path, tie: Tie) -> bool:
    try:
        return bool(foreign(manifest(checkpoint), tie))
    except UserError:
        return False


def _remove(path: Path) -> None:
    """Remove a folder, or whatever else has its name, if that can be. What a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _make_empty(folder: Path) -> None:
    _remove(folder)
    folder.mkdir(parents=True)


def _write_rank(held: ZeroState, stem: Path) -> Written:
    """Write what this rank owns: all that is in memory in one file, each flat tensor that is swapped out in its own."""
    everything = dict(enumerate(held.flats()))
    swapped = [number for number in everything if held.is_swapped(number)]
    resident = stem.with_name(f"{stem.name}.safetensors")
    written = {resident: _write_flats(held, {n: flat for n, flat in everything.items() if n not in swapped}, resident)}
    for number in swapped:
        file = stem.with_name(f"{stem.name}-{number:05d}.safetensors")
        with held.in_memory(number):
            written[file] = _write_flats(held, {number: everything[number]}, file)
    return {file.name: (facts(file), fragments) for file, fragments in written.items()}


def _write_flats(held: ZeroState, chosen: dict[int, Flat], file: Path) -> list[tuple[int, Fragment]]:
    tensors: dict[str, Tensor] = {}
    written = []
    for number, flat in chosen.items():
        mine = [(number, fragment) for fragment in flat.fragments if held.writes(fragment)]
        if not mine:
            continue
        written += mine
        for key, value in {WEIGHT: flat.tensor.detach(), **held.moments(flat)}.items():
            tensors[tensor_key(number, key)] = value.flatten().cpu()
    save_file(tensors, file)
    # safetensors gives its files to their owner alone. A folder has the mode that this process gives to what it makes.
    file.chmod(file.parent.stat().st_mode & 0o666)
    sync(file)
    return written


def _commit(partial: Path, final: Path, content: JsonObject, files: Written) -> None:
    """The last act of a checkpoint: its index, its manifest, and its name."""
    for name, (known, _) in files.items():
        if reason := wrong_size(partial / name, known["bytes"]):
            raise OSError(f"{reason}; all ranks must write to the same storage")
    place = partial / index.FILE
    place.write_text(index_text({name: fragments for name, (_, fragments) in files.items()}))
    sync(place)
    known = {name: each[0] for name, each in files.items()}
    sync(write_manifest(partial, {**content, "index": facts(place), "files": known}))
    if not final.is_dir() or final.is_symlink():
        final.unlink(missing_ok=True)
    give_name(partial, final)  # a resumed run may take the same step again


def _attempt(write: Callable[[], Any]) -> str:
    """Run `write`; the reason where the file system refused, else nothing."""
    try:
        write()
    except (OSError, SafetensorError) as error:
        return str(error) or type(error).__name__
    return ""


def _fail(reason: str, partial: Path, tie: Tie) -> None:
    """End on all ranks together: one rank with a full disk must not leave the others waiting. Collective."""
    good = ""
    if torch.distributed.get_rank() == 0:
        _remove(partial)
        sound = [path for path in completed(partial.parent) if not looks_damaged(path, tie)]
        good = f"the last good checkpoint is {sound[-1]}" if sound else "there is no earlier checkpoint"
    raise CrashedError(
        f"checkpoint {partial.with_suffix('')} could not be written: {reason}; {told(good)}; "
        "make room and go on with --resume"
    )
