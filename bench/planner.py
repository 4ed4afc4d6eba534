"""Is the planner right? Its predictions beside published measurements: `python -m bench.planner FILE.csv`.

Reads rows in the columns of `bench/published/throughput.csv`: model shape, layout, batch, recomputation, precision and
GPU; prints, where the file has results, the mean and the largest error by source. `--fit` fits the rates of
`planner/hardware.py` to the file's rows of quality A and says how large the errors are on sources that were left out of
the fit.
"""

import csv
import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from commands import cli
from planner.hardware import GIGA, GPU, PRIOR, TERA, Rates, find
from planner.memory import peak_bytes
from planner.timing import Machine, step_time
from planner.work import Work
from recipes.registry import ROOT
from support.errors import UserError
from support.files import whole_file

PUBLISHED = ROOT / "bench" / "published" / "throughput.csv"
NEEDED = (
    "row_id", "gpu", "layers", "hidden", "heads", "seq", "vocab", "tp", "pp", "dp", "microbatch", "global_batch",
    "recompute", "precision",
)  # fmt: skip
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
# Gb/s of one InfiniBand adapter of each generation.
INFINIBAND = {"QDR": 40, "FDR": 56, "EDR": 100, "HDR": 200, "HDR100": 100, "NDR": 400, "NDR200": 200, "XDR": 800}
LINK_GENERATION = {"v100": 2, "a100": 3, "h100": 4, "h200": 4, "b200": 5}
LINK_GB_S = 25  # a single NVLink of generations 2 to 4, one direction

# What a source divides by the time to get its TFLOP/s, for B sequences of s tokens: see docs/planner.md.
DEFINITIONS: dict[str, Callable[[Work, Any], Any]] = {
    "hw96": lambda w, parameters: 96 * _square(w) * (1 + _attention(w) + _vocabulary(w) / 16),
    "model72": lambda w, parameters: 72 * _square(w) * (1 + _attention(w) + _vocabulary(w) / 12),
    "8pt12": lambda w, parameters: 96 * _square(w),
    "mosaic": lambda w, parameters: 3 * w.global_batch * w.seq_length * (
        2 * parameters + 4 * w.num_layers * w.hidden_size * w.seq_length
    ),
}  # fmt: skip


def _square(w: Work) -> Any:
    return w.global_batch * w.seq_length * w.num_layers * w.hidden_size**2


def _attention(w: Work) -> Any:
    return w.seq_length / (6 * w.hidden_size)


def _vocabulary(w: Work) -> Any:
    return w.vocab_rows / (w.num_layers * w.hidden_size)


@dataclass(frozen=True)
class Row:
    """A line that was understood: what was trained on what, and what was measured (0: nothing)."""

    row_id: str
    source: str
    quality: str
    machine: Machine
    work: Work
    parameters: float
    definition: str
    seconds: float
    memory_gb: float

    @property
    def flops_per_gpu(self) -> float:
        """The numerator of the source's TFLOP/s. A definition that is not known here is taken for model FLOPs."""
        count = DEFINITIONS.get(self.definition, lambda work, parameters: work.model_flops)
        return float(count(self.work, self.parameters) / self.work.gpus)


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


def read(path: Path) -> list[Row]:
    """The rows of a table. Errors: `UserError` with line and column where one is missing or impossible."""
    rows = []
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or ()]
            for column in NEEDED:
                if column not in reader.fieldnames:
                    raise UserError(f"{path} line 1: there is no column {column}; needed are {', '.join(NEEDED)}")
            for cells in reader:
                # Spreadsheets leave commas at the end of a line, and lines of commas.
                beyond: Any = cells.pop(None, ())  # type: ignore[call-overload]
                if any(cell.strip() for cell in beyond) or None in cells.values():
                    raise UserError(f"{path} line {reader.line_num}: has not as many cells as the header")
                if any(cell.strip() for cell in cells.values()):
                    rows.append(_row(Cells(path, reader.line_num, cells)))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text; give a CSV file") from None
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}") from None
    if not rows:
        raise UserError(f"{path} has no rows")
    return rows


