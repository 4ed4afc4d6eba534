"""A clock that is set back: steps, what is newest, what stays and what is shown do not depend on it."""

import io
import os
import re
from pathlib import Path

import pytest
from rich.console import Console

from run import compare, listing, report, select
from run.feed import Feed
from run.panel import RunPanel
from run.state import State, state_of
from tests.faults.loops import Fault, happened, run_steps, steps, tensors
from tests.run.happened import BEGAN, event, started, step, write, write_run

HOUR = 3600.0


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))


@pytest.mark.faults
def test_a_clock_that_is_set_back_between_saves_changes_nothing(tmp_path: Path) -> None:
    """An hour after each step; and the files of the older checkpoint are a day younger than those of the newer."""
    (tmp_path / "runs" / "gpt_tiny").mkdir(parents=True)
    whole, path = tmp_path / "runs" / "gpt_tiny" / "whole", tmp_path / "runs" / "gpt_tiny" / "back"
    assert run_steps(whole, 9) == run_steps(path, 5, fault=Fault(clock=HOUR)) == ["", ""]
    older = path / "checkpoints" / "step-00000003"
    for file in (older, *older.iterdir(), path / "start.json"):
        os.utime(file, (2**31, 2**31))
    assert run_steps(path, 9, "intervals.keep_checkpoints=2", fault=Fault(clock=HOUR)) == ["", ""]
    assert [line["step"] for line in happened(path, "training")] == [0, 5]
    assert sorted(folder.name for folder in (path / "checkpoints").iterdir()) == ["step-00000006", "step-00000009"]
    assert steps(path) == steps(whole)
    assert tensors(path / "checkpoints" / "step-00000009") == tensors(whole / "checkpoints" / "step-00000009")
    assert all(line["seconds"] > 0 for line in happened(path, "saved"))
    state = state_of(path)
    assert state.value(0.0)["step"] == 9 and [loss.step for loss in state.losses] == list(range(1, 10))
    assert not re.search(r" -\d", shown(lambda console: console.print(RunPanel(state, lambda: 0.0))))
    values = compare.compare(compare.told([whole, path]))
    assert all(run["seconds"] > 0 for run in values["runs"])
    assert report.summary(path)["step"] == 9 and {run["step"] for run in listing.summaries()} == {9}


def shown(draws: object) -> str:
    console = Console(file=io.StringIO(), width=150, record=True)
    draws(console)  # type: ignore[operator]
    return console.export_text()


@pytest.fixture
def back(tmp_path: Path) -> Path:
    """A run of ten steps: an hour before the sixth, and again before its end, the clock was set back."""
    path = write_run(tmp_path / "runs" / "gpt_tiny" / "back")
    write(path, [*started(), *(step(n, 10.0 + 2 * n - (n > 5) * HOUR) for n in range(1, 11))])
    write(path, [event("saved", 40.0 - HOUR, step=10, path="step-00000010", seconds=0.1, bytes=9)])
    return path


@pytest.mark.parametrize("ends", [[], [event("end", -2 * HOUR, status=0, reason="")]], ids=["goes on", "has ended"])
@pytest.mark.parametrize("now", [BEGAN - 3 * HOUR, BEGAN + 60.0])
def test_no_time_is_shown_as_less_than_nothing(back: Path, now: float, ends: list[dict[str, object]]) -> None:
    write(back, ends)
    state = State(back, BEGAN)
    for each in Feed(back).new():
        state.take(each)
    value = state.value(now)
    assert value["step"] == 10 and value["seconds"] >= 0
    assert all(
        value[name] is None or value[name] >= 0 for name in ("silent_seconds", "seconds_left", "seconds_to_save")
    )
    text = shown(lambda console: console.print(RunPanel(state, lambda: now)))
    assert not re.search(r" -\d", text), text


def test_a_run_whose_clock_was_set_back_is_listed_and_reported(back: Path) -> None:
    listing.show(listing.summaries())
    assert report.summary(back)["step"] == 10 and select.runs() == [back]
