"""The planner's benchmark: its documentation has what it prints, and it writes what it predicts."""

import csv
import re
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bench import planner
from planner.fit import predict, relative_errors
from planner.hardware import GIGA
from planner.memory import peak_bytes
from planner.published.rows import PUBLISHED, read
from recipes.registry import ROOT
from tests.planner.tables import Table, write_table


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return partial(write_table, tmp_path)


def documented(source: str, rows: int) -> tuple[float, float]:
    """Mean and largest error, %, of a row of docs/planner.md's tables."""
    text = (ROOT / "docs" / "planner.md").read_text()
    found = re.search(rf"^\| {re.escape(source)} \| {rows} \| ([\d.]+), ([\d.]+) \|", text, re.MULTILINE)
    assert found, source
    return float(found[1]), float(found[2])


def test_the_documentation_has_what_the_commands_print() -> None:
    """Both tables of errors; to 0.2 points, since the catalogue's rates are the fitted ones in three digits."""
    rows = [row for row in read(PUBLISHED) if row.quality == "A"]
    wrong = abs(relative_errors(rows, predict(rows))) * 100
    for source in {row.source for row in rows}:
        part = wrong[[row.source == source for row in rows]]
        assert documented(source, len(part)) == pytest.approx((part.mean(), part.max()), abs=0.2), source
    assert documented("all", 218) == pytest.approx((wrong.mean(), wrong.max()), abs=0.2)
    held = defaultdict(list)
    for row in read(PUBLISHED.with_name("memory.csv")):
        name = row.source.replace("nanotron v0.5 / ultrascale playbook", "nanotron")
        held[name].append(100 * abs(float(peak_bytes(row.work)) / GIGA / row.memory_gb - 1))
    for source, errors in held.items():
        assert documented(source, len(errors)) == pytest.approx((np.mean(errors), max(errors)), abs=0.06), source


def test_a_definition_is_known_in_any_case_and_an_unknown_one_is_said(
    table: Table, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read(table(tflops_def="8pt12", tflops_per_gpu="100"))
    assert rows[0].seconds == pytest.approx(96 * 16 * 1024 * 4 * 1024**2 / 8 / 100e12)
    rows = read(table(tflops_def="Whatever", tflops_per_gpu="100"))
    planner.show_comparison(rows, predict(rows), np.array([1.0]))
    assert "tflops_def not known here, taken for model FLOPs: whatever" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [("--out", "{table}"), ("--fit", "--out", "{table}.new")])
def test_predictions_replace_no_table(
    table: Table, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...]
) -> None:
    path = table()
    before = path.read_bytes()
    monkeypatch.setattr("sys.argv", ["planner", str(path), *(flag.format(table=path) for flag in flags)])
    with pytest.raises(SystemExit):
        planner.main()
    assert "--out" in capsys.readouterr().err
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_predictions_are_written(table: Table, tmp_path: Path) -> None:
    rows = read(table())
    planner.write_predictions(tmp_path / "out.csv", rows, predict(rows), np.array([1.5]))
    with open(tmp_path / "out.csv") as stream:
        lines = list(csv.DictReader(stream))
    assert list(lines[0]) == ["row_id", "predicted_step_seconds", "predicted_tflops_per_gpu", "predicted_memory_gb"]
    assert float(lines[0]["predicted_step_seconds"]) > 0 and lines[0]["predicted_memory_gb"] == "1.5"
    before = (tmp_path / "out.csv").read_bytes()
    with pytest.raises(ValueError, match="zip"):  # it breaks off after the first row
        planner.write_predictions(tmp_path / "out.csv", rows * 2, predict(rows * 2), np.array([1.5]))
    assert (tmp_path / "out.csv").read_bytes() == before


def test_nothing_to_fit_to_is_said() -> None:
    with pytest.raises(ValueError, match="there are no rows of quality A"):
        planner.show_fit([])
