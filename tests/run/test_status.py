"""How a run is: that it goes on, or how it ended."""

import json
from pathlib import Path

import pytest

from run.status import status_of
from support.files import locked
from tests.run import directories


@pytest.mark.parametrize(("steps", "status", "word"), [
    (3, 0, "finished"), (3, 75, "stopped"), (3, 3, "weights lost"), (3, 2, "refused"), (3, 1, "crashed"),
    (3, None, "crashed"), (0, 2, "never started"), (0, None, "never started"),
])  # fmt: skip
def test_how_a_run_is(steps: int, status: int | None, word: str, tmp_path: Path) -> None:
    assert status_of(directories.run(tmp_path, "x", steps, status=status)) == word


def test_a_run_is_running_while_its_lock_is_held_and_asking_disturbs_nobody(tmp_path: Path) -> None:
    path = directories.run(tmp_path, "x", status=None)
    with locked(path / ".lock"):
        assert status_of(path) == "running"
    assert status_of(path) == "crashed"
    with locked(path / ".lock", "another process trains"):  # nobody holds it after the question
        pass


def test_a_run_whose_end_nobody_noted_finished_where_its_last_evaluation_or_its_report_is_there(tmp_path: Path) -> None:
    new, old = (directories.run(tmp_path, folder, status=None) for folder in ("new", "old"))
    directories.lines(new / "metrics.jsonl", [{"step": 3, "final_validation_loss": 4.0}])
    for step, word in ((2, "crashed"), (3, "finished")):  # the report of an earlier end, and of this one
        (old / "report.json").write_text(json.dumps({"step": step}))
        assert status_of(old) == word
    assert status_of(new) == "finished"
