"""What a run printed: its ranks' logs, and what its job printed before there were ranks."""

import sys
import time
from pathlib import Path

from run import events, members
from run.rank_logs import log_of
from run.status import RUNNING, status_of
from support.errors import UserError
from support.json_object import JsonObject

LINES, BYTES = 40, 2**16  # of a file that are shown, at most
POLL_SECONDS = 0.5


def files(path: Path, rank: int | None = None) -> list[Path]:
    """The logs that say most of a run: its job's newest, rank 0's and those of the ranks that failed last; or a rank's.

    Errors: `UserError` where there are none.
    """
    if rank is not None:
        found = [log_of(path, rank)]
        if not found[0].is_file():
            known = sorted(file.stem for file in (path / "logs").glob("rank-*.log"))
            there = f"there are {known[0]} to {known[-1]}" if known else "no rank has printed anything yet"
            raise UserError(f"{path} has no log of rank {rank}; {there}")
        return found
    jobs = sorted(path.glob("*.out"), key=lambda file: file.stat().st_mtime)
    last = [line for line in events.read(path) if line["event"] in ("start", "fault")][-1:]
    failed = {int(line["rank"]) for line in last if line["event"] == "fault" and line.get("rank") is not None}
    found = [*jobs[-1:], *(log_of(path, number) for number in sorted({0} | failed))]
    found = [file for file in found if file.is_file()]
    if not found:
        raise UserError(f"{path} has no logs yet; see how it is with stagecraft status --run {path}")
    return found


def tail(file: Path) -> list[str]:
    """The last lines of a file."""
    with open(file, "rb") as stream:
        stream.seek(max(0, stream.seek(0, 2) - BYTES))
        return stream.read().decode(errors="replace").splitlines()[-LINES:]


def described(found: list[Path]) -> list[JsonObject]:
    """What `stagecraft logs --json` prints of these files."""
    return [{"file": str(file), "lines": tail(file)} for file in found]


def show(found: list[Path]) -> None:
    """Print the last lines of files, each below its name."""
    for file in found:
        print(f"==> {file} <==", *tail(file), sep="\n", flush=True)


def follow(path: Path, found: list[Path]) -> None:
    """Print what is added to files, until the run has ended or Ctrl-C: that leaves the run alone."""
    at, said = {file: file.stat().st_size for file in found}, found[-1]
    try:
        while True:
            going = status_of(path) == RUNNING or members.others(path)
            for file in found:
                with open(file, "rb") as stream:
                    stream.seek(at[file])
                    new = stream.read()
                at[file] += len(new)
                if new:
                    if file != said:
                        print(f"==> {file} <==")
                    said = file
                    sys.stdout.write(new.decode(errors="replace"))
                    sys.stdout.flush()
            if not going:
                return
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        return
