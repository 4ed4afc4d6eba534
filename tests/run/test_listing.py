"""The table of runs: what stands in it, whatever lies in the directories."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from commands import runs
from run.listing import show, summaries
from tests.run import directories
from tests.run.directories import NOON


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def of(found: list[dict[str, Any]], folder: str) -> dict[str, Any]:
    return next(run for run in found if Path(run["run"]).name == folder)


def test_a_run_in_a_line(root: Path) -> None:
    validation = {10: 5.0, 20: 4.0, 30: 4.5}
    settings = ["optimizer.lr=0.001", "data.corpus=a=0.25,b=0.75"]
    deviations = ["optimizer.lr is 0.001 (recipe: 0.003)", "train_batch_size is 8 (recipe: 16)"]
    path = directories.run(root, "x", 30, name="mine", validation=validation, settings=settings, deviations=deviations)
    directories.lines(path / "events.jsonl", [{"event": "note", "text": word, "time": 0} for word in ("first", "last")])
    directories.lines(path / "metrics.jsonl", [{"step": 30, "time": NOON + 31, "final_validation_loss": 1.0}])
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "big").write_bytes(bytes(10_000))
    (run,) = summaries("gpt_tiny")
    assert run.pop("bytes") == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert run.pop("id") and run == {
        "run": str(path), "name": "mine", "recipe": "gpt_tiny", "status": "finished", "reason": "",
        "step": 30, "last_step": 1600, "validation_loss": 4.5, "best_validation_loss": 4.0, "best_step": 20,
        "tokens_per_second": 1020.5, "mfu": None, "started": NOON + 5, "parent": None, "changes": [], "note": "last",
        "deviations": ["data.corpus=a=0.25,b=0.75", "optimizer.lr=0.001", "train_batch_size is 8 (recipe: 16)"],
    }  # fmt: skip
    assert summaries("gpt_125m") == []


def test_fields_that_a_recipe_has_gained_since_set_no_run_apart(root: Path) -> None:
    file = directories.run(root, "x", settings=["optimizer.lr=0.001"]) / "recipe.json"
    stored = json.loads(file.read_text())
    del stored["lora"], stored["data"]["template"]
    file.write_text(json.dumps(stored))
    assert summaries()[0]["deviations"] == ["optimizer.lr=0.001"]


def test_the_run_that_was_started_last_comes_first(root: Path) -> None:
    for number, folder in enumerate(("b", "c", "a")):
        directories.run(root, folder, began=NOON + number)
    assert [Path(run["run"]).name for run in summaries()] == ["a", "c", "b"]


def test_a_step_that_needs_a_long_line_is_a_step(root: Path) -> None:
    path = directories.run(root, "x", steps=1)
    directories.lines(path / "metrics.jsonl", [{"step": 2, "loss": 8.0, "memory_bytes": [10**9] * 20_000}])
    assert summaries()[0]["step"] == 2


def test_foreign_and_half_written_directories_have_gaps(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = ("recipe.json", "run.json", "metrics.jsonl", "starts.jsonl", "events.jsonl", "status.json", "start.json")
    wild = (
        '{"step": "3", "loss": [], "validation_loss": {}, "time": "x", "event": "training", "deviations": 4, "id": 1}'
    )
    contents = {
        "torn": b'{"step": 3, "validation_loss"',
        "bytes": b"\xff\xfe\x00",
        "wild": wild.encode(),
        "list": b"[]",
    }
    for folder, content in contents.items():
        path = root / "gpt_tiny" / folder
        path.mkdir(parents=True)
        for name in names:
            (path / name).write_bytes(content + b"\n")
    (root / "gpt_tiny" / "bytes" / "checkpoints").symlink_to(root)
    (root / "gpt_tiny" / "list" / "metrics.jsonl").unlink()
    (root / "gpt_tiny" / "list" / "metrics.jsonl").mkdir()
    (root / "gpt_ours" / "alone").mkdir(parents=True)
    (root / "gpt_ours" / "alone" / "recipe.json").write_text('{"data": {"corpus": [{"corpus": 3, "x": 1}]}}')
    directories.run(root, "good")
    found = summaries()
    assert {Path(run["run"]).name for run in found} == {*contents, "alone", "good"}
    assert of(found, "torn")["status"] == "never started" and of(found, "alone")["last_step"] is None
    show(found)
    assert capfd.readouterr().out.count("\n") >= 7


def test_what_sets_a_run_apart_stands_first(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Ten runs of a search share all but one setting, and a line has room for four."""
    shared = [
        "model.num_layers=1",
        "model.dropout=0.5",
        "batch.global_batch=8",
        "data.corpus=x",
        "data.tokeniser=bytes",
    ]
    for number in range(3):
        directories.run(root, f"rate-{number}", settings=[*shared, f"schedule.min_lr_ratio=0.{number + 2}"])
    show(summaries())
    shown = capfd.readouterr().out
    assert (
        all(f"schedule.min_lr_ratio=0.{number + 2}" in shown for number in range(3)) and shown.count("and 2 more") == 3
    )


def test_the_table_names_what_differs(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    directories.run(root, "20270101-100000", 1500, began=time.time() - 7300, name="mine", validation={1500: 4.25})
    parent = {"id": "0" * 16, "path": str(root / "gpt_tiny" / "20270101-100000"), "step": 800, "consumed_samples": 1}
    changes = {"changes": ["optimizer.lr 0.003 -> 0.001"], "data_from": 0}
    directories.run(
        root,
        "twig",
        0,
        began=time.time() - 60,
        status=1,
        parent=parent | changes,
        settings=["optimizer.lr=0.001", "data.corpus=[bold]x"],
    )
    monkeypatch.setattr("sys.argv", ["runs", "tiny"])
    runs.main()
    first, second, *more, third = capfd.readouterr().out.splitlines()
    assert first.split()[:3] == ["run", "status", "step"]
    assert second.split()[:5] == ["gpt_tiny/twig", "never", "started", "-/1,600", "-"]
    differs = "".join(line[second.index("from mine") :] for line in (second, *more))
    assert " ".join(differs.split()) == "from mine@800, optimizer.lr 0.003 -> 0.001, data.corpus=[bold]x"
    assert third.split()[:8] == ["mine", "finished", "1,500/1,600", "4.2500", "4.2500", "2,490", "-", "2"]
    assert json.loads((root / "gpt_tiny" / "twig" / "run.json").read_text())["parent"]["step"] == 800
