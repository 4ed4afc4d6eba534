"""Try settings of a recipe: one ordinary run for each point, one after another."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import local
from launch.start import start
from recipes.axes import Point
from recipes.recipe import Recipe
from recipes.settings import override
from run import events, record, trials
from run.request import Request, plan_run
from run.status import CRASHED
from run.trials import Trial
from support.errors import STOPPED, CrashedError, StoppedError, UserError
from support.files import locked
from support.json_object import JsonObject


@dataclass(frozen=True)
class Search:
    """A recipe and the points of it that are to be tried, in the folder of that search."""

    recipe: Recipe
    folder: Path
    points: Sequence[Point]
    max_steps: int | None = None
    processes: int | None = None
    hostfile: str | None = None

    def request(self, trial: Trial) -> Request:
        """What the run of a point is started with: one that is there goes on."""
        path, point = str(trial.path), trial.point
        if trial.begun:
            return Request(run_dir=path, resume=True, max_steps=self.max_steps)
        # A start that was cut off before its first file after run.json has the name already.
        name = None if (trial.path / record.FILE).exists() else f"{self.folder.name}-{trial.number}"
        return Request(point.deepspeed_config, point.settings, self.max_steps, path, name=name)


def search(wanted: Search) -> None:
    """Run every point that has not come to its end. A point that fails is noted, and the next one is run.

    Errors: `UserError` before the first run where one of the points cannot be, or another process tries them;
    `StoppedError` on request.
    """
    known, due = trials.numbered(wanted.folder, wanted.points)
    last_steps = _checked(wanted, due)
    with locked(wanted.folder / ".lock", f"another process tries {wanted.folder.name}; wait for its end"):
        trials.write(wanted.folder, known)
        each = zip(due, last_steps, trials.labels(due), strict=True)
        for place, (trial, last_step, label) in enumerate(each, start=1):
            over = trial.hopeless or trial.finished(last_step)
            before = f" ({trial.state} before)" if over else ""
            print(f"--- {place} of {len(due)}, {trial.path.name}: {label}{before}", flush=True)
            if not over:
                failed = _run(wanted, trial, f"stopped at {place} of {len(due)}; give the same command again to go on")
                trials.note(wanted.folder, trial, *failed)


def _checked(wanted: Search, due: Sequence[Trial]) -> list[int]:
    """The last step of each point. Errors: `UserError` for the first that cannot be, before anything is written."""
    world = local.world_size(wanted.hostfile, wanted.processes, wanted.recipe.cluster.world_size)
    steps = []
    for trial in due:
        try:
            recipe = override(wanted.recipe, [*trial.point.settings])
            if recipe.data.tunes or recipe.lora.rank:
                raise UserError(
                    "it tunes a model, and try takes none; pretrain with --from, --set and a --name each, then "
                    "stagecraft compare"
                )
            steps.append(plan_run(wanted.recipe, wanted.request(trial), world).last_step_from(0, 0))
        except UserError as error:
            of = " ".join(trial.point.settings) or trial.point.deepspeed_config or wanted.recipe.name
            raise UserError(f"{of}: {error}") from None
    return steps


def _run(wanted: Search, trial: Trial, stopped: str) -> tuple[int | None, str]:
    """Run a point; returns the status and the reason of a failure, else None. Errors: `StoppedError` with `stopped`."""
    began = time.time()
    failed: tuple[int | None, str] = None, ""
    try:
        start(wanted.recipe, wanted.request(trial), wanted.processes, wanted.hostfile)
    except SystemExit as ended:  # its ranks have said why
        if ended.code == STOPPED:
            raise StoppedError(stopped) from None
        failed = int(ended.code or 0), str(record.read_object(trial.path / "status.json").get("reason", ""))
    except StoppedError:
        raise StoppedError(stopped) from None
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        failed = error.status, str(error)
    if any(event["event"] == "stop" and event["time"] >= began for event in events.read(trial.path)):
        raise StoppedError(stopped)
    return failed


def check_end(values: JsonObject) -> None:
    """Say by an exit status what is left to do.

    Errors: `CrashedError` where a point crashed, `UserError` where none came to a loss.
    """
    points = values["points"]
    crashed = [point for point in points if point["state"] == CRASHED]
    if crashed:
        raise CrashedError(f"{len(crashed)} of {len(points)} points crashed; the same command tries them again")
    if all(point["validation_loss"] is None for point in points):
        reason = next((point["reason"] for point in points if point["reason"]), "their losses are not finite")
        raise UserError(f"no point came to a validation loss: {reason}")
