"""Is the planner right? Its predictions beside published measurements: `python -m bench.planner FILE.csv`.

It reads rows in the columns of `planner/published/throughput.csv`: model shape, layout, batch, recomputation, precision
and GPU. Where the file has results, it prints the mean and the largest error by source. `--fit` fits the rates of
`planner/hardware.py` to the file's rows of quality A. It also prints the errors on sources that the fit did not see.
"""

import csv
import dataclasses
from collections import defaultdict
from pathlib import Path

import numpy as np

from commands import cli
from planner.fit import fit, left_out, predict, publisher, relative_errors
from planner.hardware import GIGA, TERA
from planner.memory import peak_bytes
from planner.published import decoding
from planner.published.rows import DEFINITIONS, PUBLISHED, Measurement, read
from planner.work import Array
from support.errors import UserError
from support.files import whole_file


def show_errors(sources: list[str], columns: dict[str, Array], what: str = "step time") -> None:
    """Print mean and largest absolute error by source, a pair a column."""
    print(f"{f'{what}: mean and largest error, %':44s}  rows" + "".join(f"  {name:>22s}" for name in columns))
    places = defaultdict(list)
    for index, source in enumerate(sources):
        places[source].append(index)
    places["all"] = list(range(len(sources)))
    for source, place in places.items():
        cells = [abs(values[place]) * 100 for values in columns.values()]
        print(f"{source:44.44s}  {len(place):4d}" + "".join(f"  {c.mean():13.1f} {c.max():8.1f}" for c in cells))
    inside = [f"{100 * np.mean(abs(values) <= 0.2):.1f}%" for values in columns.values()]
    print(f"{'rows within 20%':44s}      " + "".join(f"  {text:>22s}" for text in inside))


def show_comparison(rows: list[Measurement], seconds: Array, memory_gb: Array) -> None:
    """Print how far the predictions are from what was measured, where anything was, and what was not understood."""
    for title, wanted in (("quality A", ["A"]), ("other quality", sorted({row.quality for row in rows} - {"A"}))):
        place = [index for index, row in enumerate(rows) if row.seconds and row.quality in wanted]
        if place:
            chosen = [rows[index] for index in place]
            print(title)
            show_errors([row.source for row in chosen], {"": relative_errors(chosen, seconds[place])})
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
        for source, percent in wrong.items():
            print(f"{source:56.56s}  {len(percent):4d}  {np.mean(percent):13.1f} {max(percent):8.1f}")


def write_predictions(path: Path, rows: list[Measurement], seconds: Array, memory_gb: Array) -> None:
    """The predictions as CSV, which is there whole or not at all."""
    with whole_file(path, "w") as stream:
        writer = csv.writer(stream)
        writer.writerow(["row_id", "predicted_step_seconds", "predicted_tflops_per_gpu", "predicted_memory_gb"])
        for row, time, size in zip(rows, seconds, memory_gb, strict=True):
            writer.writerow([row.row_id, f"{time:.5g}", f"{row.flops_per_gpu / time / TERA:.5g}", f"{size:.5g}"])


def show_fit(rows: list[Measurement]) -> None:
    """Print the fitted rates of each kind of GPU, and the errors with and without each source in the fit."""
    good = [row for row in rows if row.quality == "A" and row.seconds]
    if not good:
        raise UserError("there are no rows of quality A with a measured step time to fit to")
    rates = {kind: fit(good, kind) for kind in sorted({row.machine.gpu.kind for row in good})}
    for kind, fitted in rates.items():
        print(f"{kind}: {', '.join(f'{key}={value:.3g}' for key, value in dataclasses.asdict(fitted).items())}")
    columns = {
        "fitted": predict(good, rates),
        "source left out": left_out(good, lambda row: row.source),
        "publisher left out": left_out(good, publisher),
    }
    show_errors(
        [row.source for row in good], {name: relative_errors(good, seconds) for name, seconds in columns.items()}
    )


def show_decoding() -> None:
    """Print the rates of decoding, fitted to the published times of writing, and the errors on these."""
    rows = decoding.read()
    fitted, seconds = decoding.fit(rows), np.array([row.seconds for row in rows])
    print(", ".join(f"{name}={getattr(fitted, name):.3g}" for name in decoding.FITTED))
    columns = {"as planned": decoding.predict(rows), "model left out": decoding.left_out(rows)}
    sources = [row.source.replace("FasterTransformer ", "") for row in rows]
    show_errors(sources, {name: found / seconds - 1 for name, found in columns.items()}, "writing")


def main() -> None:
    parser = cli.Parser("Compare the planner's predictions with published measurements, row by row.")
    parser.add_argument("file", nargs="?", default=str(PUBLISHED), metavar="FILE.csv", help="rows to predict")
    parser.add_argument("--out", metavar="CSV", help="write the predictions there")
    parser.add_argument("--decode", action="store_true", help="published times of writing instead, and the fit to them")
    parser.add_argument("--fit", action="store_true", help="fit the rates to the file's rows and cross-validate")
    args = parser.parse_args()

    def job() -> None:
        if args.decode:
            show_decoding()
            return
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
            write_predictions(Path(args.out), rows, seconds, memory_gb)
        show_comparison(rows, seconds, memory_gb)

    cli.run_job(job)


if __name__ == "__main__":
    main()
