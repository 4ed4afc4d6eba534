"""torch's flight recorder: what each rank had asked of NCCL, written down when somebody wants to know.

torch keeps the last 2,000 collectives of a process. It writes them into a file when one times out, and when it finds
something in a pipe, which a thread of it looks into once a second, also while all others hang. Both are named by
variables, each with the rank's number behind it (read in torch 2.13, ProcessGroupNCCL.hpp and FlightRecorder.hpp).
"""

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

FILE, FILE_BEFORE = "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"  # the new name and the old one
PIPE, PIPE_ENDS = "TORCH_NCCL_DEBUG_INFO_PIPE_FILE", ".pipe"
ON_TIMEOUT = "TORCH_NCCL_DUMP_ON_TIMEOUT"
PREFIX = "rank_"  # of the files, as `torchfrtrace --prefix` wants it; no other file there may have it in its name
WRITE_SECONDS = 10.0  # that ranks have to write: they look once a second, and name the line of each collective
END_OF_PICKLE = b"."


def folder_of(path: Path) -> Path:
    """Where the ranks of the run in `path` write."""
    return path.absolute() / "logs" / "collectives"


def record(path: Path) -> None:
    """Have this rank write for the run in `path`, before it joins an NCCL process group. What the user has set stays.

    torch ends a process whose pipe cannot be made, so there is none on storage that has no pipes.
    """
    folder = folder_of(path)
    probe = folder / f"probe-{os.uname().nodename}-{os.getpid()}"
    values = {ON_TIMEOUT: "1"}
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if FILE_BEFORE not in os.environ:
            values[FILE] = str(folder / PREFIX)
        os.mkfifo(probe)
        probe.unlink()
        values[PIPE] = str(folder / "ask-")
    for name, value in values.items():
        os.environ.setdefault(name, value)


def ask(path: Path, ranks: Iterable[int]) -> list[int]:
    """Ask ranks of this machine to write; returns those that look into their pipes. Without NCCL none does."""
    stem, asked = os.environ.get(PIPE) or str(folder_of(path) / "ask-"), []
    for rank in ranks:
        with suppress(OSError):  # no pipe, or nobody who looks into it
            pipe = os.open(f"{stem}{rank}{PIPE_ENDS}", os.O_WRONLY | os.O_NONBLOCK)
            _file(path, rank).unlink(missing_ok=True)
            os.write(pipe, b"1")
            os.close(pipe)
            asked.append(rank)
    return asked


def collected(path: Path, asked: list[int], name: str) -> str:
    """Wait until the ranks have written, and return one line: whose files lie where, and what reads them.

    Files in our own folder are kept under `name` beside it, for the next launch writes there again.
    """
    until = time.monotonic() + WRITE_SECONDS
    while not all(_is_whole(_file(path, rank)) for rank in asked) and time.monotonic() < until:
        time.sleep(0.25)
    wrote = [rank for rank in asked if _file(path, rank).exists()]
    if not wrote:
        return ""
    prefix = _file(path, 0).name.removesuffix("0")
    folder = _file(path, 0).parent
    if folder == folder_of(path):
        for pipe in folder.glob(f"*{PIPE_ENDS}"):
            pipe.unlink(missing_ok=True)
        with suppress(OSError):
            folder = folder.rename(folder.with_name(name))
    who = f"rank {wrote[0]}" if len(wrote) == 1 else f"{len(wrote)} ranks"
    return f"NCCL's last work of {who}: torchfrtrace --allow-incomplete-ranks --prefix {prefix} {folder}"


def clear(path: Path) -> None:
    """Remove the pipes of ranks that have ended, and the folder where nothing was written."""
    for pipe in folder_of(path).glob(f"*{PIPE_ENDS}"):
        pipe.unlink(missing_ok=True)
    with suppress(OSError):
        folder_of(path).rmdir()


def _file(path: Path, rank: int) -> Path:
    prefix = os.environ.get(FILE) or os.environ.get(FILE_BEFORE) or str(folder_of(path) / PREFIX)
    return Path(f"{prefix}{rank}")


def _is_whole(file: Path) -> bool:
    """Whether a file was written to its end."""
    try:
        with open(file, "rb") as stream:
            stream.seek(-1, os.SEEK_END)
            return stream.read() == END_OF_PICKLE
    except OSError:
        return False
