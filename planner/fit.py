"""What published runs say about the rates of `planner.hardware`: prediction of many rows, and the fit to them."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from planner.hardware import PRIOR, Rates
from planner.published.rows import Measurement
from planner.timing import Machine, step_time
from planner.work import Array, Variant, Work

# How far a rate may reasonably lie from its prior: the logarithm of a factor, so 0.15 is some 15%.
LOG_WIDTHS = Rates(
    matmul=0.15, narrow=0.2, memory=0.25, attention=0.5, link=0.3, network=0.5, gather=1.0, overlap=0.5, fp8=0.2,
    kernel_seconds=0.7, collective_seconds=0.7, step_seconds=1.0,
)  # fmt: skip
LOG_NOISE = 0.06  # of a published step time, a logarithm too; larger errors count less
MOST_SHARE = 0.97  # no share of a peak is more


def stack(works: Iterable[Work]) -> Work:
    """Many steps as one, with an array for each field."""
    steps = list(works)

    def columns(kind: type[Work | Variant], values: list[Work] | list[Variant]) -> dict[str, Array]:
        names = [field.name for field in dataclasses.fields(kind) if field.name != "variant"]
        return {name: np.array([getattr(value, name) for value in values], dtype=np.float64) for name in names}

    variant = Variant(**columns(Variant, [step.variant for step in steps]))
    return Work(variant=variant, **columns(Work, steps))


def predict(rows: list[Measurement], rates: dict[str, Rates] | None = None) -> Array:
    """Seconds of a step for each row; `rates` replaces those of a kind of GPU."""
    seconds = np.zeros(len(rows))
    kinds = [row.machine.gpu.name for row in rows]
    for name in set(kinds):
        place = [index for index, kind in enumerate(kinds) if kind == name]
        machines = [rows[index].machine for index in place]
        gpu = machines[0].gpu
        gpu = dataclasses.replace(gpu, rates=(rates or {}).get(gpu.kind, gpu.rates))
        per_node, network, link = np.array([(m.gpus_per_node, m.network, m.link) for m in machines]).T
        work = stack(rows[index].work for index in place)
        seconds[place] = step_time(work, Machine(gpu, per_node, network, link)).seconds
    return seconds


def fit(rows: list[Measurement], kind: str) -> Rates:
    """The rates of one kind of GPU: robust least squares of log(predicted / measured), drawn towards the priors."""
    rows = [row for row in rows if row.machine.gpu.kind == kind]
    names = [field.name for field in dataclasses.fields(Rates)]
    prior, width = (np.array([getattr(rates, name) for name in names]) for rates in (PRIOR, LOG_WIDTHS))
    prior = np.log(prior)
    most = np.array([np.inf if name.endswith("seconds") or name == "overlap" else np.log(MOST_SHARE) for name in names])
    measured = np.log([row.seconds for row in rows])

    def rates(point: Array) -> Rates:
        return Rates(**dict(zip(names, np.exp(np.minimum(point, most)).tolist(), strict=True)))

    def residuals(point: Array) -> Array:
        """What is to become small: each row's error in units of its noise, bent so that outliers count less, and each
        rate's distance from its prior."""
        wrong = (np.log(predict(rows, {kind: rates(point)})) - measured) / LOG_NOISE
        return np.concatenate([2 * np.arcsinh(wrong / 2), (point - prior) / width])

    return rates(least_squares(residuals, prior, most))


def least_squares(residuals: Callable[[Array], Array], start: Array, most: Array) -> Array:
    """The point near `start`, and nowhere above `most`, whose residuals have the least sum of squares."""
    point, nudge = start.copy(), 1e-3
    here, stiffness = residuals(point), 1.0
    for _ in range(60):  # Levenberg and Marquardt's steps
        slopes = np.stack([(residuals(point + nudge * unit) - here) / nudge for unit in np.eye(len(start))], axis=1)
        stiff = np.vstack([slopes, np.sqrt(stiffness) * np.eye(len(start))])
        step = np.linalg.lstsq(stiff, np.concatenate([-here, np.zeros(len(start))]), rcond=None)[0]
        there = residuals(np.minimum(point + step, most))
        if there @ there < here @ here:
            point, here, stiffness = np.minimum(point + step, most), there, stiffness / 4
        else:
            stiffness *= 8
        if np.abs(step).max() < 1e-4:
            break
    return point


def left_out(rows: list[Measurement], group: Callable[[Measurement], str]) -> Array:
    """Seconds of each row, predicted with rates that were fitted without the rows of its group."""
    seconds = np.zeros(len(rows))
    for name in sorted({group(row) for row in rows}):
        place = [index for index, row in enumerate(rows) if group(row) == name]
        others = [row for row in rows if group(row) != name]
        kinds = {rows[index].machine.gpu.kind for index in place}
        seconds[place] = predict([rows[index] for index in place], {kind: fit(others, kind) for kind in kinds})
    return seconds


def publisher(row: Measurement) -> str:
    """Who measured: several tables of one publication are not independent."""
    return row.source.split(" ")[0]


def relative_errors(rows: list[Measurement], seconds: Array) -> Array:
    """(predicted - measured) / measured step time, of each row."""
    return seconds / np.array([row.seconds for row in rows]) - 1
