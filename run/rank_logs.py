"""What the ranks of a run print: a file each in `logs/`, and in it a line where each start of the rank begins."""

import os
import time
from pathlib import Path

BEGINS = "--- rank"
TAIL_BYTES, TAIL_LINES, LINE_LETTERS = 2**15, 12, 240


def log_of(path: Path, rank: int) -> Path:
    """What a rank prints."""
    return path / "logs" / f"rank-{rank:05d}.log"


def stacks_of(path: Path, rank: int) -> Path:
    """Where a rank writes the stacks of its threads when it is asked."""
    return path / "logs" / f"rank-{rank:05d}.stacks"


def clear(path: Path) -> None:
    """Remove the files of stacks that nobody asked for."""
    for file in (path / "logs").glob("*.stacks"):
        if not file.stat().st_size:
            file.unlink(missing_ok=True)


def header(rank: int) -> str:
    """The line before what a rank prints."""
    return f"{BEGINS} {rank}, pid {os.getpid()}, {time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n"


def last_lines(path: Path, rank: int) -> list[str]:
    """The last lines that a rank printed since it began last; none where it printed nothing."""
    try:
        with open(log_of(path, rank), "rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    began = max((number for number, line in enumerate(lines) if line.startswith(BEGINS)), default=-1)
    return [line.rstrip()[:LINE_LETTERS] for line in lines[began + 1 :] if line.strip()][-TAIL_LINES:]


def last_error(path: Path, rank: int) -> str | None:
    """The last error in one line that a rank printed since it began last."""
    errors = [line.removeprefix("error: ") for line in last_lines(path, rank) if line.startswith("error: ")]
    return errors[-1] if errors else None
