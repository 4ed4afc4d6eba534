"""Scores that were found after a run had trained stand beside the other numbers of their step."""

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from run import metrics, report
from support.json_object import JsonObject
from tests.training.test_monitors import messages, run_in
from training import evaluated, monitors

LINES = [{"step": step, "loss": 5.0 - step, "time": 1.0 + step} for step in (1, 2, 3)]
TORN = b'{"step": 4, "lo'


def values(run: Path, step: int | None, score: float = 0.5) -> JsonObject:
    task = {"samples": 4, "shots": 0, "scores": {"acc": score, "f1,strict": 0.25}, "errors": {}}
    return {"run": str(run), "checkpoint": step, "tasks": {"mine": task}, "file": "x.json"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    sections: dict[str, Any] = {"csv_monitor": {}, "tensorboard": {}, "wandb": {}}
    monkeypatch.setattr(evaluated, "read_run", lambda path: run_in(path, True, **sections))
    path = tmp_path / "run"
    path.mkdir()
    (path / "metrics.jsonl").write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in LINES) + TORN)
    return path


def test_scores_are_numbers_of_their_step(run: Path) -> None:
    said: list[str] = []
    trained = run_in(run, False, csv_monitor={})
    (csv,) = monitors.opened(trained, 0, 0, said.append)
    for line in LINES:
        csv.write(line["step"], monitors.numbers(line))
    csv.close(failed=False)
    evaluated.add(values(run, 2), said.append)
    evaluated.add(values(run, 3, score=0.75), said.append)
    first, second, third = metrics.read_metrics(run / "metrics.jsonl")
    assert first == LINES[0] and (run / "metrics.jsonl").read_bytes().endswith(b"\n" + TORN)
    assert second == {**LINES[1], "task/mine/acc": 0.5, "task/mine/f1,strict": 0.25}
    assert third["task/mine/acc"] == 0.75 and third["loss"] == 2.0
    assert metrics.read_tasks(run / "metrics.jsonl")["mine/acc"] == {"step": 3, "score": 0.75}
    assert report._scores({"tasks": {"mine/acc": {"step": 3, "score": 0.75}}}) == {"tasks": "mine/acc 0.75, step 3"}
    assert (run / "csv_monitor" / "task_mine_acc.csv").read_text() == "step,acc\n2,0.5\n3,0.75\n"
    assert (run / "csv_monitor" / "train_loss.csv").read_text() == "step,loss\n1,4.0\n2,3.0\n3,2.0\n"
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curve = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in curve.Scalars("task/mine/acc")] == [(2, 0.5), (3, 0.75)]
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    summaries = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in each.summary.update}
        for each in messages(files[-1])
        if each.HasField("summary")
    ]
    assert any(each.get("task/mine/acc") == 0.75 and each.get("task/step") == 3 for each in summaries)


def test_a_run_that_trains_keeps_its_files(run: Path) -> None:
    said: list[str] = []
    before = (run / "metrics.jsonl").read_bytes()
    with open(run / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        evaluated.add(values(run, 2), said.append)
    assert said == [f"{run} trains at this moment: the scores stand in x.json alone"]
    assert (run / "metrics.jsonl").read_bytes() == before and not (run / "csv_monitor").exists()


def test_an_import_and_a_folder_have_no_metrics(tmp_path: Path, run: Path) -> None:
    evaluated.add(values(tmp_path, None), print)
    evaluated.add(values(tmp_path, 0), print)
    evaluated.add(values(run, 9), print)  # of which there is no line
    assert not (run / "csv_monitor").exists() and list(tmp_path.iterdir()) == [run]


def test_a_monitor_that_fails_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, step: int, numbers: dict[str, float]) -> None:
        raise OSError("no room")

    monkeypatch.setattr(monitors.CSV, "write", broken)
    said: list[str] = []
    monitors.add(run_in(run, True, csv_monitor={}), 2, {"task/mine/acc": 1.0}, said.append)
    assert said == ["CSV did not take the scores: no room"]


def test_the_names_of_scores() -> None:
    line = {"step": 2, "loss": 3.0, "task/mine/acc": 0.5}
    assert monitors.numbers(line) == {"train/loss": 3.0, "task/mine/acc": 0.5}