def _row(cells: Cells) -> Row:
    try:
        gpu = find(cells.text("gpu"), cells.number("gpu_mem_gb", 0.0) or None, nearest=True)
    except ValueError as error:
        raise cells.fail("gpu", str(error)) from None
    work = _work(cells, gpu)
    definition = cells.text("tflops_def").lower()
    row = Row(
        row_id=cells.text("row_id"),
        source=cells.text("source"),
        quality=cells.text("quality"),
        machine=_machine(cells, gpu),
        work=work,
        parameters=cells.number("params_B", 0.0) * 1e9 or float(sum(work.parameters(s) for s in range(int(work.pp)))),
        definition=definition,
        seconds=cells.number("iter_time_s", 0.0) or cells.number("iter_time_s_derived", 0.0),
        memory_gb=cells.number("mem_gb_per_gpu", 0.0),
    )
    rate, tokens = cells.number("tflops_per_gpu", 0.0), cells.number("tokens_per_s_per_gpu", 0.0)
    if row.seconds or not (rate or tokens):
        return row
    stated = row.flops_per_gpu / rate / TERA if rate else work.global_batch * work.seq_length / work.gpus / tokens
    return dataclasses.replace(row, seconds=float(stated))


def _machine(cells: Cells, gpu: GPU) -> Machine:
    """GPUs of a node, their links and network, as the interconnect column states them, else as usual for the GPU.

    "NVLink 4" on a GPU whose NVLink is of another generation is the number of links.
    """
    text, per_node = cells.text("interconnect"), cells.count("gpus_per_node", gpu.gpus_per_node)
    network = network_gb_s(text, per_node) or gpu.network_gb_s
    links = re.search(r"NVLink (\d+)", text)
    link = gpu.link_gb_s
    if links and int(links[1]) and int(links[1]) != LINK_GENERATION.get(gpu.name.split("-")[0]):
        link = min(link, int(links[1]) * LINK_GB_S)
    return Machine(gpu, per_node, network * GIGA, link * GIGA)


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
    names = "|".join(sorted(INFINIBAND, key=len, reverse=True))
    generation = re.search(rf"{count}({names})\b", text)
    if generation:
        return INFINIBAND[generation[2]] / 8 * _adapters(generation[1], text[generation.end() :], per_node)
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


def _work(cells: Cells, gpu: GPU) -> Work:
    """The step of a row.

    What the columns do not state follows the software of the GPU's time: on Hopper and later attention is fused and
    tensor parallelism comes with sequence parallelism. bf16 gradients are added up in fp32 outside ZeRO stage 3.
    """
    shape, layout, engine = _shape(cells), _layout(cells), _engine(cells)
    _check_possible(cells, gpu, engine["precision"])
    arch, recompute, zero = cells.text("arch").lower(), engine["recompute"], engine["zero_stage"]
    h, tp = shape["hidden_size"], layout["tp"]
    gated = "llama" in arch or "swiglu" in arch
    fused = gpu.fused_attention or gated or "flash" in arch
    # "selective+SP" is Korthikanti's, the attention's core alone. With fused attention there are no scores to save;
    # what else is called selective there keeps a block's input, the attention's and every second product's result, as
    # torchtitan does: a third of all.
    core = recompute.startswith("selective") and (not fused or "sp" in recompute)
    most = recompute.startswith("selective") and not core
    text, precision = cells.text("precision").lower(), engine["precision"]
    summed, single = precision in ("bf16", "fp8") and (zero < 3 or layout["pp"] > 1), precision == "fp32"
    return Work(
        **shape,
        **layout,
        sequence_parallel=tp > 1 and ("sp" in recompute or gpu.fused_attention),
        zero_stage=zero,
        full=1.0 if recompute.startswith("full") else 2 / 3 if most else 0.0,
        selective=float(core),
        weight_bytes=4 if single else 2,
        gradient_bytes=6 if "fp32 grad" in text else 4 if summed or single else 2,
        reduce_bytes=4 if "amp" in text or summed or single else 2,
        bucket_bytes=4 if single else 2,
        master_bytes={"fp16": 8, "fp32": 0}.get(precision, 4),
        logit_bytes=4 if "flash" in arch else 14 if gated and zero == 3 else 10,
        fused=fused,
        dropout=not fused,
        regathered=True,
        early_stop=fused,
        fp8=precision == "fp8" and gpu.fp8_tflops > 0,
        ffn_matrices=3 if gated else 2,
        kv_size=_grouped_keys(cells, shape) if gated else h,
        tied=not gated,
        biases=not gated,
    )


def _check_possible(cells: Cells, gpu: GPU, precision: str) -> None:
    """Refuse what the GPU or the planner cannot do. Errors: `UserError` that names the column."""
    if (precision == "fp8" and not gpu.fp8_tflops) or (precision == "bf16" and not gpu.bf16):
        raise cells.fail("precision", f"a {gpu.name} has no {precision}")
    if re.search(r"\bmoe\b|mixture|mixtral|expert", cells.text("arch").lower()):
        raise cells.fail("arch", f"{cells.text('arch')!r}: mixtures of experts are not planned; take the row out")
    for column in ("experts", "num_experts", "moe_experts"):
        if cells.number(column, 1.0) > 1:
            raise cells.fail(column, f"{cells.text(column)}: mixtures of experts are not planned; take the row out")


