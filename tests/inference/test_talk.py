"""Talking with a run: through a pipe, with a folder, and on a real terminal."""

import io
import json
import os
import signal
from pathlib import Path

import pytest

from commands import chat
from data.tokens import tokenisers
from inference import export, postprocess
from support.errors import DONE, STOPPED, WRONG_INPUT
from tests.inference.conftest import write_untrained
from tests.inference.test_chat import TEMPLATE
from tests.window import Window

Outcome = tuple[int, str, str]
TRANSCRIPT = "no chat template: it goes on from a transcript (User: …, Assistant: …), as a base model can\n"


@pytest.fixture
def talked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Calls the command with lines on its standard input; the status, and what it prints."""

    def call(said: str | bytes, *flags: str, path: Path = tmp_path) -> Outcome:
        given = said if isinstance(said, bytes) else said.encode()
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(given)))
        monkeypatch.setattr("sys.argv", ["chat", "--run", str(path), "--max-new-tokens", "9", *flags])
        try:
            chat.main()
        except SystemExit as end:
            return (end.code, *capsys.readouterr())  # type: ignore[return-value]
        return (DONE, *capsys.readouterr())

    write_untrained(tmp_path, "seq_length=64")
    return call


def test_each_line_of_a_pipe_is_a_message(talked) -> None:  # type: ignore[no-untyped-def]
    lines = "the cat\n\n the rat\n/new\nthe cat\nthe rat\n/quit\nmore\n"
    status, out, error = talked(lines, "--json")
    value = json.loads(out)
    turns = value.pop("turns")
    assert (status, value) == (DONE, {"template": False, "checkpoint": 7, "passed_over": []})
    assert [turn["user"] for turn in turns] == ["the cat", "the rat"] * 2
    assert [turn["conversation"] for turn in turns] == [1, 1, 2, 2]
    assert [turn["forgotten"] for turn in turns] == [0, 1, 0, 1] and error.count("the context is full: the oldest") == 2
    assert turns[0]["assistant"] == turns[2]["assistant"] and turns[1]["assistant"] == turns[3]["assistant"]
    plain = talked(lines)
    assert plain[:2] == (DONE, "".join(f"{turn['assistant']}\n" for turn in turns)) and plain[2].startswith(TRANSCRIPT)
    assert json.loads(talked("the cat\n", "--seed", "5", "--json")[1])["turns"][0] != turns[0]
    assert talked("") == (DONE, "", TRANSCRIPT)


def test_an_answer_is_tidied_before_it_is_shown(talked, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(postprocess.STEPS, "spaces", lambda text: f"[{len(text) > 0}]")
    assert talked("the cat\nthe rat\n", "--tidy", "spaces")[1] == "[True]\n[True]\n"
    assert json.loads(talked("the cat\n", "--json", "--tidy", "spaces")[1])["turns"][0]["assistant"] == "[True]"


def test_a_folder_with_a_template_talks_by_it(talked, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tokeniser = export.load_tokeniser(tmp_path)
    tokeniser.chat_template = TEMPLATE
    tokenisers.save(tokeniser, tmp_path / "tokeniser")
    export.export(tmp_path, tmp_path / "export")
    greedy = ("--greedy", "--json", "--system", "cats")
    ours, theirs = (talked("cat\nrat\n", *greedy, path=path) for path in (tmp_path, tmp_path / "export"))
    assert ours[0] == theirs[0] == DONE and ours[2] == theirs[2] and "forgotten" in ours[2]
    assert "no chat template" not in ours[2] and "longer than" not in ours[2]  # transformers would warn
    ours, theirs = json.loads(ours[1]), json.loads(theirs[1])
    assert ours["template"] and ours["turns"] == theirs["turns"] and theirs["checkpoint"] is None
    assert tokenisers.load(str(tmp_path / "export")).chat_template == TEMPLATE  # it goes along with an export


@pytest.mark.parametrize(("said", "flags", "words"), [
    ("/new\n/newer\n", [], "there is no /newer; /help lists"),
    (b"a\n\xff\n", [], "line 2 of standard input is not UTF-8"),
    ("a" * 99, [], "the message makes "), ("a", ["--samples", "2"], "leave --samples and --best-of out"),
    ("a", ["--best-of", "1"], "leave --samples and --best-of out"), ("a", ["--max-new-tokens", "64"], "leaves no room"),
    ("a", ["--top-p", "2"], "--top-p must be in"), ("a", ["--checkpoint", "9"], "9"),
], ids=["command", "utf8", "long", "samples", "best", "room", "range", "checkpoint"])  # fmt: skip
def test_what_is_wrong_is_one_line(said: str | bytes, flags: list[str], words: str, talked) -> None:  # type: ignore[no-untyped-def]
    status, _, error = talked(said, *flags)
    line = error.removeprefix(TRANSCRIPT)
    assert status == WRONG_INPUT and line.startswith("error: ") and words in line and line.count("\n") == 1


def test_ctrl_c_stops_an_answer_and_at_the_prompt_ends(tmp_path: Path) -> None:
    write_untrained(tmp_path, "seq_length=4096")
    with Window("chat", "--run", str(tmp_path), "--greedy", "--max-new-tokens", "4000") as window:
        shown = window.until("\r\n> ")
        assert "context 4,096 tokens; see /help" in shown and "no chat template" in shown
        window.type("/help\n")
        assert "Ctrl-C stops an answer" in window.until("\r\n> ")
        window.type("/nothing\n")
        assert "error: there is no /nothing; /help lists" in window.until("\r\n> ")
        window.type("the cat\n")
        window.until("the cat\r\n")
        answer = window.until("a")  # some of it
        window.type("\x03")
        answer += window.until("\r\n> ")
        assert "Traceback" not in answer and "error" not in answer
        assert len(answer) < 2700  # of 5,400 letters
        window.type("\x03")
        status, rest = window.end()
    assert (status, rest.replace("^C", "").strip()) == (DONE, "")


def test_sigterm_ends_it_as_any_command(tmp_path: Path) -> None:
    write_untrained(tmp_path)
    with Window("chat", "--run", str(tmp_path)) as window:
        window.until("> ")
        os.kill(window.pid, signal.SIGTERM)
        status, rest = window.end()
    assert status == STOPPED and "error: stopped" in rest and "Traceback" not in rest
