"""Which run: by path, name, the beginning of a name, id or directory, or as the newest."""

import datetime
import re
import unicodedata
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from recipes import registry
from run import events, record
from run.directory import end_of, runs_root
from support import json_lines
from support.errors import DONE, UserError
from support.files import is_locked
from support.json_object import JsonObject
from support.nearest import hint

NEWEST = "newest"
HELP = "which run: its directory, name, id or the beginning of one, newest or newest:345m; by default the newest"
SHOWN = 5  # of the runs that a text could mean


def find(text: str | None, recipe: str | None = None) -> Path:
    """The directory of the run that `text` means; with `recipe` names are those of that recipe's runs.

    It is a path, a name, an id, the name of a run's directory, a unique beginning of one of the three, `newest`, or
    `newest:345m` for the newest run of a recipe. None is the newest. A path need not be a run: who reads it sees.
    Errors: `UserError` that names the nearest.
    """
    if text is None or text == NEWEST:
        return newest(recipe)
    word, _, of = text.partition(":")
    if word == NEWEST and not Path(text).exists():
        return newest(registry.load(of).name)
    path = Path(text)
    if not text.strip():
        raise UserError("a run was asked for by an empty text; give its name, its directory or newest")
    if "/" in text or text in (".", "..") or _holds_something_of_ours(path):
        return path
    known = [_Known(path) for path in runs(recipe)]
    return _one_of(known, unicodedata.normalize("NFC", text)) or (path if path.exists() else _refuse(text, known))


def newest(recipe: str | None = None) -> Path:
    """The run that was started or resumed last, of one recipe or of all, and finished a step in that start.

    Errors: `UserError` where there is none.
    """
    times = {path: started(path) for path in runs(recipe)}
    found = [(when, path) for path, when in times.items() if when is not None]
    if not found:
        where = runs_root() / (recipe or "")
        raise UserError(f"there is no run below {where}; train one with make demo, or give its directory")
    return max(found)[1]


def latest() -> Path:
    """The run that was started or resumed last, whether or not it has finished a step: what one may want to watch.

    Errors: `UserError` where there is none.
    """
    return max(runs(), key=lambda path: (last_started(path), path), default=None) or newest()


def last_started(path: Path) -> float:
    """When a run was started, resumed or submitted last, in seconds since 1970; 0 where nothing says so."""
    known = record.read(path)
    jobs = [line["time"] for line in json_lines.read_end(path / record.JOBS) if isinstance(line.get("time"), float)]
    return max([*start_times(path), *jobs], default=known.created if known else 0.0)


def runs(recipe: str | None = None) -> list[Path]:
    """The directories of all runs below the root, of one recipe or of all, those that never finished a step too."""
    files = [
        file
        for name in ("recipe.json", record.FILE, record.JOBS)
        for file in runs_root().glob(f"{recipe or '*'}/*/{name}")
    ]
    return sorted({file.parent for file in files})


def new_name(name: str) -> str:
    """A name for a new run, checked. A start that came to nothing does not keep its name from the next try.

    Errors: `UserError` where it is no name, or means something already.
    """
    name = unicodedata.normalize("NFC", name)
    if not re.fullmatch(r"[^\W_][\w.+-]{0,63}", name):
        raise UserError(
            f"--name {name!r} is no name; write 1 to 64 letters, digits, dots, dashes, _ or +, beginning with a letter "
            "or a digit"
        )
    taken = [str(known.path) for known in map(_Known, runs()) if name in known.words and _lives(known.path)]
    with suppress(UserError):
        taken.append(f"the recipe {registry.load(name).name}")
    if taken or name == NEWEST:
        raise UserError(f"--name {name} means {taken[0] if taken else 'the newest run'} already; give another")
    return name


def started(path: Path) -> float | None:
    """When the last start of a run began that finished a step, in seconds since 1970; None where none did.

    The run's own files say so, not the times that the file system gives them: those change with every copy. A start
    that failed before its first step says nothing of the run. A run that was started again after its end is as new
    as that start.
    """
    if not has_steps(path) or not (path / "recipe.json").exists():
        return None
    starts, last = start_times(path), last_step_time(path)
    fruitful = [when for when in starts if last is None or ended_well(path) or when <= last]
    known = record.read(path)
    return max(fruitful, default=known.created if known else min(starts, default=0.0))


def read_events(path: Path) -> list[JsonObject]:
    """The events of a run, none where they cannot be read."""
    with suppress(OSError, TypeError):  # an event may be called by a list
        return events.read(path)
    return []


def has_steps(path: Path) -> bool:
    """Whether a run finished a step."""
    return any("step" in line for line in json_lines.read_end(path / "metrics.jsonl"))


def last_step_time(path: Path) -> float | None:
    """When a run finished its last step, in seconds since 1970; None where its metrics do not say so."""
    times = [line.get("time") for line in json_lines.read_end(path / "metrics.jsonl") if "step" in line]
    return float(times[-1]) if times and isinstance(times[-1], (int, float)) else None


def ended_well(path: Path) -> bool:
    """Whether the last start of a run came to its end."""
    with suppress(UserError, KeyError, TypeError, ValueError):
        return end_of(path) == DONE
    return False


def start_times(path: Path) -> list[float]:
    """When a run was started and resumed, in seconds since 1970, as its events and its starts say."""
    noted = [line.get("time") for line in read_events(path) if line["event"] == "start"]
    times = [float(when) for when in noted if isinstance(when, (int, float))]
    for line in json_lines.read_end(path / "starts.jsonl"):
        with suppress(KeyError, TypeError, ValueError):
            times.append(datetime.datetime.strptime(line["time"], "%Y-%m-%dT%H:%M:%S%z").timestamp())
    return times


@dataclass
class _Known:
    """A run and the words that mean it."""

    path: Path

    def __post_init__(self) -> None:
        who = record.read(self.path)
        names = (who.name if who else _name_of_job(self.path), self.path.name, who.id if who else None)
        self.words = [unicodedata.normalize("NFC", name) for name in names if name]


def _name_of_job(path: Path) -> str | None:
    """The name that a run will have when its job begins."""
    return next(
        (str(job["name"]) for job in reversed(json_lines.read_end(path / record.JOBS)) if job.get("name")), None
    )


def _holds_something_of_ours(path: Path) -> bool:
    """Whether a path is a run's directory, or an exported folder."""
    return any((path / name).is_file() for name in ("recipe.json", "config.json"))


def _one_of(known: list[_Known], text: str) -> Path | None:
    """The one run that a text means: a whole word first, then a beginning.

    Where it means several, starts that came to nothing do not count, unless all did: then it means the last of these.
    Errors: `UserError` where it means more.
    """
    tests: list[Callable[[str], bool]] = [lambda word: word == text, lambda word: word.startswith(text)]
    for test in tests:
        found = [each.path for each in known if any(map(test, each.words))]
        if len(found) > 1:
            found = list(filter(_lives, found)) or [max(found, key=last_started)]
        if len(found) > 1:
            more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
            raise UserError(f"{text!r} means {', '.join(map(str, found[:SHOWN]))}{more}; give one of these directories")
        if found:
            return found[0]
    return None


def _lives(path: Path) -> bool:
    """Whether a run finished a step, or may be about to."""
    return has_steps(path) or is_locked(path / ".lock")


def _refuse(text: str, known: list[_Known]) -> Path:
    near = hint(text, [each.words[0] for each in known], otherwise="see what there is with stagecraft runs")
    raise UserError(f"{text!r} is not a run directory, nor the name of a run below {runs_root()}; {near}")
