"""Which checkpoint of a run: of a step, the best or the newest; and whether it is whole."""

import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from run import record, select
from run.directory import Run, read_recipe
from run.metrics import read_evaluated
from support.errors import UserError
from support.json_object import JsonObject

NEWEST, BEST = "newest", "best"
HELP = "which checkpoint: a step, best (the lowest validation loss of what is saved), or newest; by default newest"


@dataclass(frozen=True)
class Chosen:
    """A checkpoint that is whole, and the damage of those that would have been taken before it."""

    path: Path
    step: int
    passed_over: tuple[str, ...] = ()

    @property
    def told(self) -> JsonObject:
        """The same for a program."""
        return {"checkpoint": self.step, "passed_over": list(self.passed_over)}

    def tell(self) -> None:
        """Say on standard error what was passed over: what follows is not of the checkpoint that one expects."""
        for reason in self.passed_over:
            print(f"passing over a damaged checkpoint: {reason}; taking step {self.step}", file=sys.stderr)


def choose(run: Path, which: str | None = None) -> Chosen:
    """The checkpoint of a run that `which` means: a step, `best`, or `newest`, as None does.

    The best is the one with the lowest validation loss that was measured at its step. A damaged one is passed over to
    the next. Errors: `UserError` where there is none, where `run` is no run, and where that of a step is damaged.
    """
    from model.checkpoint.format import completed

    read_recipe(run)
    which = NEWEST if which is None else which.strip()
    saved = {int(path.name.removeprefix("step-")): path for path in completed(run / "checkpoints")}
    if not saved:
        raise UserError(
            f"{run} has no checkpoint to read: no checkpoint was saved yet; train it with --resume --run-dir {run}"
        )
    steps = _in_order(run, which, sorted(saved, reverse=True))
    passed_over: list[str] = []
    for step in steps:
        if not (reason := unusable(run, saved[step])):
            return Chosen(saved[step], step, tuple(passed_over))
        passed_over.append(reason)
    left = f"; whole may be {_listed(set(saved) - set(steps))}" if set(saved) - set(steps) else ""
    raise UserError(f"{run} has no checkpoint to read: {passed_over[0]}; restore it, or take another{left}")


def _in_order(run: Path, which: str, saved: list[int]) -> list[int]:
    """The steps that `which` means, the first choice first. Errors: `UserError` where there is none."""
    if which == NEWEST:
        return saved
    if which == BEST:
        losses = validation_losses(run)
        measured = sorted((losses[step], step) for step in saved if step in losses)
        if not measured:
            raise UserError(
                f"no validation loss of {run} was measured at a step that is saved ({_listed(saved)}); give a step, "
                "and save and evaluate at the same steps"
            )
        return [step for _, step in measured]
    if not which.isdecimal():
        raise UserError(f"{which!r} is no checkpoint of {run}; give a step ({_listed(saved)}), {BEST} or {NEWEST}")
    if int(which) not in saved:
        raise UserError(f"{run} has no checkpoint of step {int(which)}; there are {_listed(saved)}")
    return [int(which)]


def validation_losses(run: Path) -> dict[int, float]:
    """The finite validation losses of a run, in nats, by step."""
    losses = {line["step"]: line.get("validation_loss") for line in read_evaluated(run / "metrics.jsonl")}
    return {step: loss for step, loss in losses.items() if isinstance(loss, (int, float)) and math.isfinite(loss)}


def spared(run: Run, saved: list[int]) -> set[int]:
    """Of the steps that are saved, those that stay however old they are.

    They are every Nth, the best so far, and those that the adapters of other runs lie on.
    """
    from model.checkpoint.format import folder_of

    every, losses = run.recipe.intervals.keep_every, validation_losses(run.path)
    best = min((losses[step], step) for step in saved if step in losses)[1:] if losses.keys() & set(saved) else ()
    needed = bases(select.runs())
    lain_on = (step for step in saved if folder_of(run.checkpoints, step).resolve() in needed)
    return {*best, *lain_on, *(step for step in saved if every and step % every == 0)}


def bases(runs: list[Path]) -> set[Path]:
    """The checkpoints that the adapters of runs lie on."""
    parents = [known.parent for path in runs if (known := record.read(path))]
    return {Path(parent.base).resolve() for parent in parents if parent and parent.base}


def unusable(run: Path, checkpoint: Path) -> str:
    """Why a run cannot use a checkpoint, empty where it can: it is another run's, or damaged."""
    return _foreign(run, checkpoint) or damage_of(checkpoint)


def _foreign(run: Path, checkpoint: Path) -> str:
    """Why a checkpoint is not one of this run, empty where it is, and where nobody can know."""
    from model.checkpoint.format import foreign, manifest

    known = record.read(run)
    try:
        reason = foreign(manifest(checkpoint), {record.RUN: known.id} if known else {})
    except UserError:
        return ""  # damage, which is told elsewhere
    return reason and f"{checkpoint}: {reason}"


def damage_of(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, empty where nothing is. Its files are read by all cores together.

    So are those of what adapters in it lie on.
    """
    from model.checkpoint.base import base_of
    from model.checkpoint.format import manifest

    if reason := _damage_of(checkpoint):
        return reason
    try:
        base = base_of(manifest(checkpoint))
    except UserError as error:
        return str(error)
    if base and not Path(base.path).is_dir():
        return f"{base.path} is gone, on which the adapters of {checkpoint} lie"
    return _damage_of(Path(base.path)) if base else ""


def _damage_of(checkpoint: Path) -> str:
    from model.checkpoint.format import damage

    shares = os.cpu_count() or 1
    with ThreadPoolExecutor(shares) as pool:
        return next(filter(None, pool.map(lambda share: damage(checkpoint, share, shares), range(shares))), "")


def _listed(steps: "list[int] | set[int]") -> str:
    return ", ".join(map(str, sorted(steps)))
