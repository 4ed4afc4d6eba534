"""A run whose reader goes: a pipe that is closed, a terminal that is lost."""

import json
import os
import pty
import signal
from pathlib import Path

from run import events
from run.metrics import read_steps
from support.errors import DONE, STOPPED
from tests.commands.running import Command, small, write_corpus


def test_a_run_goes_on_where_nobody_reads_what_it_prints(tmp_path: Path) -> None:
    """`stagecraft pretrain tiny | head -1`."""
    pipe, path = tmp_path / "pipe", tmp_path / "run"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    arguments = (*small(write_corpus(tmp_path / "corpus.jsonl")), "--max-steps", "3", "--run-dir", str(path))
    training = Command(tmp_path, "commands", "pretrain", "tiny", *arguments, out=str(pipe))
    training.wait_until(lambda: _reads(reader))
    os.close(reader)
    done = training.finish()
    assert (done.returncode, done.stderr) == (DONE, "")
    assert len(read_steps(path / "metrics.jsonl")) == 3 and (path / "report.json").exists()


def _reads(reader: int) -> bool:
    try:
        return bool(os.read(reader, 1))
    except BlockingIOError:
        return False


def test_a_run_saves_where_its_terminal_is_lost(tmp_path: Path) -> None:
    """The window is closed: what was the terminal answers with errors, and the shell sends SIGHUP."""
    path, (window, inside) = tmp_path / "run", pty.openpty()
    terminal = os.ttyname(inside)
    os.close(inside)
    arguments = (
        *small(write_corpus(tmp_path / "corpus.jsonl")),
        "schedule.train_tokens=512000",
        "--run-dir",
        str(path),
    )
    training = Command(tmp_path, "commands", "pretrain", "tiny", *arguments, out=terminal, err=terminal)
    training.wait_until(lambda: read_steps(path / "metrics.jsonl"))
    os.close(window)
    os.kill(training.pid, signal.SIGHUP)
    assert training.finish().returncode == STOPPED == json.loads((path / "status.json").read_text())["status"]
    (saved,) = [event["step"] for event in events.read(path) if event["event"] == "saved"][-1:]
    assert (
        saved == read_steps(path / "metrics.jsonl")[-1]["step"]
        and (path / "checkpoints" / f"step-{saved:08d}").exists()
    )
