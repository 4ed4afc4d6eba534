"""What rank 0 writes: lines of metrics, events, and what it does where a run goes back."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from run import events
from run.metrics import read_metrics, read_steps
from training import monitors
from training.log import MANY_RANKS, Log


def log_in(path: Path, resume: bool = False, **sections: Any) -> Log:
    log = Log.__new__(Log)
    engine = SimpleNamespace(json={name: {"enabled": True} for name in sections})
    run = SimpleNamespace(path=path, metrics=path / "metrics.jsonl", resume=resume, engine=engine)
    log.run, log.display, log.writes = run, None, True  # type: ignore[assignment]
    log._monitors, log._begin, log._memory = [], 0, []
    return log


class Broken(monitors.Monitor):
    """As wandb is when its service was killed."""

    def write(self, step: int, numbers: dict[str, float]) -> None:
        raise ConnectionResetError("Connection lost")

    def close(self, failed: bool) -> None:
        raise AssertionError


def test_a_monitor_that_fails_ends_no_run(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log._monitors = [Broken(), monitors.CSV(tmp_path, None)]
    with log:
        for number in (1, 2):
            log.metrics({"step": number, "loss": 4.0})
    assert (tmp_path / "train_loss.csv").read_text().split() == ["step,loss", "1,4.0", "2,4.0"]
    assert len(read_steps(tmp_path / "metrics.jsonl")) == 2
    (said,) = [event["line"] for event in events.read(tmp_path)]
    assert said == "Broken gets no more of this run: Connection lost"


def test_a_run_that_goes_back_knows_how_far_it_had_come(tmp_path: Path) -> None:
    """It took seven steps, went back to three and took two, and goes back to three again."""
    for last in (7, 5):
        log = log_in(tmp_path, resume=last == 5)
        log.start(3 if last == 5 else 0, 9)
        for number in range(log._begin + 1, last + 1):
            log.metrics({"step": number, "loss": 4.0})
    log = log_in(tmp_path, resume=True)
    log.start(3, 9)
    assert [(event["step"], event["reached"]) for event in events.read(tmp_path)] == [(0, 0), (3, 7), (3, 7)]
    assert [line["step"] for line in read_steps(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_a_run_that_had_ended_draws_no_second_end(tmp_path: Path) -> None:
    """It is resumed where nothing is left to train: it evaluates again, and its curves stay as they are."""
    final = {"step": 2, "final_validation_loss": 5.0}
    for resume in (False, True):
        with log_in(tmp_path, resume, csv_monitor={}) as log:
            log.start(2 if resume else 0, 2)
            for number in () if resume else (1, 2):
                log.metrics({"step": number, "loss": 4.0})
            log.metrics(final)
    assert (tmp_path / "csv_monitor" / "train_final_validation_loss.csv").read_text().count("\n") == 2
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 2]


def test_the_memory_of_many_ranks_is_told_where_it_changes(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    for ranks, first in (
        (MANY_RANKS, 1),
        (MANY_RANKS, 1),
        (MANY_RANKS + 1, 1),
        (MANY_RANKS + 1, 1),
        (MANY_RANKS + 1, 2),
    ):
        log.metrics({"step": 1, "loss": 4.0, "memory_bytes": [first] * ranks})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert ["memory_bytes" in line for line in lines] == [True, True, True, False, True]
