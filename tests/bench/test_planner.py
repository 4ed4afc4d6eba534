"""The planner against published runs: the errors that the documentation states, and tables that cannot be read."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench import planner
from launch.hardware import GIGA
from model.memory import peak_bytes

Table = Callable[..., Path]
GOOD = {
    "row_id": "1", "source": "here", "gpu": "A100-80GB-SXM", "layers": "4", "hidden": "1024", "heads": "16",
    "seq": "1024", "vocab": "51200", "tp": "2", "pp": "1", "dp": "4", "gpus": "8", "microbatch": "2",
    "global_batch": "16", "recompute": "full", "precision": "fp16",
}  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Table:
    def write(**cells: str | None) -> Path:
        row = {name: value for name, value in {**GOOD, **cells}.items() if value is not None}
        with open(tmp_path / "rows.csv", "w", newline="") as stream:
            writer = csv.DictWriter(stream, row)
            writer.writeheader()
            writer.writerow(GOOD | row if set(row) >= set(GOOD) else row)
        return tmp_path / "rows.csv"

    return write


def test_published_step_times_are_explained() -> None:
    """docs/planner.md: 4.2% mean over the rows of quality A, 98.6% of them within 20%."""
    rows = [row for row in planner.read(planner.PUBLISHED) if row.quality == "A"]
    wrong = abs(planner.errors(rows, planner.predict(rows)))
    assert len(rows) == 218
    assert wrong.mean() < 0.045 and np.mean(wrong <= 0.2) > 0.98


def test_published_memory_is_explained() -> None:
    rows = [row for row in planner.read(planner.PUBLISHED) if row.memory_gb]
    wrong = [abs(float(peak_bytes(row.work)) / GIGA / row.memory_gb - 1) for row in rows]
    assert len(rows) == 57 and np.mean(wrong) < 0.06


def test_every_definition_gives_back_the_published_rate() -> None:
    """Where a source states both a time and TFLOP/s, its definition joins them: to 4% (rounded vocabularies, days)."""
    with open(planner.PUBLISHED) as stream:
        stated = {line["row_id"]: float(line["tflops_per_gpu"]) for line in csv.DictReader(stream)}
    rows = [row for row in planner.read(planner.PUBLISHED) if row.quality == "A"]
    wrong = [abs(row.flops_per_gpu / row.seconds / 1e12 / stated[row.row_id] - 1) for row in rows]
    assert {row.definition for row in rows} == {"hw96", "model72", "mosaic"}
    assert np.mean(wrong) < 0.01 and np.mean(np.array(wrong) < 0.04) > 0.95


def test_a_source_left_out_is_predicted_by_the_others() -> None:
    """The other tables know nothing of NeMo's 22.04 release and still explain it."""
    rows = [row for row in planner.read(planner.PUBLISHED) if row.quality == "A" and row.machine.gpu.name[:4] == "a100"]
    unseen = [row for row in rows if row.source == "NeMo Megatron 5B (22.04)"]
    fitted = planner.fit([row for row in rows if row.source != "NeMo Megatron 5B (22.04)"], "a100")
    assert abs(planner.errors(unseen, planner.predict(unseen, {"a100": fitted}))).mean() < 0.08


def test_what_a_cell_means(table: Table) -> None:
    row = planner.read(table(interconnect="NVLink 4 switch; 4x100Gb/s OmniPath", precision="bf16 (fp32 grad accum)"))[0]
    assert row.machine.network == 50e9 and row.machine.link == 100e9
    assert row.work.gradient_bytes == 6 and row.work.zero_stage == 1 and not row.work.fused
    other = planner.read(table(interconnect="1600 Gb/s RoCE", arch="FlashAttention", zero_stage="3"))[0]
    assert other.machine.network == 200e9 and other.machine.link == 300e9 and other.work.fused
    fast = planner.read(table(interconnect="3.2 Tb/s", dp=""))[0]
    assert fast.machine.network == pytest.approx(400e9) and fast.work.dp == 4
    grouped = planner.read(
        table(gpu="H100-96GB", arch="llama (GQA, SwiGLU)", layers="32", hidden="4096", heads="32", ffn="14336",
              vocab="128256", seq="8192", params_B="8.03")
    )[0]  # fmt: skip
    assert grouped.work.ffn_matrices == 3 and grouped.work.kv_size == 1024
    assert grouped.work.sequence_parallel and grouped.machine.gpu.name == "h100"


def test_a_rate_alone_is_a_measurement_too(table: Table) -> None:
    row = planner.read(table(tflops_per_gpu="100", tflops_def="8PT12"))[0]
    assert row.seconds == pytest.approx(96 * 16 * 1024 * 4 * 1024**2 / 8 / 100e12)


def test_predictions_are_written(table: Table, tmp_path: Path) -> None:
    rows = planner.read(table())
    planner.write(tmp_path / "out.csv", rows, planner.predict(rows), np.array([1.5]))
    with open(tmp_path / "out.csv") as stream:
        lines = list(csv.DictReader(stream))
    assert list(lines[0]) == ["row_id", "predicted_step_seconds", "predicted_tflops_per_gpu", "predicted_memory_gb"]
    assert float(lines[0]["predicted_step_seconds"]) > 0 and lines[0]["predicted_memory_gb"] == "1.5"


@pytest.mark.parametrize(("column", "value", "words"), [
    ("hidden", None, "line 1: there is no column hidden"),
    ("layers", "", "line 2, column layers: is empty"),
    ("layers", "many", "line 2, column layers: 'many' is not a number"),
    ("layers", "2.5", "line 2, column layers: 2.5 is impossible; give a whole number of at least 1"),
    ("dp", "-4", "line 2, column dp: -4 is impossible"),
    ("seq", "nan", "line 2, column seq: nan is impossible"),
    ("seq", "inf", "line 2, column seq: inf is impossible"),
    ("gpus", "9", "line 2, column gpus: 9 is not tp 2 x pp 1 x dp 4 x cp 1 = 8"),
    ("heads", "15", "line 2, column heads: 15 heads do not divide the hidden size 1024"),
    ("global_batch", "17", "line 2, column global_batch: 17 does not divide by microbatch 2 x dp 4"),
    ("gpu", "A1000", "line 2, column gpu: there is no GPU 'A1000'"),
    ("precision", "int3", "line 2, column precision: 'int3' is none of fp8, bf16, fp16, fp32"),
    ("recompute", "some", "line 2, column recompute: 'some' is none of none, full, selective"),
    ("zero_stage", "4", "line 2, column zero_stage: 4 is none of 0, 1, 2, 3"),
    ("iter_time_s", "-1", "line 2, column iter_time_s: -1 is impossible"),
])  # fmt: skip
def test_an_impossible_row_is_named(table: Table, column: str, value: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        planner.read(table(**{column: value}))


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not text"):
        planner.read(path)
    path.write_text("")
    with pytest.raises(ValueError, match="line 1: there is no column row_id"):
        planner.read(path)
    path.write_text(",".join(planner.NEEDED) + "\n")
    with pytest.raises(ValueError, match="has no rows"):
        planner.read(path)
    path.write_text(",".join(planner.NEEDED) + "\n1,2\n")
    with pytest.raises(ValueError, match="line 2: has not as many cells as the header"):
        planner.read(path)
    with pytest.raises(ValueError, match="there are no rows of quality A"):
        planner.show_fit([])
