"""A model that is cut over ranks writes, by the command, what it writes in one piece."""

import json
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from commands import generate
from inference import export
from inference.ranks import Loading
from support import json_lines
from tests.distributed import run_ranks


def printed(*flags: str) -> str:
    """What the command prints, on the rank that calls this."""
    sys.argv = ["generate", *flags]
    with redirect_stdout(StringIO()) as out:
        generate.main()
    return out.getvalue()


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (2, 2)])
def test_a_model_in_parts_writes_what_it_writes_whole(
    tensor: int, pipeline: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [])
    cut = ("--tensor", str(tensor), "--pipeline", str(pipeline))
    flags = ("--run", str(run), "--max-new-tokens", "9", "--samples", "3", "--stop", "o", "--seed", "4")
    first, *others = run_ranks(tensor * pipeline, printed, *flags, *cut, "--prompt", "the cat")
    assert first == printed(*flags, "--prompt", "the cat") and first.startswith("--- sample 1 (seed 4)\nthe cat")
    assert others == [""] * len(others)


def test_the_first_of_several_ranks_writes_the_rows(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [])
    prompts, one, two = (run.parent / name for name in ("prompts.txt", "one.jsonl", "two.jsonl"))
    prompts.write_text("the cat\nthe rat\nx\n")
    flags = ("--run", str(run), "--prompts", str(prompts), "--best-of", "2", "--max-new-tokens", "5", "--json")
    values, other = run_ranks(2, printed, *flags, "--out", str(two), "--tensor", "2")
    assert json.loads(values)["written"] == 3 and other == ""
    printed(*flags, "--out", str(one))
    for mine, theirs in zip(json_lines.read(one), json_lines.read(two), strict=True):
        assert mine.pop("scores") == pytest.approx(theirs.pop("scores"), rel=1e-5) and mine == theirs
    lines = two.read_bytes().splitlines(keepends=True)
    two.write_bytes(b"".join(lines[:2]))
    assert json.loads(run_ranks(2, printed, *flags, "--out", str(two), "--tensor", "2")[0])["kept"] == 2
    assert two.read_bytes() == b"".join(lines)


def test_a_precision_is_that_of_the_weights(run: Path) -> None:
    from inference.generate import load

    for precision in ("fp32", "bf16"):
        writer, _ = load(run, Loading(precision=precision))
        assert {str(value.dtype) for value in writer.stage.parameters()} == {f"torch.{LONG[precision]}"}  # type: ignore[attr-defined]
    flags = ("--run", str(run), "--prompt", "the cat", "--precision", "bf16", "--json")
    assert len(json.loads(printed(*flags))["samples"]) == 1


LONG = {"fp32": "float32", "bf16": "bfloat16"}


@pytest.mark.parametrize(("started", "tensor", "pipeline", "words"), [
    (None, 2, 2, "--tensor 2 x --pipeline 2 are 4 ranks, but 1 were started; start them with torchrun"),
    ("4", 2, 1, "--tensor 2 x --pipeline 1 are 2 ranks, but 4 were started"),
    ("1", 0, 1, "--tensor must be at least 1"),
])  # fmt: skip
def test_as_many_ranks_must_be_started(
    started: str | None, tensor: int, pipeline: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if started:
        monkeypatch.setenv("WORLD_SIZE", started)
    with pytest.raises(ValueError, match=words):
        Loading(tensor=tensor, pipeline=pipeline).check()


@pytest.mark.parametrize("folder", [False, True])
def test_copies_of_a_model_share_the_prompts(folder: bool, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two copies of two tensor ranks each, or of a folder: the rows of one rank, whoever wrote some of them before."""
    monkeypatch.setattr("sys.argv", [])
    prompts, one, four = (run.parent / name for name in ("prompts.txt", "one.jsonl", "four.jsonl"))
    prompts.write_text("".join(f"the cat {number}\n" for number in range(7)))
    if folder:
        export.export(run, run.parent / "exported")
    flags = ("--run", str(run.parent / "exported" if folder else run), "--prompts", str(prompts), "--json")
    flags += ("--max-new-tokens", "5", "--samples", "2")
    world, cut = (2, ()) if folder else (4, ("--tensor", "2"))
    values, *others = run_ranks(world, printed, *flags, *cut, "--out", str(four))
    assert json.loads(values)["written"] == 7 and others == [""] * (world - 1)
    printed(*flags, "--out", str(one))
    whole = sorted(one.read_bytes().splitlines())
    assert sorted(four.read_bytes().splitlines()) == whole
    four.write_bytes(b"".join(four.read_bytes().splitlines(keepends=True)[:3]) + b'{"line": 5, "pro')
    assert json.loads(printed(*flags, "--out", str(four)))["kept"] == 3
    assert sorted(four.read_bytes().splitlines()) == whole


def test_ranks_that_do_not_divide_into_copies_are_one_line() -> None:
    assert Loading(tensor=2, pipeline=2).over(12).replicas == 3 and Loading().over(1) == Loading()
    with pytest.raises(
        ValueError, match="are 4 ranks a copy of the model, which do not divide 6; give --ranks 4 or a multiple"
    ):
        Loading(tensor=2, pipeline=2).over(6)
