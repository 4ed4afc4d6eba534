"""The GPUs of a machine as `nvidia-smi` tells them: no context is made, so what is used is used by others."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

FIELDS = ("index", "name", "memory.total", "memory.used", "ecc.errors.uncorrected.volatile.total")
REASONS = ("hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown")
OLD, NEW = "clocks_throttle_reasons", "clocks_event_reasons"  # the driver's word changed with 535
ROWS = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")
SECONDS = 20.0
XID = re.compile(r"NVRM: Xid \(([^)]*)\): (\d+)")


@dataclass(frozen=True)
class Board:
    """A GPU. Memory in MiB; `slow` are the reasons for which its clock is down now."""

    index: int
    name: str
    memory: int
    used: int
    ecc: int = 0
    slow: tuple[str, ...] = ()
    remap_pending: bool = False
    remap_failed: bool = False


@dataclass(frozen=True)
class Boards:
    """Those that this process may use, why they are not known, and the kernel's Xid lines, `None`: not readable."""

    boards: tuple[Board, ...] = ()
    problem: str = ""
    xids: tuple[str, ...] | None = None


def boards() -> Boards:
    """Ask for the GPUs of this machine."""
    if shutil.which("nvidia-smi") is None:
        return Boards(problem="there is no nvidia-smi")
    problem = ""
    for word in (NEW, OLD):
        fields = (*FIELDS, *(f"{word}.{reason}" for reason in REASONS))
        lines, problem = _ask("gpu", fields)
        if not problem:
            rows, _ = _ask("remapped-rows", ROWS)  # not on every GPU
            return Boards(_visible(parsed(lines, rows)), xids=_xids())
    return Boards(problem=problem)


def _ask(what: str, fields: tuple[str, ...]) -> tuple[list[list[str]], str]:
    """The cells of each line, and what went wrong."""
    command = ["nvidia-smi", f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return [], f"nvidia-smi does not answer within {SECONDS:.0f} s"
    except OSError as error:
        return [], f"nvidia-smi cannot be run: {error.strerror}"
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or ["it does not say why"]
        return [], f"nvidia-smi ends with status {done.returncode}: {said[0]}"
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()], ""


def parsed(lines: list[list[str]], rows: list[list[str]]) -> list[Board]:
    """The boards from the lines of `FIELDS` and `REASONS`, and of remapped rows in the same order, where known."""
    found = []
    for number, (index, name, memory, used, ecc, *active) in enumerate(lines):
        slow = tuple(reason for reason, state in zip(REASONS, active, strict=True) if state == "Active")
        remapped = rows[number][1:] if len(rows) == len(lines) else ["No", "No"]
        pending, failed = (cell in ("Yes", "1") for cell in remapped)
        found.append(Board(_number(index), name, _number(memory), _number(used), _number(ecc), slow, pending, failed))
    return found


def _number(cell: str) -> int:
    """0 for `[N/A]`, which a GPU without ECC says."""
    return int(cell) if cell.isdigit() else 0


def _visible(every: list[Board]) -> tuple[Board, ...]:
    chosen = [word.strip() for word in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if word.strip()]
    if chosen and all(word.isdigit() for word in chosen):
        return tuple(board for board in every if str(board.index) in chosen)
    return tuple(every)


def _xids() -> tuple[str, ...] | None:
    """What the kernel's log has of NVIDIA's Xid errors since the machine started."""
    try:
        done = subprocess.run(["dmesg"], capture_output=True, text=True, errors="replace", timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return None
    return tuple(dict.fromkeys(f"Xid {number} of {place}" for place, number in XID.findall(done.stdout)))