def _shape(cells: Cells) -> dict[str, int]:
    layers, h, heads = (cells.count(column) for column in ("layers", "hidden", "heads"))
    if h % heads:
        raise cells.fail("heads", f"{heads} heads do not divide the hidden size {h}")
    return {
        "num_layers": layers,
        "hidden_size": h,
        "num_attention_heads": heads,
        "ffn_hidden_size": _ffn(cells),
        "seq_length": cells.count("seq"),
        "vocab_rows": cells.count("vocab"),
    }


def _ffn(cells: Cells) -> int:
    return cells.count("ffn", 4 * cells.count("hidden"))


def _layout(cells: Cells) -> dict[str, int]:
    tp, pp, cp, layers = cells.count("tp"), cells.count("pp"), cells.count("cp", 1), cells.count("layers")
    dp = cells.count("dp", None if cells.text("dp") else cells.count("gpus") // (tp * pp * cp))
    gpus, micro, batch = cells.count("gpus", tp * pp * dp * cp), cells.count("microbatch"), cells.count("global_batch")
    if gpus != tp * pp * dp * cp:
        raise cells.fail("gpus", f"{gpus} is not tp {tp} x pp {pp} x dp {dp} x cp {cp} = {tp * pp * dp * cp}")
    virtual = cells.count("virtual_stages", 1)
    if pp > layers:
        raise cells.fail("pp", f"{pp} stages are more than the {layers} layers")
    for column, size in (("heads", cells.count("heads")), ("hidden", cells.count("hidden")), ("ffn", _ffn(cells))):
        if size % tp:
            raise cells.fail(column, f"{size} does not divide by tp {tp}")
    if virtual > 1 and pp == 1:
        raise cells.fail("virtual_stages", f"{virtual} without a pipeline (pp 1)")
    # Embedding and head may count as a layer each, where more than them is on a stage.
    counted = (layers + 2) % (pp * virtual) == 0 and layers + 2 > pp * virtual
    if virtual > 1 and layers % (pp * virtual) and not counted:
        raise cells.fail("virtual_stages", f"{layers} layers do not divide by pp {pp} x {virtual} virtual stages")
    if batch % (micro * dp):
        raise cells.fail("global_batch", f"{batch} does not divide by microbatch {micro} x dp {dp}")
    return {
        "tp": tp,
        "pp": pp,
        "dp": dp,
        "ulysses": cp,
        "micro_batch": micro,
        "global_batch": batch,
        "last_blocks": _last_blocks(layers, pp),
        "virtual_stages": virtual,
    }


def _engine(cells: Cells) -> dict[str, Any]:
    stated = cells.text("precision").lower()
    precision = next((name for name, spelt in PRECISIONS.items() if re.search(spelt, stated)), None)
    if precision is None:
        raise cells.fail("precision", f"{cells.text('precision')!r} is none of {', '.join(PRECISIONS)}")
    stated = cells.text("recompute").lower()
    kind = next((name for name, spelt in RECOMPUTE.items() if re.match(spelt, stated)), None)
    if kind is None:
        raise cells.fail("recompute", f"{stated!r} is none of {', '.join(RECOMPUTE)}")
    recompute = stated if stated.startswith(kind) else kind  # "selective+SP" says more
    zero = cells.number("zero_stage", 1, whole=True)
    if zero > 3:
        raise cells.fail("zero_stage", f"{zero:g} is none of 0, 1, 2, 3")
    return {"precision": precision, "recompute": recompute, "zero_stage": zero}


def _grouped_keys(cells: Cells, shape: dict[str, int]) -> int:
    """Width of the keys where heads share them: what the stated parameters leave for it, in whole heads."""
    parameters, layers, h = cells.number("params_B", 0.0) * 1e9, shape["num_layers"], shape["hidden_size"]
    if not parameters:
        return h
    others = 2 * shape["vocab_rows"] * h + layers * (2 * h * h + 3 * h * shape["ffn_hidden_size"])
    heads, width = shape["num_attention_heads"], h // shape["num_attention_heads"]
    return min(max(round((parameters - others) / (2 * layers * h) / width), 1), heads) * width


def _last_blocks(layers: int, pp: int) -> int:
    """Blocks of the last stage: as many as of the others, or one less where embedding and head count as blocks."""
    if layers % pp and (layers + 2) % pp == 0:
        return (layers + 2) // pp - 1
    return layers // pp


def stack(works: Iterable[Work]) -> Work:
    """Many steps as one, with an array for each field."""
    listed = list(works)
    return Work(**{f.name: np.array([getattr(w, f.name) for w in listed]) for f in dataclasses.fields(Work)})


def predict(rows: list[Row], rates: dict[str, Rates] | None = None) -> Any:
    """Seconds of a step for each row; `rates` replaces those of a kind of GPU."""
    seconds = np.zeros(len(rows))
    kinds = [row.machine.gpu.name for row in rows]
    for name in set(kinds):
        place = [index for index, kind in enumerate(kinds) if kind == name]
        machines = [rows[index].machine for index in place]
        gpu = machines[0].gpu
        gpu = dataclasses.replace(gpu, rates=(rates or {}).get(_kind(gpu), gpu.rates))
        per_node, network, link = np.array([(m.gpus_per_node, m.network, m.link) for m in machines]).T
        work = stack(rows[index].work for index in place)
        seconds[place] = step_time(work, Machine(gpu, per_node, network, link)).seconds
    return seconds


def _kind(gpu: GPU) -> str:
    return gpu.name.split("-")[0]


# How far a rate may reasonably lie from its prior, as a factor's logarithm.
WIDTHS = Rates(
    matmul=0.15, narrow=0.2, memory=0.25, attention=0.5, link=0.3, network=0.5, gather=1.0, overlap=0.5, fp8=0.2,
    kernel_seconds=0.7, collective_seconds=0.7, step_seconds=1.0,
)  # fmt: skip
NOISE = 0.06  # of a published step time, as a factor's logarithm; larger residuals count less
MOST = 0.97  # no share of a peak is more


def fit(rows: list[Row], kind: str) -> Rates:
    """The rates of one kind of GPU: robust least squares of log(predicted / measured), drawn towards the priors."""
    rows = [row for row in rows if _kind(row.machine.gpu) == kind]
    names = [field.name for field in dataclasses.fields(Rates)]
    prior, width = (np.array([getattr(rates, name) for name in names]) for rates in (PRIOR, WIDTHS))
    prior = np.log(prior)
    most = np.array([np.inf if name.endswith("seconds") or name == "overlap" else np.log(MOST) for name in names])
    measured = np.log([row.seconds for row in rows])

    def rates(point: Any) -> Rates:
        return Rates(**dict(zip(names, np.exp(np.minimum(point, most)).tolist(), strict=True)))

    def residuals(point: Any) -> Any:
        """Of the rows, each in units of its noise and bent so that outliers count less, and of the priors."""
        wrong = (np.log(predict(rows, {kind: rates(point)})) - measured) / NOISE
        return np.concatenate([2 * np.arcsinh(wrong / 2), (point - prior) / width])

    point, nudge = prior.copy(), 1e-3
    here, stiffness = residuals(point), 1.0
    for _ in range(60):  # Levenberg and Marquardt's steps
        slopes = np.stack([(residuals(point + nudge * unit) - here) / nudge for unit in np.eye(len(names))], axis=1)
        stiff = np.vstack([slopes, np.sqrt(stiffness) * np.eye(len(names))])
        step = np.linalg.lstsq(stiff, np.concatenate([-here, np.zeros(len(names))]), rcond=None)[0]
        there = residuals(np.minimum(point + step, most))
        if there @ there < here @ here:
            point, here, stiffness = np.minimum(point + step, most), there, stiffness / 4
        else:
            stiffness *= 8
        if np.abs(step).max() < 1e-4:
            break
    return rates(point)


def left_out(rows: list[Row], group: Callable[[Row], str]) -> Any:
    """Seconds of each row, predicted with rates that were fitted without the rows of its group."""
    seconds = np.zeros(len(rows))
    for name in sorted({group(row) for row in rows}):
        place = [index for index, row in enumerate(rows) if group(row) == name]
        others = [row for row in rows if group(row) != name]
        kinds = {_kind(rows[index].machine.gpu) for index in place}
        seconds[place] = predict([rows[index] for index in place], {kind: fit(others, kind) for kind in kinds})
    return seconds


def publisher(row: Row) -> str:
    """Who measured: several tables of one publication are not independent."""
    return row.source.split(" ")[0]


def errors(rows: list[Row], seconds: Any) -> Any:
    """Relative errors of the step time."""
    return seconds / np.array([row.seconds for row in rows]) - 1


def table(rows: list[Row], columns: dict[str, Any]) -> None:
    """Print mean and largest absolute error by source, a pair a column."""
    print(f"{'step time: mean and largest error, %':44s}  rows" + "".join(f"  {name:>22s}" for name in columns))
    places = defaultdict(list)
    for index, row in enumerate(rows):
        places[row.source].append(index)
    places["all"] = list(range(len(rows)))
    for source, place in places.items():
        cells = [abs(values[place]) * 100 for values in columns.values()]
        print(f"{source:44.44s}  {len(place):4d}" + "".join(f"  {c.mean():13.1f} {c.max():8.1f}" for c in cells))
    inside = [f"{100 * np.mean(abs(values) <= 0.2):.1f}%" for values in columns.values()]
    print(f"{'rows within 20%':44s}      " + "".join(f"  {text:>22s}" for text in inside))


def report(rows: list[Row], seconds: Any, memory_gb: Any) -> None:
    """Print how far the predictions are from what was measured, where anything was, and what was not understood."""
    for title, wanted in (("quality A", ["A"]), ("other quality", sorted({row.quality for row in rows} - {"A"}))):
        place = [index for index, row in enumerate(rows) if row.seconds and row.quality in wanted]
        if place:
            chosen = [rows[index] for index in place]
            print(title)
            table(chosen, {"": errors(chosen, seconds[place])})
    unknown = sorted({row.definition for row in rows} - {*DEFINITIONS, ""})
    if unknown:
        print(
            f"tflops_def not known here, taken for model FLOPs: {', '.join(unknown)}; known: {', '.join(DEFINITIONS)}"
        )
    place = [index for index, row in enumerate(rows) if row.memory_gb]
    if place:
        print(f"{'memory of the fullest rank: mean and largest error, %':56s}  rows")
        wrong = defaultdict(list)
        for index in place:
            error = abs(memory_gb[index] / rows[index].memory_gb - 1) * 100
            wrong[rows[index].source].append(error)
            wrong["all"].append(error)
        wrong["all"] = wrong.pop("all")  # last
        for source, errors_ in wrong.items():
            print(f"{source:56.56s}  {len(errors_):4d}  {np.mean(errors_):13.1f} {max(errors_):8.1f}")


def write(path: Path, rows: list[Row], seconds: Any, memory_gb: Any) -> None:
    """The predictions as CSV, which is there whole or not at all."""
    with whole_file(path, "w") as stream:
        writer = csv.writer(stream)
        writer.writerow(["row_id", "predicted_step_seconds", "predicted_tflops_per_gpu", "predicted_memory_gb"])
        for row, time, size in zip(rows, seconds, memory_gb, strict=True):
            writer.writerow([row.row_id, f"{time:.5g}", f"{row.flops_per_gpu / time / TERA:.5g}", f"{size:.5g}"])


def show_fit(rows: list[Row]) -> None:
    """Print the fitted rates of each kind of GPU, and the errors with and without each source in the fit."""
    good = [row for row in rows if row.quality == "A" and row.seconds]
    if not good:
        raise UserError("there are no rows of quality A with a measured step time to fit to")
    rates = {kind: fit(good, kind) for kind in sorted({_kind(row.machine.gpu) for row in good})}
    for kind, fitted in rates.items():
        print(f"{kind}: {', '.join(f'{key}={value:.3g}' for key, value in dataclasses.asdict(fitted).items())}")
    columns = {
        "fitted": predict(good, rates),
        "source left out": left_out(good, lambda row: row.source),
        "publisher left out": left_out(good, publisher),
    }
    table(good, {name: errors(good, seconds) for name, seconds in columns.items()})


def main() -> None:
    parser = cli.Parser("Compare the planner's predictions with published measurements, row by row.")
    parser.add_argument("file", nargs="?", default=str(PUBLISHED), metavar="FILE.csv", help="rows to predict")
    parser.add_argument("--out", metavar="CSV", help="write the predictions there")
    parser.add_argument("--fit", action="store_true", help="fit the rates to the file's rows and cross-validate")
    args = parser.parse_args()

    def job() -> None:
        rows = read(Path(args.file))
        if args.out and args.fit:
            raise UserError("--out does not go with --fit; write predictions in a second call without --fit")
        if args.out and Path(args.out).resolve() == Path(args.file).resolve():
            raise UserError(f"--out {args.out} is the table itself; give another file")
        if args.fit:
            show_fit(rows)
            return
        seconds = predict(rows)
        memory_gb = np.array([float(peak_bytes(row.work)) / GIGA for row in rows])
        if args.out:
            write(Path(args.out), rows, seconds, memory_gb)
        report(rows, seconds, memory_gb)

    cli.run_job(job)


if __name__ == "__main__":
    main()
