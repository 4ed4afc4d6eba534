"""A published table of one row, as tests write it."""

import csv
from collections.abc import Callable
from pathlib import Path

Table = Callable[..., Path]
GOOD = {
    "row_id": "1", "source": "here", "gpu": "A100-80GB-SXM", "layers": "4", "hidden": "1024", "heads": "16",
    "seq": "1024", "vocab": "51200", "tp": "2", "pp": "1", "dp": "4", "gpus": "8", "microbatch": "2",
    "global_batch": "16", "recompute": "full", "precision": "fp16",
}  # fmt: skip


def write_table(folder: Path, **cells: str | None) -> Path:
    """`GOOD` with other cells, without the columns whose cell is None."""
    row = {name: value for name, value in {**GOOD, **cells}.items() if value is not None}
    with open(folder / "rows.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, row)
        writer.writeheader()
        writer.writerow(row)
    return folder / "rows.csv"
