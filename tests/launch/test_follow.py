import os
import re
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from launch import follow
from tests.patience import wait_until
from tests.run.happened import BEGAN, event, started, step, write, write_run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_lines_come_from_the_files_and_all_before_what_follows(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(path, [event("said", 0.0, line="of an earlier start")])
    with follow.following(path, BEGAN) as output:
        assert output is None  # the ranks print where we do
        write(path, [*started(), step(10, 12.0), step(100, 13.0), event("saved", 14.0, path="x/step-00000100")])
    print("report")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        f"run: {path}",
        "step     10/100  loss 7.800  512 tokens/s",
        "step    100/100  loss 6.000  512 tokens/s",
        "saved x/step-00000100",
        "report",
    ]


def test_a_run_that_starts_again_is_starting_from_the_first_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files tell of its crash until all was checked."""
    write(path, [*started(), step(1, 12.0), event("end", 13.0, status=1, reason="killed")])
    terminal = Terminal(monkeypatch)
    with follow.following(path, time.time()):
        wait_until(lambda: b"starting" in terminal.read, os.getpid())
    text = terminal.text()
    assert "starting" in text and "crashed" not in text and "killed" not in text


def test_what_cannot_be_printed_stops_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with follow.following(path, BEGAN):
            write(path, started())
        print("report", flush=True)


class Terminal:
    """A terminal: a thread reads what is printed there. Standard output and standard error are it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ours, theirs = os.openpty()
        self.stream = open(theirs, "w")  # noqa: SIM115  # closed below
        self.read = b""
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, self.stream)
        for name, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "40", "NO_COLOR": "1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("CI", raising=False)
        self.thread = threading.Thread(target=self._read, args=(ours,))
        self.thread.start()

    def _read(self, descriptor: int) -> None:
        with open(descriptor, "rb", buffering=0) as ours, suppress(OSError):
            while piece := ours.read(4096):
                self.read += piece

    def text(self) -> str:
        """All that was printed, without what moves the cursor and sets type; nothing can be printed any more."""
        self.stream.close()
        self.thread.join()
        return re.sub(r"\x1b\[[?\d;]*[hlmAK]", "", self.read.decode()).rstrip()


def test_a_terminal_gets_a_panel_and_the_ranks_words_above_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    with follow.following(path, BEGAN) as output:
        assert output is not None
        os.write(output, b"\x1b[31mwarning\x1b[0m of a rank\ntorn")
        write(path, [*started(), *(step(n, 10.0 + n) for n in range(1, 31)), event("said", 20.0, line="slow: bf16")])
        wait_until(lambda: b"30/100" in terminal.read, os.getpid())
        os.write(output, b" line\n")
    print("report")
    assert b"\x1b[31m" not in terminal.read  # NO_COLOR
    text = terminal.text()
    for words in ("warning of a rank", "torn line", "slow: bf16", "30/100", "╭─ gpt_tiny  training"):
        assert words in text, words
    assert "step     30/100" not in text and text.endswith("report")


def test_watching_a_run_that_is_over_shows_its_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, [*started(), step(1, 12.0), event("end", 13.0, status=75, reason="stopped after step 1")])
    terminal = Terminal(monkeypatch)
    follow.watch(path)
    text = terminal.text()
    assert "stopped" in text and "stopped after step 1" in text and text.endswith("╯")


def test_watching_without_a_terminal_tells_new_lines_until_the_end(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, [*started(), step(10, 12.0)])
    more = iter([[step(20, 14.0)], [event("saved", 15.0, path="x/step-00000020")], [event("end", 16.0, status=0)]])
    monkeypatch.setattr(time, "sleep", lambda seconds: write(path, next(more)))
    follow.watch(path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["step     20/100  loss 7.600  512 tokens/s", "saved x/step-00000020"]
    assert "finished" in lines[2] and lines[-1].startswith("╰")


def test_ctrl_c_leaves_the_run_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupted)
    write(path, started())
    follow.watch(path)
