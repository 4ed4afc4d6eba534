"""Writing checkpoints that are whole or not there.

DeepSpeed 0.19.8 leaves shards under their final names and syncs nothing. Here everything is written into
`step-00000100.partial`, synced, hashed and renamed. The writing is done by threads, while training goes on.
"""

import shutil
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import index, room
from model.checkpoint.base import KEY
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
from model.engine.engine import Engine
from model.engine.held import counters
from support.errors import CrashedError, UserError
from support.files import give_name, sync
from support.json_object import JsonObject

Written = dict[str, tuple[JsonObject, list[tuple[int, Fragment]]]]  # by file: its facts, and what lies in it
Taken = tuple[dict[str, Tensor], list[tuple[int, Fragment]]]  # what goes into a file: its tensors, and what they are
THREAD = "checkpoint"  # the name of the thread that writes
Spared = Callable[[list[int]], Collection[int]]  # of the steps that are saved, those that must stay


@dataclass(frozen=True)
class Pending:
    """A checkpoint that was begun. `files` are this rank's, which a thread writes while training goes on."""

    final: Path
    partial: Path
    content: JsonObject  # of the manifest
    files: "Future[Written]"

    @property
    def written(self) -> bool:
        """Whether this rank waits for nothing any more, whatever came of its files."""
        return self.files.done()

    def finish(self, keep: int, spared: Spared = lambda steps: ()) -> Path:
        """Wait for all ranks' files, give the checkpoint its name and prune to the newest `keep`; collective.

        Rank 0 asks `spared` which checkpoints stay besides. Errors: `CrashedError` on every rank where any rank could
        not write; the earlier checkpoints stay as they are.
        """
        written: Written = {}
        problem = _attempt(lambda: written.update(self.files.result()))
        everyone, rank, tie = gathered((problem, written)), torch.distributed.get_rank(), self.content["tie"]
        if rank == 0:
            problem = first_of([each[0] for each in everyone])
            files = {name: each for _, part in everyone for name, each in part.items()}
            problem = problem or _attempt(lambda: _commit(self.partial, self.final, self.content, files))
        if problem := told(problem):
            _fail(problem, self.partial, tie)
        if rank == 0:
            _prune(self.final, keep, tie, spared)
        return self.final


def save(
    engine: Engine,
    root: Path,
    step: int,
    state: JsonObject,
    keep: int,
    tie: Tie | None = None,
    spared: Spared = lambda steps: (),
) -> Path:
    """Write checkpoint `step` below `root`, and wait for it: `begin` and `Pending.finish`; collective."""
    return begin(engine, root, step, state, tie).finish(keep, spared)


def begin(
    engine: Engine,
    root: Path,
    step: int,
    state: JsonObject,
    tie: Tie | None = None,
    waits: Callable[[str], None] = lambda reason: None,
) -> Pending:
    """Begin checkpoint `step` below `root`: all that is in it is of this moment, whatever is trained after; collective.

    Each rank copies into memory what it writes, 12 bytes a parameter of its own, and a thread writes that. Where the
    memory has no room for it, or the state lies in files, the ranks write before this returns; `waits` is told why, on
    every rank. `state` is whatever the caller needs to go on; it must be JSON. `tie` says of which run the checkpoint
    is. Errors: `CrashedError` on every rank where the folder cannot be made.
    """
    rank, held, tie = torch.distributed.get_rank(), state_of(engine), dict(tie or {})
    final = folder_of(root, step)
    partial = final.with_name(final.name + PARTIAL)
    reason = _why_wait(held)
    problem, reason = told((_attempt(lambda: _make_empty(partial)), reason) if rank == 0 else ("", ""))
    if problem:
        _fail(problem, partial, tie)
    numbers = {"optimizer_step": held.steps(), **counters(engine.deepspeed)}
    content = {"step": step, "tie": tie, "state": state, "engine": numbers}
    if engine.base:
        content[KEY] = asdict(engine.base)
    stem, files = partial / f"rank-{rank:05d}", Future[Written]()
    if reason:
        waits(reason)
        _settle(files, lambda: _write_rank(held, stem))
    else:
        file, taken = _resident(stem), _taken(held, dict(enumerate(held.flats())), copies=True)
        # A daemon: a rank that ends does not wait for a slow disk. It sends nothing to other ranks.
        Thread(target=_settle, args=(files, lambda: {file.name: _write(taken, file)}), daemon=True, name=THREAD).start()
    return Pending(final, partial, content, files)


