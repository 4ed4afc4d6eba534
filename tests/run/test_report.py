"""The report and the curve of a run at any time: of one that trains, was stopped, crashed or finished."""

import dataclasses
import json
import math
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from recipes.preference import DPO
from recipes.registry import load
from run import curve, events, report
from run.state import state_of
from support.errors import CRASHED, DONE, STOPPED, WEIGHTS_LOST, UserError
from support.files import locked

LINE = {"loss": 4.0, "grad_norm": 1.0, "lr": 1e-3, "loss_scale": 1.0, "skipped": False, "mfu": None}
TINY = load("tiny")  # 1,600 steps of 16 samples of 64 tokens


def step(number: int, **changes: Any) -> dict[str, Any]:
    return (
        {"step": number, "consumed_samples": 16 * number, "seconds": 0.5, "tokens_per_second": 2048.0} | LINE | changes
    )


def write_lines(path: Path, *lines: dict[str, Any]) -> None:
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a run has written when its first step begins."""
    start = {"world_size": 2, "max_steps": None, "resumed": False, "deviations": []}
    files: dict[str, Any] = {
        "recipe.json": dataclasses.asdict(TINY),
        "ds_config.json": {},
        "ds_config.resolved.json": {"train_batch_size": 16},
        "start.json": start,
        "starts.jsonl": start | {"device": "a CPU"},
        "data.json": {"bytes_per_token": 2.0, "parts": []},
    }
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    return tmp_path


def test_a_run_that_trains(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events.note(run, "training", step=0, last_step=1600)
    events.note(run, "slow", rank=1, host="worker-2", what="computing", times=1.84, since=0.0)
    write_lines(
        run,
        *(step(number, time=time.time()) for number in range(1, 8)),
        step(8, validation_loss=5.0),
        step(9, validation_loss=4.5, evaluate_seconds=1.0),
        step(10, loss=3.5, validation_loss=4.75, mfu=0.25),
    )
    with locked(run / ".lock"):
        values = report.summary(run)
        left = state_of(run).value(time.time())["seconds_left"]
    assert values["seconds_left"] == pytest.approx(left, rel=0.01) and left > 1500 * 0.5
    assert (values["status"], values["step"], values["last_step"]) == ("running", 10, 1600)
    assert (values["loss"], values["last_validation_loss"], values["last_validation_step"]) == (3.5, 4.75, 10)
    assert (values["best_validation_loss"], values["best_step"]) == (4.5, 9)
    assert values["tokens"] == 16 * 10 * 64 and values["mfu"] == 0.25 and values["device"] == "a CPU"
    assert values["validation_loss"] is values["perplexity"] is values["bits_per_byte"] is None
    report.show(run, values)
    assert "rank 1 on worker-2 takes 1.8 times" in capsys.readouterr().out


def test_a_run_that_finished_and_one_of_before(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(run, step(1600), {"step": 1600, "consumed_samples": 25600, "final_validation_loss": math.log(16)})
    report.write(run)
    values = report.read(run)
    assert values["status"] == "finished" and values["seconds_left"] is None
    assert values["perplexity"] == pytest.approx(16) and values["bits_per_byte"] == pytest.approx(2)
    report.show(run)
    assert "after 1,600 steps" in (shown := capsys.readouterr().out) and "2.7726 nats a token" in shown
    # Before, the last evaluation stood in the report alone, and a line had fewer keys.
    old = {"step": 1600, "consumed_samples": 25600, "loss": 4.0, "tokens_per_second": 5.0}
    write_lines(run, old)
    (run / "status.json").write_text(json.dumps({"status": DONE, "reason": ""}))
    assert report.summary(run)["validation_loss"] == pytest.approx(math.log(16))
    write_lines(run, old | {"step": 1601})  # it was resumed since
    assert report.summary(run)["validation_loss"] is None


@pytest.mark.parametrize(("status", "word"), [
    (STOPPED, "stopped"), (WEIGHTS_LOST, "weights lost"), (CRASHED, "crashed"), (None, "crashed"),
])  # fmt: skip
def test_how_a_run_ended(run: Path, status: int | None, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(run, step(1, loss=None, grad_norm=None))
    (run / ".lock").touch()
    if status is not None:
        (run / "status.json").write_text(json.dumps({"status": status, "reason": "x"}))
    values = report.summary(run)
    assert values["status"] == word and values["loss"] is None
    report.show(run, values)
    shown = capsys.readouterr().out
    assert word in shown and "step 1 of 1,600" in shown and "not finite" in shown


def test_a_run_whose_other_files_are_gone_still_has_a_report(run: Path) -> None:
    write_lines(run, step(3))
    for name in ("start.json", "starts.jsonl", "data.json", "ds_config.json", "ds_config.resolved.json"):
        (run / name).unlink()
    values = report.summary(run)
    report.plot(run, values)
    report.show(run, values)
    assert values["last_step"] == 1600 and values["world_size"] is None


def test_a_run_without_a_step_has_none(run: Path) -> None:
    with pytest.raises(UserError, match="has no finished step yet; wait for its first"):
        report.summary(run)


def wild(number: int) -> dict[str, Any]:
    """A step of a run with gaps, skipped steps and one spike."""
    loss = None if number % 7 == 0 else 1e9 if number == 40 else 4 + 1 / number
    norm = None if number % 5 == 0 else 1.0
    return step(number, loss=loss, grad_norm=norm, skipped=number % 5 == 0)


@pytest.mark.parametrize("lines", [
    [step(1)],
    [step(1, loss=None, grad_norm=None)],
    [step(number, loss=None, grad_norm=None) for number in range(1, 200)],
    [wild(number) for number in range(1, 200)],
    [step(1600, validation_loss=4.0), {"step": 1600, "consumed_samples": 25600, "final_validation_loss": None}],
    [{"step": 1, "consumed_samples": 16, "loss": 4.0}],
], ids=["one", "not finite", "never finite", "wild", "last", "old"])  # fmt: skip
def test_every_run_can_be_drawn(lines: list[dict[str, Any]], run: Path) -> None:
    write_lines(run, *lines)
    report.plot(run, report.summary(run))
    picture = (run / "loss.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and struct.unpack(">II", picture[16:24]) == (1300, 1200)


@pytest.mark.parametrize(("steps", "shown"), [
    ((1, 2), (0, 2.04)), ((1, 1600), (0, 1632)), ((1501, 1504), (1500, 1504.08)), ((1501, 1600), (1500, 1602)),
])  # fmt: skip
def test_the_curve_of_a_branch_begins_where_its_parent_was(
    steps: tuple[int, int], shown: tuple[float, float], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *stream, **options: drawn.append(figure))
    write_lines(run, *map(step, range(steps[0], steps[1] + 1)))
    curve.draw(run, TINY, 1600)
    unit = 1e6 if steps[1] == 1600 or shown[0] else 1e3
    assert drawn[0].axes[0].get_xlim() == pytest.approx([1024 * place / unit for place in shown])


def test_the_curve_of_preferences_is_in_nats_a_pair(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *stream, **options: drawn.append(figure))
    write_lines(run, *map(step, range(1, 4)))
    data = dataclasses.replace(TINY.data, tokeniser="base", template="auto")
    for recipe in (TINY, dataclasses.replace(TINY, data=data, dpo=DPO(beta=0.1))):
        curve.draw(run, recipe, 1600)
    assert [each.axes[0].get_ylabel() for each in drawn] == ["loss (nats a token)", "loss (nats a pair)"]


def test_a_million_steps_become_few_points_and_keep_their_spikes() -> None:
    x = np.arange(1_000_000.0)
    y = np.sin(x / 1e5)
    y[123_456], y[777_000], y[500_000:502_000] = 9.0, -9.0, np.nan
    ours, theirs = curve._thinned(x, y)
    assert len(ours) <= 2 * curve.BUCKETS and np.nanmax(theirs) == 9 and np.nanmin(theirs) == -9
    assert np.isnan(theirs).any() and (np.diff(ours) > 0).all() and ours[np.nanargmax(theirs)] == 123_456


def test_the_smooth_line_is_a_mean_of_what_is_finite() -> None:
    found = curve._mean(np.array([1.0, 2.0, np.nan, 6.0, np.nan, np.nan, np.nan]), 3)
    assert found[:5].tolist() == [1.5, 1.5, 4.0, 6.0, 6.0] and np.isnan(found[5:]).all()
