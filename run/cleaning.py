"""What runs left behind and nobody needs: found, told and removed.

Never touched: a run that goes on, the last whole checkpoint of any run, a checkpoint that a branch began with until the
branch has one of its own, and one that adapters lie on.
"""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from run import record, select
from run.checkpoints import bases, unusable
from run.directory import read_recipe
from run.listing import shown_size, size_of
from run.status import NEVER, RUNNING, outcome_of, status_of
from support.errors import UserError
from support.files import PARTIAL, locked

DAY = 86400.0  # seconds


@dataclass(frozen=True)
class Leftover:
    """A file or folder of the directory `run` that can go, its size in bytes, and why it can."""

    run: Path
    path: Path
    size: int
    why: str


def leftovers(chosen: list[Path], keep: int = 1, older: float = 0.0) -> list[Leftover]:
    """What can go: of the runs `chosen`, or of all; of runs that did nothing for `older` days.

    `keep` whole checkpoints of each run stay, the newest ones. Errors: `UserError` for a path that is no run, or
    numbers that cannot be.
    """
    if keep < 1:
        raise UserError(f"--keep is {keep}; it must be at least 1: a run without a checkpoint cannot go on")
    if not older >= 0:
        raise UserError(f"--older is {older}; it must be at least 0 days")
    for path in chosen:
        if not (path / record.FILE).exists():
            read_recipe(path)
    needed = _begun_with(select.runs())
    found = [each for path in chosen or select.runs() if _rests(path, older) for each in _of_run(path, keep, needed)]
    return list(dict.fromkeys(found))


def remove(found: list[Leftover]) -> None:
    """Remove what `leftovers` found. Errors: `UserError` where a run was started meanwhile."""
    for each in found:
        busy = f"{each.run} was started meanwhile; wait for its end, and clean again"
        with locked(each.run / ".lock", busy):
            if each.path == each.run and outcome_of(each.run) != NEVER:
                continue  # it was started, and has ended since
            gone = each.path
            if each.path != each.run and each.path.is_dir() and not each.path.name.endswith(PARTIAL):
                gone = each.path.with_name(each.path.name + PARTIAL)  # a kill must not leave what looks whole
                os.replace(each.path, gone)
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)


def _of_run(path: Path, keep: int, needed: set[Path]) -> list[Leftover]:
    from model.checkpoint.format import completed

    saved = completed(path / "checkpoints")
    ours = record.read(path) is not None or (path / "start.json").exists()
    if ours and not saved and not path.is_symlink() and outcome_of(path) == NEVER:
        return [Leftover(path, path, size_of(path), "never finished a step")]
    torn = [file for folder in (path, path / "checkpoints") for file in folder.glob(f"*{PARTIAL}")]
    found = [Leftover(path, file, size_of(file), "was not finished") for file in sorted(torn)]
    whole = 0
    for number, checkpoint in enumerate(reversed(saved)):
        if whole >= keep and checkpoint.resolve() not in needed:
            found.append(Leftover(path, checkpoint, size_of(checkpoint), "an older checkpoint"))
        elif number + 1 < len(saved):  # else nothing is older
            whole += not unusable(path, checkpoint)
    return found


def _rests(path: Path, older: float) -> bool:
    """Whether nobody trains in a directory, and nothing happened to its run for `older` days."""
    if status_of(path) == RUNNING:
        return False
    happened = [*select.start_times(path), select.last_step_time(path) or 0.0]
    return not older or time.time() - max(happened) >= older * DAY


def _begun_with(runs: list[Path]) -> set[Path]:
    """The checkpoints from which branches began that have none of their own yet, or that their adapters lie on."""
    from model.checkpoint.format import completed

    parents = [(path, who.parent) for path in runs if (who := record.read(path)) and who.parent]
    begun = {parent.checkpoint.resolve() for path, parent in parents if not completed(path / "checkpoints")}
    return begun | bases(runs)


def show(found: list[Leftover]) -> None:
    """Print what can go, a line each, and their sum; or that nothing can."""
    if not found:
        print("there is nothing to remove")
        return
    for each in found:
        print(f"{shown_size(each.size):>8}  {each.path}  ({each.why})")
    print(f"{shown_size(sum(each.size for each in found)):>8}  in all")
