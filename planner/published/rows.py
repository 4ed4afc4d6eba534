"""Published measurements as steps that the planner can predict: what was trained on what, and what was measured."""

import csv
import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from planner.hardware import GIGA, GPU, TERA, find
from planner.published.cells import PRECISIONS, RECOMPUTE, Cells, network_gb_s
from planner.timing import Machine
from planner.work import Number, Variant, Work
from support.errors import UserError

PUBLISHED = Path(__file__).with_name("throughput.csv")
NEEDED = (
    "row_id", "gpu", "layers", "hidden", "heads", "seq", "vocab", "tp", "pp", "dp", "microbatch", "global_batch",
    "recompute", "precision",
)  # fmt: skip
LINK_GENERATION = {"v100": 2, "a100": 3, "h100": 4, "h200": 4, "b200": 5}
LINK_GB_S = 25  # a single NVLink of generations 2 to 4, one direction

# What a source divides by the time to get its TFLOP/s, for B sequences of s tokens: see docs/planner.md.
DEFINITIONS: dict[str, Callable[[Work, float], Number]] = {
    "hw96": lambda w, parameters: 96 * _square(w) * (1 + _attention(w) + _vocabulary(w) / 16),
    "model72": lambda w, parameters: 72 * _square(w) * (1 + _attention(w) + _vocabulary(w) / 12),
    "8pt12": lambda w, parameters: 96 * _square(w),
    "mosaic": lambda w, parameters: 3 * w.global_batch * w.seq_length * (
        2 * parameters + 4 * w.num_layers * w.hidden_size * w.seq_length
    ),
}  # fmt: skip


def _square(w: Work) -> Number:
    return w.global_batch * w.seq_length * w.num_layers * w.hidden_size**2


def _attention(w: Work) -> Number:
    return w.seq_length / (6 * w.hidden_size)


def _vocabulary(w: Work) -> Number:
    return w.vocab_rows / (w.num_layers * w.hidden_size)


@dataclass(frozen=True)
class Measurement:
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


class Engine(NamedTuple):
    """What a row says about the engine: a key of `PRECISIONS`, one of `RECOMPUTE` or more words, a ZeRO stage."""

    precision: str
    recompute: str
    zero_stage: int


def read(path: Path) -> list[Measurement]:
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
                beyond: list[str] = cells.pop(None, [])  # type: ignore[call-overload, assignment]
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


def _row(cells: Cells) -> Measurement:
    try:
        gpu = find(cells.text("gpu"), cells.number("gpu_mem_gb", 0.0) or None, nearest=True)
    except ValueError as error:
        raise cells.fail("gpu", str(error)) from None
    work = _work(cells, gpu)
    definition = cells.text("tflops_def").lower()
    row = Measurement(
        row_id=cells.text("row_id"),
        source=cells.text("source"),
        quality=cells.text("quality"),
        machine=_machine(cells, gpu),
        work=work,
        parameters=cells.number("params_B", 0.0) * GIGA or float(sum(work.parameters(s) for s in range(int(work.pp)))),
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
    if links and int(links[1]) and int(links[1]) != LINK_GENERATION.get(gpu.kind):
        link = min(link, int(links[1]) * LINK_GB_S)
    return Machine(gpu, per_node, network * GIGA, link * GIGA)


def _work(cells: Cells, gpu: GPU) -> Work:
    """The step of a row.

    What the columns do not state follows the software of the GPU's time: on Hopper and later attention is fused and
    tensor parallelism comes with sequence parallelism. bf16 gradients are added up in fp32 outside ZeRO stage 3.
    """
    shape, layout, engine = _shape(cells), _layout(cells), _engine(cells)
    _check_possible(cells, gpu, engine.precision)
    recompute, zero, precision = engine.recompute, engine.zero_stage, engine.precision
    variant = _variant(cells, gpu, engine, shape)
    # "selective+SP" is Korthikanti's, the attention's core alone. With fused attention there are no scores to save;
    # what else is called selective there keeps a block's input, the attention's and every second product's result, as
    # torchtitan does: a third of all.
    core = recompute.startswith("selective") and (not variant.fused or "sp" in recompute)
    most = recompute.startswith("selective") and not core
    text = cells.text("precision").lower()
    summed, single = precision in ("bf16", "fp8") and (zero < 3 or layout["pp"] > 1), precision == "fp32"
    return Work(
        **shape,
        **layout,
        sequence_parallel=layout["tp"] > 1 and ("sp" in recompute or gpu.fused_attention),
        zero_stage=zero,
        full=1.0 if recompute.startswith("full") else 2 / 3 if most else 0.0,
        selective=float(core),
        weight_bytes=4 if single else 2,
        gradient_bytes=6 if "fp32 grad" in text else 4 if summed or single else 2,
        reduce_bytes=4 if "amp" in text or summed or single else 2,
        bucket_bytes=4 if single else 2,
        master_bytes={"fp16": 8, "fp32": 0}.get(precision, 4),
        dropout=not variant.fused,
        variant=variant,
    )


def _variant(cells: Cells, gpu: GPU, engine: Engine, shape: dict[str, int]) -> Variant:
    """What the row's software and model do in another way than this project's."""
    arch = cells.text("arch").lower()
    gated = "llama" in arch or "swiglu" in arch
    fused = gpu.fused_attention or gated or "flash" in arch
    return Variant(
        gather_hidden=True,
        virtual_stages=cells.count("virtual_stages", 1),
        logit_bytes=4 if "flash" in arch else 14 if gated and engine.zero_stage == 3 else 10,
        fused=fused,
        regathered=True,
        early_stop=fused,
        fp8=engine.precision == "fp8",
        ffn_matrices=3 if gated else 2,
        kv_size=_grouped_keys(cells, shape) if gated else shape["hidden_size"],
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
    }


def _engine(cells: Cells) -> Engine:
    stated = cells.text("precision").lower()
    precision = next((name for name, spelt in PRECISIONS.items() if re.search(spelt, stated)), None)
    if precision is None:
        raise cells.fail("precision", f"{cells.text('precision')!r} is none of {', '.join(PRECISIONS)}")
    stated = cells.text("recompute").lower()
    kind = next((name for name, spelt in RECOMPUTE.items() if re.match(spelt, stated)), None)
    if kind is None:
        raise cells.fail("recompute", f"{stated!r} is none of {', '.join(RECOMPUTE)}")
    recompute = stated if stated.startswith(kind) else kind  # "selective+SP" says more
    zero = int(cells.number("zero_stage", 1, whole=True))
    if zero > 3:
        raise cells.fail("zero_stage", f"{zero} is none of 0, 1, 2, 3")
    return Engine(precision, recompute, zero)


def _grouped_keys(cells: Cells, shape: dict[str, int]) -> int:
    """Width of the keys where heads share them: what the stated parameters leave for it, in whole heads."""
    parameters, layers, h = cells.number("params_B", 0.0) * GIGA, shape["num_layers"], shape["hidden_size"]
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
