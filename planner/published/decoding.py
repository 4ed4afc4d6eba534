"""Published times of writing, beside what the planner predicts: FasterTransformer's, on DGX A100 (80 GB).

`decode.csv` has its tables (docs/gpt_guide.md of NVIDIA/FasterTransformer, Apache-2.0, commit
df4a7534860137e060e18d2ebf019906120ea204 of 2023-10-19, "Performance"): fp16, `new` tokens behind prompts of `prompt`
tokens, `rows` at once, GPUs of a node on NVSwitch, 8 x 200 Gb/s between nodes. Times that ran out of memory are left
out.
"""

import csv
import dataclasses
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from model.config import GPTConfig
from model.layout import Layout
from planner.decoding import RATES, DecodeRates, decode_work, hop_seconds, stage_seconds
from planner.fit import LOG_NOISE, MOST_SHARE, least_squares
from planner.hardware import GIGA, find
from planner.timing import Machine
from planner.work import Array, Number

TABLE = Path(__file__).with_name("decode.csv")
# What the fit begins with and is drawn to, and how far it may reasonably lie from that: the logarithm of a factor.
PRIOR = DecodeRates(memory=0.85, cache=0.7, reduce_seconds=30e-6, across_seconds=30e-6)
LOG_WIDTHS = DecodeRates(memory=0.1, cache=0.3, reduce_seconds=0.5, across_seconds=0.7)
FITTED = ("memory", "cache", "reduce_seconds", "across_seconds")
MOST_TOKENS = 1024  # its pipeline reads in parts of as many tokens at most (src/…/utils/nccl_utils.cc)


@dataclass(frozen=True)
class Written:
    """A line of the table: what wrote, and in how many seconds."""

    source: str
    model: GPTConfig
    layout: Layout
    rows: int
    prompt: int
    new: int
    seconds: float


def read() -> list[Written]:
    """The rows of the table, those of a model and layout side by side."""
    found = []
    with open(TABLE, newline="") as stream:
        for line in csv.DictReader(stream):
            number = {name: int(text) for name, text in line.items() if name not in ("source", "milliseconds")}
            model = GPTConfig(number["layers"], number["hidden"], number["heads"], 1024, number["vocab"])
            layout = Layout(tp=number["tp"], pp=number["pp"])
            name = f"{line['source']} tensor {layout.tp} x pipeline {layout.pp}"
            sizes = (number["rows"], number["prompt"], number["new"])
            found.append(Written(name, model, layout, *sizes, float(line["milliseconds"]) / 1000))
    return found


def predict(rows: list[Written], rates: DecodeRates = RATES) -> Array:
    """Seconds of each row. Its engine is fused and starts its kernels ahead: no block waits for the host."""
    rates = dataclasses.replace(rates, launch_seconds=0.0, row_seconds=0.0)
    gpu = find("a100-80gb")
    machine = Machine(gpu, gpu.gpus_per_node, gpu.network_gb_s * GIGA, gpu.link_gb_s * GIGA)
    found: list[Array] = []
    for _, group in groupby(rows, key=lambda row: row.source):
        some = list(group)
        model, layout = some[0].model, some[0].layout
        batch, prompt, new = np.array([(row.rows, row.prompt, row.new) for row in some], dtype=float).T

        def through(tokens: Number, seen: Number, model: GPTConfig = model, layout: Layout = layout,
                    batch: Array = batch) -> Array:  # fmt: skip
            """Seconds of all rows through all stages, in parts."""
            part = np.array([_part(int(rows), int(each), layout.pp) for rows, each in np.broadcast(batch, tokens)])
            work = decode_work(model, layout, 2, part, tokens)
            each = [stage_seconds(work, machine, seen, float(s), rates).values() for s in range(layout.pp)]
            busy = np.array([np.asarray(sum(parts)) for parts in each])
            sent = (layout.pp - 1) * hop_seconds(work, machine, rates)
            return np.asarray(busy.sum(axis=0) + sent + (batch / part - 1) * busy.max(axis=0))

        found.append(through(prompt, 0.0) + (new - 1) * through(1.0, prompt + new / 2))
    return np.concatenate(found)


def _part(rows: int, tokens: int, stages: int) -> int:
    """Rows that go through a pipeline at once."""
    if stages == 1:
        return rows
    part = rows // stages if rows % stages == 0 else rows
    while part * tokens > MOST_TOKENS and part % 2 == 0:
        part //= 2
    return part


def fit(rows: list[Written]) -> DecodeRates:
    """The rates that explain these rows best: robust least squares of log(predicted / measured), drawn to the prior."""
    prior, widths = (np.array([getattr(rates, name) for name in FITTED]) for rates in (PRIOR, LOG_WIDTHS))
    prior, measured = np.log(prior), np.log([row.seconds for row in rows])

    def rates(point: Array) -> DecodeRates:
        return dataclasses.replace(RATES, **dict(zip(FITTED, np.exp(point).tolist(), strict=True)))

    def residuals(point: Array) -> Array:
        wrong = (np.log(predict(rows, rates(point))) - measured) / LOG_NOISE
        return np.concatenate([2 * np.arcsinh(wrong / 2), (point - prior) / widths])

    most = np.log([MOST_SHARE, MOST_SHARE, np.inf, np.inf])
    return rates(least_squares(residuals, prior, most))


def left_out(rows: list[Written]) -> Array:
    """Seconds of each row, predicted with rates that were fitted without the rows of its model."""
    seconds = np.zeros(len(rows))
    for model in {row.model for row in rows}:
        place = [index for index, row in enumerate(rows) if row.model == model]
        found = fit([row for row in rows if row.model != model])
        seconds[place] = predict([rows[index] for index in place], found)
    return seconds