def _why_wait(held: ZeroState) -> str:
    """Why training has to wait until a checkpoint is written, empty where it need not; rank 0 knows. Collective."""
    mine = {n: flat for n, flat in enumerate(held.flats()) if any(map(held.writes, flat.fragments))}
    swapped = any(map(held.is_swapped, mine))
    tensors = [] if swapped else [x for flat in mine.values() for x in (flat.tensor, *held.moments(flat).values())]
    scarce = room.lack(sum(tensor.nbytes for tensor in tensors))
    return "the state of the optimizer lies in files" if any(gathered(swapped)) else scarce


def _settle(files: "Future[Written]", write: Callable[[], Written]) -> None:
    """Write now. Whoever asks for the result gets what was written, or the error."""
    try:
        files.set_result(write())
    except BaseException as error:
        files.set_exception(error)


def _prune(newest: Path, keep: int, tie: Tie, spared: Spared) -> None:
    """Keep `newest` and the sound checkpoints before it, `keep` in all, and those that are spared.

    One that looks damaged does not count, and stays until the sound ones after it are enough: it may be the storage
    that fails for a moment. `newest` was hashed a moment ago: it is left whatever became of the others. Checkpoints
    after it are of steps that a resumed run takes again. What belongs to another run is not ours to remove.
    """
    root = newest.parent
    found = [path for path in completed(root) if not (path.is_symlink() or _is_foreign(path, tie))]
    sound = [path for path in found if path < newest and not looks_damaged(path, tie)] + [newest]
    stay = {folder_of(root, step) for paths in (found, sound) for step in spared([step_of(path) for path in paths])}
    void = [path for path in found if path > newest or (path < sound[-keep:][0] and path not in stay)]
    for path in void:
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


def _make_empty(partial: Path) -> None:
    """Make the folder of a checkpoint that begins, and room: what an ended process has left unfinished goes."""
    for path in (partial, *partial.parent.glob(f"step-*{PARTIAL}")):
        _remove(path)
    partial.mkdir(parents=True)


def _resident(stem: Path) -> Path:
    """The file of what a rank has in memory."""
    return stem.with_name(f"{stem.name}.safetensors")


def _write_rank(held: ZeroState, stem: Path) -> Written:
    """Write what this rank owns: all that is in memory in one file, each flat tensor that is swapped out in its own."""
    everything = dict(enumerate(held.flats()))
    swapped = [number for number in everything if held.is_swapped(number)]
    file, resident = _resident(stem), {n: flat for n, flat in everything.items() if n not in swapped}
    written = {file.name: _write(_taken(held, resident), file)}
    for number in swapped:
        file = stem.with_name(f"{stem.name}-{number:05d}.safetensors")
        with held.in_memory(number):
            written[file.name] = _write(_taken(held, {number: everything[number]}), file)
    return written


def _taken(held: ZeroState, chosen: dict[int, Flat], copies: bool = False) -> Taken:
    """What this rank writes of the chosen flat tensors, on the CPU; `copies` do not change when training goes on."""
    tensors: dict[str, Tensor] = {}
    written = []
    for number, flat in chosen.items():
        mine = [(number, fragment) for fragment in flat.fragments if held.writes(fragment)]
        if not mine:
            continue
        written += mine
        for key, value in {WEIGHT: flat.tensor.detach(), **held.moments(flat)}.items():
            tensors[tensor_key(number, key)] = value.flatten().to("cpu", copy=copies)
    return tensors, written


def _write(taken: Taken, file: Path) -> tuple[JsonObject, list[tuple[int, Fragment]]]:
    tensors, fragments = taken
    save_file(tensors, file)
    # safetensors gives its files to their owner alone. A folder has the mode that this process gives to what it makes.
    file.chmod(file.parent.stat().st_mode & 0o666)
    sync(file)
    return facts(file), fragments


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
