"""Which run a text means, and which run is the newest."""

import json
import os
import shutil
from pathlib import Path

import pytest

from run import record
from run.select import find, latest, newest
from support.errors import UserError
from tests.run import directories
from tests.run.directories import NOON


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def test_a_run_is_written_down(tmp_path: Path) -> None:
    parent = record.Parent("0" * 16, "runs/x", 400, 6400, ("optimizer.lr 0.003 -> 0.001",))
    first = record.write(tmp_path, "mine", parent)
    assert record.read(tmp_path) == first
    assert (len(first.id), first.name, first.parent) == (16, "mine", parent) and int(first.id, 16) >= 0
    assert set(json.loads((tmp_path / "run.json").read_text())) == {"id", "name", "created", "parent"}


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"id": 1}', '{"id": "a", "name": null, "created": "x"}',
    '{"id": "a", "name": null, "created": 1, "parent": {"id": 3}}', "\xff"])  # fmt: skip
def test_a_foreign_record_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content, encoding="latin1")
    assert record.read(tmp_path) is None


def test_a_run_by_any_of_its_words(root: Path) -> None:
    mine = directories.run(root, "20270101-100000", name="mine", id="ab" * 8)
    übung = directories.run(root, "20270102-100000", name="übung", id="ac" * 8)
    for text in ("mine", "mi", "20270101-100000", "20270101", "ab" * 8, "aba", str(mine), os.path.relpath(mine)):
        assert find(text).resolve() == mine.resolve(), text
    assert find("u\u0308bung") == find("ü") == übung  # the same letter in two parts
    assert find("newest:tiny") == find("newest") == find(None) == newest("gpt_tiny")
    with pytest.raises(UserError, match=r"'2027' means .*20270101-100000, .*20270102-100000; give one of these"):
        find("2027")
    with pytest.raises(UserError, match=r"'mien' is not a run directory, nor the name of a run below .*mean mine"):
        find("mien")
    for nothing in ("", " "):
        with pytest.raises(UserError, match="an empty text"):
            find(nothing)
    with pytest.raises(UserError, match=r"there is no run below .*gpt_125m"):
        find("newest:125m")
    with pytest.raises(UserError, match="there is no recipe '126m'; did you mean"):
        find("newest:126m")


def test_a_whole_name_goes_before_a_beginning_and_a_run_s_directory_before_a_name(root: Path) -> None:
    short = directories.run(root, "1", name="a")
    directories.run(root, "2", name="ab")
    assert find("a") == short
    Path("ab").mkdir()  # a folder of that name that is no run
    assert find("ab").name == "2"
    shutil.copy(short / "recipe.json", "ab")
    assert find("ab") == Path("ab")
    assert find("../x") == Path("../x") and find(".") == Path()  # paths, of which the reader says what they lack


def test_a_start_that_failed_before_its_first_step_is_not_the_newest(root: Path) -> None:
    finished = directories.run(root, "finished", began=NOON)
    failed = directories.run(root, "failed", steps=0, began=NOON + 100, status=1)
    assert find(None) == finished and find("failed") == failed == latest()
    (failed / "metrics.jsonl").write_text("torn")
    assert find(None) == finished


def test_of_several_runs_of_a_name_starts_that_came_to_nothing_do_not_count(root: Path) -> None:
    first = directories.run(root, "1", steps=0, name="mine", began=NOON)
    last = directories.run(root, "2", steps=0, name="mine", began=NOON + 1)
    assert find("mine") == last
    directories.lines(first / "metrics.jsonl", directories.metrics(1))
    assert find("mine") == find("mi") == first


def test_a_resume_counts_from_its_first_step_on(root: Path) -> None:
    old = directories.run(root, "old", began=NOON, status=75)
    new = directories.run(root, "new", began=NOON + 100)
    directories.start(old, NOON + 200)
    assert newest() == new  # it failed while it loaded
    directories.lines(old / "metrics.jsonl", [{"step": 4, "time": NOON + 300}])
    assert newest() == old
    directories.start(new, NOON + 400)
    (new / "status.json").write_text('{"status": 0, "reason": ""}')
    assert newest() == new  # nothing was left to do


def test_the_file_system_s_times_do_not_count(root: Path) -> None:
    old, new = directories.run(root, "old", began=NOON), directories.run(root, "new", began=NOON + 100)
    for file in old.iterdir():
        os.utime(file, (NOON + 10_000, NOON + 10_000))
    (new / "events.jsonl").unlink()  # a run of before there were any
    assert newest() == new


def test_a_run_without_times_is_as_new_as_its_last_start(root: Path) -> None:
    """As runs were written before steps had a time, starts an event and runs an id."""
    old, new = directories.run(root, "old", began=NOON), directories.run(root, "new", began=NOON + 100)
    (old / "run.json").unlink(), (old / "events.jsonl").unlink()
    (old / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    assert newest() == new and find("old") == old
    directories.start(old, NOON + 200)
    (old / "events.jsonl").unlink()
    assert newest() == old


def test_foreign_folders_are_passed_over(root: Path) -> None:
    good = directories.run(root, "good")
    for name in ("empty", "torn", "lists"):
        (root / "gpt_tiny" / name).mkdir()
    (root / "data" / "shakespeare").mkdir(parents=True)
    for name in ("recipe.json", "run.json", "metrics.jsonl", "starts.jsonl", "events.jsonl", "status.json"):
        (root / "gpt_tiny" / "torn" / name).write_bytes(b'{"step": 3, "st\xff')
        (root / "gpt_tiny" / "lists" / name).write_text('{"step": 3, "time": [], "event": "start"}\n[]\n')
    (root / "gpt_tiny" / "lists" / "recipe.json").unlink()
    assert newest() == good
