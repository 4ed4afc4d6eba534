"""The cells of a published table: how tables spell numbers, networks, precisions and recomputation."""

import re
from pathlib import Path

from support.errors import UserError

RESULTS = ("iter_time_s", "iter_time_s_derived", "tokens_per_s_per_gpu", "tflops_per_gpu", "mem_gb_per_gpu")
NOTHING = ("n/a", "na", "-", "\u2013", "\u2014", "none", "null", "nan", "?", "unknown")
# How tables spell a precision, the first that is found; "mixed" alone is Micikevicius et al.'s, with fp16.
PRECISIONS = {
    "fp8": r"fp8|float8|e4m3", "bf16": r"bf-?16|bfloat-?16", "fp16": r"fp-?16|float16|half|mixed|^amp$",
    "fp32": r"fp-?32|float32|single",
}  # fmt: skip
RECOMPUTE = {
    "none": r"(none|no|off|false|0|-|n/?a|disabled)\b|$|-$", "full": r"(full|yes|on|true|all|1|uniform)\b",
    "selective": r"selective",
}  # fmt: skip
# One InfiniBand adapter of each generation.
INFINIBAND_GBIT_PER_SECOND = {
    "QDR": 40, "FDR": 56, "EDR": 100, "HDR": 200, "HDR100": 100, "NDR": 400, "NDR200": 200, "XDR": 800,
}  # fmt: skip


class Cells:
    """The cells of one line. Errors: `UserError` that names file, line and column."""

    def __init__(self, path: Path, line: int, cells: dict[str, str]) -> None:
        self.path, self.line, self.cells = path, line, cells

    def fail(self, column: str, reason: str) -> UserError:
        return UserError(f"{self.path} line {self.line}, column {column}: {reason}")

    def text(self, column: str) -> str:
        return (self.cells.get(column.lower()) or "").strip()

    def number(self, column: str, default: float | None = None, whole: bool = False, least: float = 0.0) -> float:
        """A finite number of at least `least`, or `default` where the cell is empty."""
        text = self.text(column)
        if not text:
            if default is None:
                raise self.fail(column, "is empty; give a number")
            return default
        if default is not None and text.lower() in NOTHING:
            return default
        try:
            value = float(re.sub(r"(?<=\d),(?=\d{3}\b)|\s*GB$", "", text))
        except ValueError:
            if column in RESULTS:  # "OOM", "~140": nothing that was measured to a digit
                return 0.0
            raise self.fail(column, f"{text!r} is not a number") from None
        if not (least <= value < 1e18) or (whole and not value.is_integer()):
            kind = "a whole number" if whole else "a number"
            raise self.fail(column, f"{text} is impossible; give {kind} of at least {least:g}")
        return value

    def count(self, column: str, default: float | None = None) -> int:
        return int(self.number(column, default, whole=True, least=1))


def network_gb_s(text: str, per_node: int) -> float:
    """GB/s of a node's network, 0 where it is not stated.

    "8x200Gb/s", "(200 Gb/s) x8", "1600 Gb/s", "400 Gb/s per GPU", "4x HDR IB", "200 GB/s"; a generation without a
    count says nothing, and bytes beside the name of a link inside the node are not the network's.
    """
    count = r"(?:(\d+)\s*[x\u00d7*]\s*)?"
    bits = re.search(rf"{count}(\d+(?:\.\d+)?)\s*-?([GT])(?:(?:b|[Bb]it|[Bb]its)(?:/s|ps)?|bE)(?![A-Za-z/])", text)
    if bits:
        single = float(bits[2]) / 8 * (1000 if bits[3] == "T" else 1)
        return single * (_adapters(bits[1], text[bits.end() :], per_node) or 1)
    names = "|".join(sorted(INFINIBAND_GBIT_PER_SECOND, key=len, reverse=True))
    generation = re.search(rf"{count}({names})\b", text)
    if generation:
        return (
            INFINIBAND_GBIT_PER_SECOND[generation[2]] / 8 * _adapters(generation[1], text[generation.end() :], per_node)
        )
    outside = [part for part in re.split(r"[;,+]", text) if not re.search(r"nvlink|nvswitch|xgmi|pcie", part.lower())]
    whole = re.search(rf"{count}(\d+(?:\.\d+)?)\s*GB(?:/s|ps)(?![A-Za-z])(.*)", "; ".join(outside))
    return float(whole[2]) * (_adapters(whole[1], whole[3], per_node) or 1) if whole else 0.0


def _adapters(before: str | None, after: str, per_node: int) -> int:
    """Network adapters of a node: counted before or after, or one for each GPU where it says so; 0: not stated."""
    after = re.split(r"[;,+]", after)[0]
    counted = re.search(r"[x\u00d7*]\s*(\d+)(?![\w.])", after)
    if before or counted:
        return int(before or counted[1])  # type: ignore[index]
    return per_node if re.search(r"(per|/|a)\s*gpu\b", after.lower()) else 0
