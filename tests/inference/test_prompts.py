"""A file of prompts to JSON lines: texts as one by one, rows that are done stay, what is wrong is one line."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from commands import generate as command
from data.corpus import corpora
from data.corpus.document import read_pieces
from data.corpus.examples import Form
from inference import export, generate, prompts
from inference.ranks import Loading
from inference.sampling import Sampling
from support import json_lines
from support.errors import WRONG_INPUT
from tests.commands.running import Command, succeed

PROMPTS = ["the cat", "the rat sat", "and more", "x", "the cat sat on the mat"]
SPLITS = {"the cat": "train", "the rat sat": "validation", "and more": "test"}
HOW = Sampling(samples=2, max_new_tokens=12, seed=5)


def write(run: Path, out: Path, how: Sampling = HOW, **more: Any) -> Any:
    settings = {"loading": Loading(), "special": False, "by": None} | more
    return prompts.write_all(run, run.parent / "prompts.jsonl", out, how, **settings)


@pytest.fixture
def given(run: Path) -> Path:
    lines = [json.dumps({"prompt": text, "id": f"q{number}"}) for number, text in enumerate(PROMPTS)]
    (run.parent / "prompts.jsonl").write_text("\n\n".join(lines) + "\n")
    return run


def test_each_row_is_what_its_prompt_gives_alone(given: Path) -> None:
    out = given.parent / "rows" / "out.jsonl"
    values = write(given, out)
    rows = {row["line"]: row for row in json_lines.read(out)}
    assert sorted(rows) == [1, 3, 5, 7, 9] and values["written"] == values["rows"] == 5 and values["kept"] == 0
    for number, text in enumerate(PROMPTS):
        row = rows[2 * number + 1]
        assert row["samples"] == generate.generate(given, text, HOW)["samples"]
        assert row["prompt"] == text and row["more"] == {"id": f"q{number}"}
        assert text + row["completion"] == row["samples"][0]


def test_what_is_written_is_a_corpus_whose_rows_keep_their_fields_and_split(run: Path) -> None:
    given = [{"prompt": text, "id": number, "split": split} for number, (text, split) in enumerate(SPLITS.items())]
    (run.parent / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
    out = run.parent / "out.jsonl"
    write(run, out, Sampling(greedy=True, max_new_tokens=12))
    written = {row["prompt"]: row["completion"] for row in json_lines.read(out)}
    for template, wanted in (
        ("auto", "{prompt}{completion}"),
        ("{completion} is of {more.id}", "{completion} is of {id}"),
    ):
        found = {each.text: each.split for each in read_pieces(corpora.pieces(str(out), Form(template, 64)))}
        assert found == {wanted.format(**row, completion=written[str(row["prompt"])]): row["split"] for row in given}


def test_a_row_that_is_done_is_not_done_again(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kill leaves it: two lines and the beginning of a third."""
    out = given.parent / "out.jsonl"
    write(given, out)
    whole = sorted(out.read_bytes().splitlines())
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(lines[0] + lines[1] + lines[2][:20])
    asked: list[int] = []
    kept = generate.load

    def noted(*args: Any) -> Any:
        writer, checkpoint = kept(*args)
        inner = writer.write
        writer.write = lambda requests, *more: asked.extend(r.number for r in requests) or inner(requests, *more)
        return writer, checkpoint

    monkeypatch.setattr(prompts, "load", noted)
    values = write(given, out)
    assert (values["kept"], values["written"], len(asked)) == (2, 3, 6)
    assert sorted(out.read_bytes().splitlines()) == whole
    assert write(given, out)["written"] == 0 and sorted(out.read_bytes().splitlines()) == whole


