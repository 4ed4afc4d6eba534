"""What `clean-runs` removes, and what it never touches."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from commands import clean_runs
from run.cleaning import leftovers, remove
from support.errors import UserError
from support.files import locked
from tests.run import directories


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def path(root: Path) -> Path:
    """A run with three whole checkpoints and a damaged one after them."""
    path = directories.run(root, "x", name="mine")
    for step in (10, 20, 30):
        directories.checkpoint(path, step)
    directories.checkpoint(path, 40, damaged=True)
    return path


def names(root: Path, **flags: float) -> list[str]:
    return [str(each.path.relative_to(root / "gpt_tiny")) for each in leftovers([], **flags)]  # type: ignore[arg-type]


def test_checkpoints_before_the_newest_whole_one_can_go(
    path: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert names(root) == ["x/checkpoints/step-00000020", "x/checkpoints/step-00000010"]
    assert names(root, keep=2) == ["x/checkpoints/step-00000010"] and names(root, keep=3) == []
    remove(leftovers([path]))
    assert sorted(file.name for file in (path / "checkpoints").iterdir()) == ["step-00000030", "step-00000040"]
    assert names(root) == []
    monkeypatch.setattr("sys.argv", ["clean-runs"])
    clean_runs.main()  # asks nobody
    assert capsys.readouterr().out == "there is nothing to remove\n"


def test_where_all_are_damaged_none_goes(root: Path) -> None:
    path = directories.run(root, "x")
    for step in (10, 20):
        directories.checkpoint(path, step, damaged=True)
    assert names(root) == []


def test_another_run_s_checkpoint_does_not_count(root: Path) -> None:
    path, other = directories.run(root, "own"), directories.run(root, "other")
    directories.checkpoint(path, 2)
    directories.checkpoint(other, 9).rename(path / "checkpoints" / "step-00000009")
    assert leftovers([path]) == []


def test_a_run_that_goes_on_is_not_touched(path: Path, root: Path) -> None:
    found = leftovers([])
    with locked(path / ".lock"):
        assert names(root) == []
        with pytest.raises(UserError, match="was started meanwhile"):
            remove(found)
    assert len(list((path / "checkpoints").iterdir())) == 4


def test_a_branch_keeps_its_parent_s_checkpoint_until_it_has_its_own(path: Path, root: Path) -> None:
    parent = {"id": "1" * 16, "path": str(path), "step": 20, "consumed_samples": 320, "changes": [], "data_from": 0}
    twig = directories.run(root, "twig", parent=parent)
    assert names(root) == ["x/checkpoints/step-00000010"]
    directories.checkpoint(twig, 25)
    assert names(root) == ["x/checkpoints/step-00000020", "x/checkpoints/step-00000010"]


def test_starts_that_came_to_nothing_and_files_that_were_not_finished_can_go(root: Path) -> None:
    directories.run(root, "never", steps=0, status=1)
    torn = directories.run(root, "torn")
    (torn / "checkpoints" / "step-00000050.partial").mkdir(parents=True)
    (torn / ".report.json.host-1.partial").write_text("x")
    saved = directories.run(root, "saved", steps=0)  # somebody removed its metrics
    directories.checkpoint(saved, 10)
    (root / "gpt_tiny" / "foreign").mkdir()
    (root / "gpt_tiny" / "foreign" / "recipe.json").write_text("thesis")
    found = leftovers([])
    assert names(root) == ["never", "torn/.report.json.host-1.partial", "torn/checkpoints/step-00000050.partial"]
    assert all(each.size for each in found if each.path.name != "step-00000050.partial")
    remove(found)
    assert {folder.name for folder in (root / "gpt_tiny").iterdir()} == {"torn", "saved", "foreign"}
    assert not list(torn.rglob("*.partial")) and (torn / "metrics.jsonl").exists()


def test_a_start_that_came_to_something_meanwhile_stays(root: Path) -> None:
    path = directories.run(root, "x", steps=0)
    found = leftovers([])
    directories.lines(path / "metrics.jsonl", directories.metrics(1))
    remove(found)
    assert (path / "recipe.json").exists()


def test_only_old_runs_or_those_that_are_named(path: Path, root: Path) -> None:
    new = directories.run(root, "new", began=time.time() - 3600, status=75)
    directories.checkpoint(new, 10), directories.checkpoint(new, 20)
    assert len(names(root)) == 3 and names(root, older=0.5) == names(root)[1:]
    assert [each.run for each in leftovers([new])] == [new]
    for flags, words in (
        ({"keep": 0}, "--keep is 0"),
        ({"older": -1.0}, "--older is -1"),
        ({}, "is not a run directory"),
    ):
        with pytest.raises(UserError, match=words):
            leftovers([] if flags else [root], **flags)  # type: ignore[arg-type]


def test_it_asks_and_without_a_terminal_needs_yes(
    path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def called(*flags: str) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["clean-runs", "mine", *flags])
        try:
            clean_runs.main()
        except SystemExit as end:
            assert end.code == 2
        return capfd.readouterr()

    whole = len(list((path / "checkpoints").iterdir()))
    monkeypatch.setattr("sys.stdin", None)
    out, err = called()
    first = out.splitlines()[0]
    assert first.endswith(f"{path / 'checkpoints' / 'step-00000020'}  (an older checkpoint)") and " kB  " in first
    assert err == "error: nothing was removed: here is nobody to ask; add --yes\n"
    assert not json.loads(called("--json")[0])["removed"]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: "n")
    called()
    assert len(list((path / "checkpoints").iterdir())) == whole
    monkeypatch.setattr("builtins.input", lambda question: "y")
    called()
    assert len(list((path / "checkpoints").iterdir())) == whole - 2
