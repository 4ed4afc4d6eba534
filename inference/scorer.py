"""A scorer of the user's own: `FILE.py:function` or `module:function`, called with a prompt and a text behind it."""

import hashlib
import importlib
import importlib.util
import math
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

from support.errors import UserError
from support.nearest import hint

FORM = "write FILE.py:function or module:function"


class Scorer:
    """Scores texts with somebody's function: `(prompt: str, text: str) -> float`, the higher the better."""

    def __init__(self, name: str, function: Callable[[str, str], object], code: bytes) -> None:
        self.name, self.function = name, function
        self.digest = hashlib.sha256(code).hexdigest()  # of its file: other code gives other scores

    def __call__(self, prompt: str, text: str) -> float:
        """The score of a text. Errors: `UserError` where the function raises, or returns no finite number."""
        try:
            found = self.function(prompt, text)
        except (Exception, SystemExit) as error:
            raise UserError(f"--rank-by {self.name} raised {_told(error)}; mend it") from None
        try:
            score = float(found)  # type: ignore[arg-type]  # numpy's and torch's numbers too
        except (TypeError, ValueError, RuntimeError):
            score = math.nan
        if isinstance(found, str) or not math.isfinite(score):
            shown = repr(found)[:40]
            raise UserError(f"--rank-by {self.name} returned {shown} for {text[:40]!r}, no finite number; mend it")
        return score


@cache
def scorer_of(name: str) -> Scorer:
    """The scorer of this name. Its file may import what lies beside it.

    Errors: `UserError` where there is no such file, module or function, or it cannot be loaded.
    """
    place, _, function = name.rpartition(":")
    if not place or not function:
        raise UserError(f"--rank-by {name!r} is no way to rank; {FORM}")
    if place.endswith(".py") and not Path(place).is_file():
        raise UserError(f"--rank-by {name}: there is no file {place}; {FORM}")
    try:
        module = _module_of(place)
    except ModuleNotFoundError as error:
        raise UserError(f"--rank-by {name}: {error}; install it, or {FORM}") from None
    except (Exception, SystemExit) as error:
        raise UserError(f"--rank-by {name}: {place} cannot be loaded: {_told(error)}; mend it") from None
    found = getattr(module, function, None)
    if not callable(found):
        near = hint(function, [each for each, value in vars(module).items() if callable(value)], otherwise=FORM)
        raise UserError(f"--rank-by {name}: {place} has no function {function}; {near}")
    file = getattr(module, "__file__", None)
    return Scorer(name, found, Path(file).read_bytes() if file else b"")


def _module_of(place: str) -> ModuleType:
    """The module of a file, or of a name that is found from the working directory too."""
    folder = str(Path(place).resolve().parent if place.endswith(".py") else Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(f"scorer_{Path(place).stem}", place)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    spec.loader.exec_module(module)
    return module


def _told(error: BaseException) -> str:
    """An error in a line, with the last place of the user's own code."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    said = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}{': ' if said else ''}{said}{where}"
