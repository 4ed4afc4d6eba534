"""The record of a search: `try.json` and `try.png` below `runs/<recipe>/<name>/`, and its runs beside that folder.

The record numbers the points as they came. Point 1 of the search `rate` is the run `runs/<recipe>/rate-001`, whose name
is `rate-1`. What became of a point its run tells; the record adds how its last start failed.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

from recipes.axes import Point
from run import record
from run.compare import Told, comparable, loss_scales, same_tokeniser, speed
from run.directory import end_of, runs_root, was_trained
from run.metrics import read_metrics
from run.overlay import COLOURS, Drawn, draw, picture
from run.status import CRASHED, ENDS, status_of
from support.errors import DONE, WEIGHTS_LOST, UserError
from support.files import write_json
from support.json_object import JsonObject

FILE, PICTURE = "try.json", "try.png"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TICKS = 6  # values of a setting that are written out below its axis
JSON = "JSON"  # the DeepSpeed JSON among the settings


@dataclass(frozen=True)
class Trial:
    """A point with its number, the directory of its run, and how its last start failed, if it did."""

    number: int
    point: Point
    path: Path
    status: int | None = None  # see support/errors.py
    reason: str = ""

    @property
    def begun(self) -> bool:
        """Whether there is a run to go on with."""
        return (self.path / "recipe.json").exists()

    @property
    def trained(self) -> bool:
        return was_trained(self.path)

    @property
    def hopeless(self) -> bool:
        """Whether the weights are lost: no start leads further."""
        return end_of(self.path) == WEIGHTS_LOST

    def finished(self, last_step: int) -> bool:
        """Whether the run came to a step and ended well."""
        return end_of(self.path) == DONE and read_metrics(self.path / "metrics.jsonl")[-1]["step"] >= last_step

    @cached_property
    def settings(self) -> dict[str, str]:
        """The values of the point by their fields, the JSON among them where the command names one."""
        pairs = (setting.partition("=") for setting in self.point.settings)
        named = {JSON: Path(self.point.deepspeed_config).name} if self.point.deepspeed_config else {}
        return {**{field: value for field, _, value in pairs}, **named}

    @property
    def state(self) -> str:
        """What became of it, in a word or two: its run tells, or else its last start."""
        if self.trained:
            return status_of(self.path)
        return "waiting" if self.status is None else ENDS.get(self.status, CRASHED)


def folder(recipe: str, name: str) -> Path:
    """Where a search is kept. Errors: `UserError` for a name that is none, and where a run has it."""
    if not NAME.fullmatch(name):
        raise UserError(f"--name {name!r}: take letters, digits, dots, dashes and underscores, at most 64")
    path = runs_root() / recipe / name
    if (path / "recipe.json").exists():
        raise UserError(f"{path} is a run; give the search another --name")
    return path


def read(path: Path) -> list[Trial]:
    """What a search tried, in the order of its numbers; nothing where there is no search.

    Errors: `UserError` where the record is not as it was written.
    """
    file = path / FILE
    if not file.exists():
        return []
    try:
        return [_read(path, each) for each in json.loads(file.read_text())["points"]]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file} was changed; restore it, or give the search another --name") from None


def _read(path: Path, each: JsonObject) -> Trial:
    point = Point(tuple(each["settings"]), each["deepspeed_config"])
    return Trial(each["number"], point, _run_path(path, each["number"]), each["status"], each["reason"])


def write(path: Path, trials: Sequence[Trial]) -> None:
    """Keep what a search tries, whole or not at all."""
    path.mkdir(parents=True, exist_ok=True)
    points = [
        {"number": each.number, **asdict(each.point), "status": each.status, "reason": each.reason} for each in trials
    ]
    write_json(path / FILE, {"points": points})


def note(path: Path, changed: Trial, status: int | None, reason: str) -> None:
    """Write down how the start of a point failed, or by None that it did not."""
    after = replace(changed, status=status, reason=reason)
    write(path, [after if each.number == changed.number else each for each in read(path)])


def numbered(path: Path, points: Sequence[Point]) -> tuple[list[Trial], list[Trial]]:
    """All trials of a search, and the ones of `points` among them, which get the next numbers where they are new.

    A point is known again by its settings, in whatever order they are given.
    """
    known = {_key(trial.point): trial for trial in read(path)}
    for point in points:
        number = len(known) + 1
        known.setdefault(_key(point), Trial(number, point, _run_path(path, number)))
    wanted = {_key(point) for point in points}
    return list(known.values()), [trial for key, trial in known.items() if key in wanted]


def _key(point: Point) -> tuple[frozenset[str], str | None]:
    return frozenset(point.settings), point.deepspeed_config


def _run_path(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}-{number:03d}")


def varying(trials: Sequence[Trial]) -> list[str]:
    """The fields in which trials differ."""
    fields = dict.fromkeys(field for trial in trials for field in trial.settings)
    return [field for field in fields if len({trial.settings.get(field) for trial in trials}) > 1]


def labels(trials: Sequence[Trial]) -> list[str]:
    """What sets each trial apart from the others."""
    fields = varying(trials)
    return [" ".join(f"{field}={each.settings.get(field, '-')}" for field in fields) for each in trials]


def _told(trials: Sequence[Trial]) -> list[Told]:
    """The runs of trials that took a step, labelled by what sets them apart."""
    return [Told(each.path, label) for each, label in zip(trials, labels(trials), strict=True) if each.trained]


def table(path: Path) -> JsonObject:
    """What a search found, the best first; docs/json.md has the keys. Errors: `UserError` where there is none."""
    trials = read(path)
    if not trials:
        raise UserError(f"there is no search in {path}; give the recipe and the --name of one, or start it")
    told = _told(trials)
    rows = [_row(trial) for trial in trials]
    return {
        "name": path.name,
        "points": sorted(rows, key=lambda row: math.inf if row["bits_per_byte"] is None else row["bits_per_byte"]),
        "same_tokeniser": same_tokeniser(told) if told else True,
        "remarks": comparable(told),
        "picture": str(path / PICTURE) if told else None,
    }


def _row(trial: Trial) -> JsonObject:
    row: JsonObject = {
        "number": trial.number,
        "run": str(trial.path),
        "settings": trial.settings,
        "state": trial.state,
        "reason": trial.reason or None,
        "step": 0,
        "tokens": 0,
        "validation_loss": None,
        "bits_per_byte": None,
        "tokens_per_second": None,
    }
    if not trial.trained:
        return row
    run = Told(trial.path, "")
    row["step"] = read_metrics(trial.path / "metrics.jsonl")[-1]["step"]
    row["tokens"], row["tokens_per_second"] = int(run.curve.tokens[-1]), speed(run)
    row["validation_loss"] = loss = last_loss(run)
    row["bits_per_byte"] = run.bits(loss)
    if trial.hopeless:
        row["reason"] = record.read_object(trial.path / "status.json").get("reason")
    return row


def last_loss(run: Told) -> float | None:
    """The validation loss at the end of a run, or before it that of the last evaluation; none of lost weights."""
    if run.final_loss is not None or run.state in (ENDS[DONE], ENDS[WEIGHTS_LOST]):
        return run.final_loss
    return next(iter(run.curve.held_out[-1:].tolist()), None)


def plot(path: Path) -> None:
    """Draw the curves of a search, and its losses against each setting that varies."""
    trials = read(path)
    trained, runs = [trial for trial in trials if trial.trained], _told(trials)
    if not runs:
        return
    name, scales = loss_scales(runs)
    fields = varying(trials)
    with picture(path / PICTURE, panels=1 + len(fields)) as (curves, *others):
        drawn = [Drawn(run.label, run.curve, scale) for run, scale in zip(runs, scales, strict=True)]
        draw(curves, "tokens", drawn)
        curves.set_ylabel(name)
        if 1 < len(runs) <= len(COLOURS):  # more of them share colours
            curves.legend(title="line: training, dots: validation")
        losses = [last_loss(run) for run in runs]
        for axes, field in zip(others, fields, strict=True):
            values = [trial.settings.get(field, "-") for trial in trained]
            axes.set(xlabel=field, ylabel=f"validation {name}")
            places = _places(values)
            for number, (value, loss, scale) in enumerate(zip(values, losses, scales, strict=True)):
                if loss is not None:
                    axes.scatter([places[value]], [loss * scale], color=COLOURS[number % len(COLOURS)], zorder=3)
            if min(places.values()) > 0 and max(places.values()) >= 4 * min(places.values()):
                axes.set_xscale("log")
            if len(places) <= TICKS:
                axes.set_xticks(list(places.values()), list(places))
                axes.minorticks_off()
            axes.margins(x=0.15)


def _places(values: Sequence[str]) -> dict[str, float]:
    """Where each value stands on an axis: as a number, or where one of them is none, side by side."""
    once = list(dict.fromkeys(values))
    try:
        return {value: float(value) for value in once}
    except ValueError:
        return {value: float(place) for place, value in enumerate(once)}