def test_a_killed_command_goes_on_where_it_was(run: Path, tmp_path: Path) -> None:
    """The real command, killed when the first rows are there; the rows of an unbroken one come out."""
    file, out, whole = (tmp_path / name for name in ("many.txt", "out.jsonl", "whole.jsonl"))
    file.write_text("".join(f"the cat {number}\n" for number in range(150)))
    flags = ("commands", "generate", "--run", str(run), "--prompts", str(file), "--samples", "4", "--json")
    killed = Command(tmp_path, *flags, "--out", str(out))
    killed.wait_until(lambda: out.exists() and out.read_bytes().count(b"\n") >= 3)
    with suppress(ProcessLookupError):  # a machine may be so slow to look that it has ended by itself
        os.kill(killed.pid, signal.SIGKILL)
    assert killed.finish().returncode in (-signal.SIGKILL, 0)
    there = out.read_bytes().count(b"\n")
    values = json.loads(succeed(tmp_path, *flags, "--out", str(out)))
    assert 3 <= values["kept"] == there and values["written"] == 150 - there
    succeed(tmp_path, *flags, "--out", str(whole))
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())


def test_a_folder_writes_rows_too(given: Path) -> None:
    export.export(given, given.parent / "exported")
    values = write(given.parent / "exported", given.parent / "out.jsonl")
    assert values["written"] == 5 and values["checkpoint"] is None
    row = json_lines.read(given.parent / "out.jsonl")[1]
    assert row["samples"] == generate.generate(given.parent / "exported", PROMPTS[1], HOW)["samples"]


def test_what_is_something_else_is_left_alone(given: Path) -> None:
    out = given.parent / "out.jsonl"
    for content in (b"my thesis", b"my thesis\n", b'{"line": 1}\n', b'{"line": 1, "prompt": "the cat"}\n'):
        out.write_bytes(content)
        with pytest.raises(ValueError, match="holds something else than rows of these prompts and settings"):
            write(given, out)
        assert out.read_bytes() == content
    out.unlink()
    write(given, out)
    content = out.read_bytes()
    for more in ({"how": Sampling(samples=2, max_new_tokens=12, seed=6)}, {"by": "mutual"}, {"special": True}):
        with pytest.raises(ValueError, match="holds something else"):
            write(given, out, **more)
    (given.parent / "prompts.jsonl").write_text('{"prompt": "another"}\n')
    with pytest.raises(ValueError, match="holds something else"):
        write(given, out)
    assert out.read_bytes() == content


def test_rows_are_ranked(given: Path) -> None:
    out = given.parent / "out.jsonl"
    write(given, out, by="likelihood")
    for row in json_lines.read(out):
        alone = generate.generate(given, row["prompt"], HOW, by="likelihood")
        assert row["samples"] == alone["samples"] and row["scores"] == pytest.approx(alone["scores"], abs=1e-5)


BAD = [
    ("a.txt", None, "a.txt does not exist; give a file of prompts"), ("a.txt", b" \n\n", "a.txt holds no prompts"),
    ("a.txt", b"the\nK\xfcss\n", "a.txt is not UTF-8 at byte 5; convert it"),
    ("a.jsonl", b'{"prompt": "a"}\n{"prompt"\n', "a.jsonl, line 2: not JSON: "),
    ("a.jsonl", b'{"text": "a"}\n', 'a.jsonl, line 1: no text "prompt"'),
    ("a.jsonl", b'"a"\n', 'a.jsonl, line 1: no text "prompt"'),
    ("a.jsonl", b'{"prompt": 3}\n', 'a.jsonl, line 1: no text "prompt"'),
    ("a.txt", b"the\n" + b"cat " * 99 + b"\n", "a.txt, line 2: the prompt has "), (".", None, " is a directory"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "words"), BAD, ids=[words for _, _, words in BAD])
def test_a_bad_file_is_one_line_and_writes_nothing(
    name: str,
    content: bytes | None,
    words: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file, out = run.parent / name, run.parent / "out.jsonl"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setattr("sys.argv", ["generate", "--run", str(run), "--prompts", str(file), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        command.main()
    error = capsys.readouterr().err
    assert ended.value.code == WRONG_INPUT and error.startswith("error: --prompts") and error.count("\n") == 1
    assert words in error and not out.exists()


@pytest.mark.parametrize("flags", [["--prompts", "a"], ["--prompt", "x", "--out", "a"]], ids=" ".join)
def test_prompts_and_out_belong_together(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["generate", "--run", "x", *flags])
    with pytest.raises(SystemExit):
        command.main()
    assert "--prompts FILE and --out FILE belong together" in capsys.readouterr().err
