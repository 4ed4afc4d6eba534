"""Published tables: what a cell means, and which tables are refused."""

import csv
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from planner.published.cells import Cells, network_gb_s
from planner.published.rows import NEEDED, PUBLISHED, _engine, read
from tests.planner.tables import GOOD, Table, write_table


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return partial(write_table, tmp_path)


def test_every_definition_gives_back_the_published_rate() -> None:
    """Where a source states both a time and TFLOP/s, its definition joins them: to 4% (rounded vocabularies, days)."""
    with open(PUBLISHED) as stream:
        stated = {line["row_id"]: float(line["tflops_per_gpu"]) for line in csv.DictReader(stream)}
    rows = [row for row in read(PUBLISHED) if row.quality == "A"]
    wrong = [abs(row.flops_per_gpu / row.seconds / 1e12 / stated[row.row_id] - 1) for row in rows]
    assert {row.definition for row in rows} == {"hw96", "model72", "mosaic"}
    assert np.mean(wrong) < 0.01 and np.mean(np.array(wrong) < 0.04) > 0.95


def test_what_a_cell_means(table: Table) -> None:
    row = read(table(interconnect="NVLink 4 switch; 4x100Gb/s OmniPath", precision="bf16 (fp32 grad accum)"))[0]
    assert row.machine.network == 50e9 and row.machine.link == 100e9
    assert row.work.gradient_bytes == 6 and row.work.zero_stage == 1 and not row.work.variant.fused
    other = read(table(interconnect="1600 Gb/s RoCE", arch="FlashAttention", zero_stage="3"))[0]
    assert other.machine.network == 200e9 and other.machine.link == 300e9 and other.work.variant.fused
    fast = read(table(interconnect="3.2 Tb/s", dp=""))[0]
    assert fast.machine.network == pytest.approx(400e9) and fast.work.dp == 4
    grouped = read(
        table(gpu="H100-96GB", arch="llama (GQA, SwiGLU)", layers="32", hidden="4096", heads="32", ffn="14336",
              vocab="128256", seq="8192", params_B="8.03")
    )[0]  # fmt: skip
    assert grouped.work.variant.ffn_matrices == 3 and grouped.work.variant.kv_size == 1024
    assert grouped.work.sequence_parallel and grouped.machine.gpu.name == "h100"


@pytest.mark.parametrize(("text", "expected"), [
    ("8x200Gb/s", 200), ("8\u00d7200Gb/s HDR", 200), ("(200 Gb/s) x8", 200), ("1600 Gb/s RoCE", 200),
    ("400 Gb/s per GPU", 400), ("EFA 400Gbps x 4", 200), ("4x HDR IB per node", 100), ("NDR IB per GPU", 400),
    ("HDR100 x 2", 25), ("8 x NDR", 400), ("EDR x4", 50), ("400 Gb/s IB per GPU", 400), ("200 Gbit/s", 25),
    ("3.2 Tb/s", 400), ("100GbE", 12.5), ("200 GB/s", 200), ("8 x 400 Gbps (one per GPU)", 400),
    ("NVSwitch 600 GB/s; 4x100Gb/s OmniPath", 50), ("NVLink 900 GB/s + 400 GB/s IB", 400),
    ("4x100Gb/s OmniPath, 8 x A100", 50),
    ("NVLink 900 GB/s", 0), ("HDR IB", 0), ("...Gb/s", 0), ("0 Gb/s", 0), ("", 0),
])  # fmt: skip
def test_a_node_s_network_however_it_is_stated(text: str, expected: float) -> None:
    """GB/s of a node of eight; 0 where a text does not say it, and the GPU's usual network is taken."""
    assert network_gb_s(text, 8) == pytest.approx(expected)


@pytest.mark.parametrize(("column", "value", "expected"), [
    ("precision", "bfloat16", ("bf16", "full")), ("precision", "float16", ("fp16", "full")),
    ("precision", "half", ("fp16", "full")), ("precision", "mixed", ("fp16", "full")),
    ("precision", "mixed bf16", ("bf16", "full")), ("precision", "FP32", ("fp32", "full")),
    ("recompute", "no", ("fp16", "none")), ("recompute", "off", ("fp16", "none")), ("recompute", "-", ("fp16", "none")),
    ("recompute", "n/a", ("fp16", "none")), ("recompute", "", ("fp16", "none")), ("recompute", "yes", ("fp16", "full")),
    ("recompute", "selective+SP", ("fp16", "selective+sp")), ("recompute", "None", ("fp16", "none")),
])  # fmt: skip
def test_other_words_for_the_same(table: Table, column: str, value: str, expected: tuple[str, str]) -> None:
    cells = GOOD | {column: value}
    engine = _engine(Cells(Path("x"), 2, cells))
    assert (engine.precision, engine.recompute) == expected
    assert len(read(table(**{column: value}))) == 1


