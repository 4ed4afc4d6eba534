"""Whether machines see one storage: rank 0 leaves a token in a folder, and the others read it."""

import secrets
import time
from contextlib import suppress
from pathlib import Path

LATE_SECONDS = 5.0  # until a file of another machine is seen: NFS remembers for a while that there was none


def leave_token(folder: Path) -> tuple[str, str]:
    """Write a new token into the folder; returns it, and what went wrong, if anything."""
    token = secrets.token_hex(8)
    try:
        (folder / f".token-{token}").write_text(token)
    except OSError as error:
        return token, f"it cannot be written to: {error.strerror}"
    return token, ""


def token_problem(folder: Path, token: str, rank: int, seconds: float) -> str:
    """Why a rank cannot read the token, or write beside it; empty where it can."""
    until = time.monotonic() + seconds
    while True:
        try:
            list(folder.iterdir())  # NFS looks again
            seen = (folder / f".token-{token}").read_text()
            break
        except OSError as error:
            if not isinstance(error, FileNotFoundError) or time.monotonic() > until:
                missing = folder.is_dir() and isinstance(error, FileNotFoundError)
                return "it is another folder than rank 0's" if missing else f"it cannot be read: {error.strerror}"
        time.sleep(0.1)
    if seen != token:
        return "what rank 0 wrote there reads otherwise"
    mine = folder / f".token-{token}-{rank}"
    try:
        mine.write_text(token)
        mine.unlink()
    except OSError as error:
        return f"it cannot be written to: {error.strerror}"
    return ""


def take_token(folder: Path, token: str) -> None:
    """Remove the token."""
    with suppress(OSError):
        (folder / f".token-{token}").unlink(missing_ok=True)
