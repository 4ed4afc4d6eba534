import sys

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
