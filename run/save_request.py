"""A save that is asked for from outside: a file in the run directory, which rank 0 looks for after every step."""

from contextlib import suppress
from pathlib import Path

from support.errors import UserError
from support.files import is_locked

FILE = "save.request"


def ask(path: Path) -> None:
    """Ask the run in `path` to save after the step in hand. Errors: `UserError` where nothing trains there."""
    if not is_locked(path / ".lock"):
        raise UserError(f"{path} does not train here; its newest checkpoint is the last thing that it saved")
    try:
        (path / FILE).touch()
    except OSError as error:
        raise UserError(f"{path / FILE} cannot be written: {error.strerror}; ask whoever started the run") from None


def wish(path: Path) -> None:
    """Ask the run in `path`, which is this process's own, where the file can be written."""
    with suppress(OSError):
        (path / FILE).touch()


def asked(path: Path) -> int | None:
    """Which request there is, None where nobody asks. Whoever asks again makes it another one."""
    try:
        return (path / FILE).stat().st_mtime_ns
    except OSError:
        return None


def answer(path: Path, request: int | None) -> None:
    """A checkpoint is whole that was begun when there was this request; one that came later stays."""
    if request is not None and asked(path) == request:
        (path / FILE).unlink(missing_ok=True)