@pytest.mark.parametrize("value", ["n/a", "~140", "OOM", "-", "nan", "None"])
def test_a_result_that_is_no_number_is_no_result(table: Table, value: str) -> None:
    row = read(table(iter_time_s=value, tflops_per_gpu=value, mem_gb_per_gpu=value, params_B="n/a"))
    assert row[0].seconds == 0 and row[0].memory_gb == 0 and row[0].parameters > 0


def test_what_spreadsheets_do_to_a_table(tmp_path: Path) -> None:
    """A byte-order mark, spaces and capitals in the header, commas at the end of lines and lines of commas."""
    lines = [",".join(f" {name.upper()} " for name in GOOD), ",".join(GOOD.values()) + ",,", "," * (len(GOOD) - 1)]
    path = tmp_path / "sheet.csv"
    path.write_text("\ufeff" + "\n".join([*lines, lines[1]]) + "\n", encoding="utf-8")
    assert [row.row_id for row in read(path)] == ["1", "1"]
    large = GOOD | {"seq": '"2,048"'}
    path.write_text(",".join(large) + "\n" + ",".join(large.values()) + "\n")
    assert read(path)[0].work.seq_length == 2048
    stated = GOOD | {"gpu": "A100", "gpu_mem_gb": "40 GB"}
    path.write_text(",".join(stated) + "\n" + ",".join(stated.values()) + "\n")
    assert read(path)[0].machine.gpu.name == "a100-40gb"


def test_tokens_a_second_are_a_measurement_too(table: Table) -> None:
    row = read(table(tokens_per_s_per_gpu="1000"))[0]
    assert row.seconds == pytest.approx(16 * 1024 / 8 / 1000)


def test_a_rate_alone_is_a_measurement_too(table: Table) -> None:
    row = read(table(tflops_per_gpu="100", tflops_def="8PT12"))[0]
    assert row.seconds == pytest.approx(96 * 16 * 1024 * 4 * 1024**2 / 8 / 100e12)


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
    ("precision", "fp8", "line 2, column precision: a a100-80gb has no fp8"),
    ("tp", "3", "line 2, column gpus: 8 is not tp 3"),
    ("virtual_stages", "2", "line 2, column virtual_stages: 2 without a pipeline"),
    ("arch", "Mixtral (MoE)", "line 2, column arch: 'Mixtral (MoE)': mixtures of experts are not planned"),
    ("num_experts", "8", "line 2, column num_experts: 8: mixtures of experts are not planned"),
    ("gpu", "H100 PCIe", "line 2, column gpu: 'H100 PCIe' is a board"),
])  # fmt: skip
def test_an_impossible_row_is_named(table: Table, column: str, value: str | None, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        read(table(**{column: value}))


@pytest.mark.parametrize(("cells", "words"), [
    ({"tp": "3", "gpus": "12", "heads": "16"}, "column heads: 16 does not divide by tp 3"),
    ({"tp": "3", "gpus": "12", "heads": "3", "hidden": "1023", "ffn": "4096"}, "column ffn: 4096 does not divide"),
    ({"tp": "8", "gpus": "32", "heads": "4"}, "column heads: 4 does not divide by tp 8"),
    ({"pp": "2", "gpus": "16", "virtual_stages": "3"}, "column virtual_stages: 4 layers do not divide by pp 2 x 3"),
    ({"gpu": "V100", "precision": "bf16"}, "column precision: a v100-32gb has no bf16"),
])  # fmt: skip
def test_a_row_that_no_software_runs_is_named(table: Table, cells: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=f"line 2, {re.escape(words)}"):
        read(table(**cells))


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not text"):
        read(path)
    path.write_text("")
    with pytest.raises(ValueError, match="line 1: there is no column row_id"):
        read(path)
    path.write_text(",".join(NEEDED) + "\n")
    with pytest.raises(ValueError, match="has no rows"):
        read(path)
    path.write_text(",".join(NEEDED) + "\n1,2\n")
    with pytest.raises(ValueError, match="line 2: has not as many cells as the header"):
        read(path)
