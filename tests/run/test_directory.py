"""What a run directory says where its files are gone, damaged or in use."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from recipes.registry import load
from run.directory import Run, created, read_data, read_recipe
from run.metrics import read_metrics, read_steps, truncate_metrics
from run.request import Request, plan_run
from support.errors import WRONG_INPUT, UserError
from support.files import locked
from tests.run import directories


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe{", "is not JSON: 'utf-8' codec"),
        (b"", "is not JSON: Expecting value"),
        (b"[1]", "must hold a JSON object"),
        (None, ""),
    ],
)
@pytest.mark.parametrize(("name", "read"), [("recipe.json", read_recipe), ("data.json", read_data)])
def test_a_damaged_file_is_one_line(
    name: str, read: Callable[[Path], Any], content: bytes | None, words: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        read(tmp_path)
    assert name in str(caught.value)


def test_data_without_parts_were_changed(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(UserError, match="was changed; restore it, or start a new run"):
        read_data(tmp_path)


def test_metrics_keep_what_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\x00\n[1]\n{}\n{"step": 2}\n{"step": 3}\n{"ste')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 3]
    truncate_metrics(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_the_last_evaluation_is_no_step_and_is_taken_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": null}\n{"step": 2, "loss": 1.0}\n{"step": 2, "final_validation_loss": 1.5}\n')
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 2]
    assert [line["loss"] for line in read_steps(path)] == [None, 1.0]
    truncate_metrics(path, 2)
    assert [line["loss"] for line in read_metrics(path)] == [None, 1.0]


def run_in(path: Path) -> Run:
    return cast(Run, SimpleNamespace(path=path, resume=False))


def test_two_processes_do_not_train_in_one_directory(tmp_path: Path) -> None:
    """The second writes nothing: not while the first trains, and not where it has trained since the second began."""
    words = "another process trains in .*; wait for its end, or give another --run-dir"
    with locked(tmp_path / ".lock"), pytest.raises(UserError, match=words), created(run_in(tmp_path), cast(Any, None)):
        pass
    (tmp_path / "recipe.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    words = "already holds a run; add --resume"
    with pytest.raises(UserError, match=words), created(run_in(tmp_path), cast(Any, None)):
        pass
    assert {file.name for file in tmp_path.iterdir()} == {".lock", "recipe.json", "metrics.jsonl"}


def test_a_run_whose_metrics_are_lost_is_not_begun_anew(tmp_path: Path) -> None:
    path = directories.run(tmp_path, "x")
    directories.checkpoint(path, 3)
    (path / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        plan_run(load("tiny"), Request(run_dir=str(path)), 2)


def test_a_file_in_the_way_of_a_run_directory_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    request = Request(run_dir=str(tmp_path / "file" / "runs" / "x"))
    with pytest.raises(UserError, match="/file is a file; give a directory") as caught:
        plan_run(load("tiny"), request, 2)
    assert caught.value.status == WRONG_INPUT
