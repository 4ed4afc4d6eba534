import os
import sys
from pathlib import Path

import pytest
from rich.table import Table

from support import terminal


def test_a_table_in_a_pipe_is_wide(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("what", title="all")
    table.add_row("word " * 22)
    terminal.print_table(table)
    assert ("word " * 22).strip() in capsys.readouterr().out  # 109 columns, and the terminal's width is not asked


def test_a_status_line_writes_over_a_longer_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    line = terminal.StatusLine()
    line.say("part 10")
    line.say("done")
    line.end()
    assert capsys.readouterr().err == "\rpart 10\rdone   \n"


def test_a_status_in_a_file_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    line = terminal.StatusLine()
    line.say("first")
    line.say("second")
    line.end()
    assert capsys.readouterr().err == "first\n"


def test_a_closed_pipe_silences_and_is_no_error() -> None:
    ours, theirs = os.pipe()
    with open(theirs, "w") as pipe:
        stream = terminal.lasting(pipe)
        assert stream.write("heard\n") == 6
        stream.flush()
        assert os.read(ours, 10) == b"heard\n"
        os.close(ours)
        for _ in range(2):
            stream.write("nobody hears\n")
            stream.flush()
        print("nor this", file=pipe, flush=True)  # what others print there goes nowhere too


def test_what_an_encoding_lacks_is_replaced(tmp_path: Path) -> None:
    with open(tmp_path / "said", "w", encoding="ascii") as stream:
        terminal.lasting(stream).write("a▁b")
    assert (tmp_path / "said").read_text() == "a?b"


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("TERM", "dumb"), ("", "")])
def test_nothing_is_drawn_for_ci_or_without_a_cursor(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    ours, theirs = os.openpty()
    with open(ours, "rb"), open(theirs, "w") as stream:
        assert terminal.draws(stream)
        if name:
            monkeypatch.setenv(name, value)
            assert not terminal.draws(stream)
    with open(os.devnull, "w") as stream:
        assert not terminal.draws(stream)


def test_output_without_a_reader_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        with terminal.lasting_output():
            print("nobody hears")  # it is still kept back when the block ends
        print("nor this", flush=True)
