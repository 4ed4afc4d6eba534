"""Runs beside each other: where they differ, and their losses at equal tokens and at equal time."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.samples.taught import KINDS, REFERENCE
from recipes import settings
from recipes.recipe import Recipe
from run import record
from run.directory import read_data, read_recipe
from run.metrics import PAIR, loss_unit, read_metrics
from run.overlay import WINDOW, Array, Curve, Drawn, curve, draw, picture
from run.report import bits_per_byte
from run.status import status_of
from support import json_lines
from support.errors import UserError
from support.json_object import JsonObject

LEAST, MOST = 2, 8
# Of the resolved JSON: where the run's files lie, and what is ours.
LEFT_OUT = ("output_path", "job_name", "steps_per_print")


@dataclass(frozen=True)
class Told:
    """What a run directory tells of its run."""

    path: Path
    label: str

    @cached_property
    def recipe(self) -> Recipe:
        return read_recipe(self.path)

    @cached_property
    def curve(self) -> Curve:
        return curve(self.path, self.recipe.model.seq_length)

    @cached_property
    def data(self) -> JsonObject:
        return read_data(self.path)

    @cached_property
    def bytes_per_token(self) -> float:
        return float(self.data["bytes_per_token"])

    @cached_property
    def parent(self) -> record.Parent | None:
        known = record.read(self.path)
        return known.parent if known else None

    @property
    def branched_at(self) -> int | None:
        """Tokens at which a branch left its parent."""
        if self.parent is None or self.parent.tuned:  # a run that tunes counts from nothing on
            return None
        return self.parent.consumed_samples * self.recipe.model.seq_length

    @cached_property
    def tokeniser(self) -> str:
        """What two runs share whose losses are of the same tokens: a hash of the tokeniser's copy."""
        file = self.path / "tokeniser" / "tokenizer.json"
        if file.exists():
            return hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        return " ".join(f"{part['source']['tokeniser']} {part['vocab_size']}" for part in self.data["parts"])

    @cached_property
    def unit(self) -> str:
        """What the losses are means over."""
        return loss_unit(self.recipe)

    def bits(self, loss: float | None) -> float | None:
        """A loss as bits a byte; None where there is none, and of pairs."""
        return None if loss is None or self.unit == PAIR else bits_per_byte(loss, self.bytes_per_token)

    @cached_property
    def final_loss(self) -> float | None:
        """The validation loss at the end, over more samples than those on the way; None before the end."""
        noted = [line.get("final_validation_loss") for line in read_metrics(self.path / "metrics.jsonl")[-1:]]
        report = record.read_object(self.path / "report.json") if len(self.curve.tokens) else {}
        # A resumed run has the report of its earlier end.
        old = report.get("validation_loss") if report.get("tokens") == self.curve.tokens[-1:].sum() else None
        return next((float(value) for value in (*noted, old) if value is not None and math.isfinite(value)), None)

    @property
    def state(self) -> str:
        """Whether the run goes on, or how its last start ended."""
        return status_of(self.path)


def told(paths: Sequence[Path]) -> list[Told]:
    """The runs of some directories, by different labels where the directories differ."""
    labels = [record.label(path) for path in paths]
    if len(set(labels)) < len({path.resolve() for path in paths}):
        labels = [f"{path.resolve().parent.name}/{label}" for path, label in zip(paths, labels, strict=True)]
    return [Told(path, label) for path, label in zip(paths, labels, strict=True)]


def compare(runs: Sequence[Told]) -> JsonObject:
    """The comparison of two to eight runs. docs/json.md has its keys.

    Errors: `UserError` for another number of runs, and for a directory that is none of a run.
    """
    if not LEAST <= len(runs) <= MOST:
        raise UserError(
            f"compare takes {LEAST} to {MOST} runs, and {len(runs)} were given; name them one after another"
        )
    stepped = [run for run in runs if len(run.curve.tokens)]
    equal = [
        found
        for of in ("validation", "training")
        for axis in ("tokens", "seconds")
        if (found := _at_equal(of, axis, runs, stepped))
    ]
    return {
        "runs": [_summary(run, stepped) for run in runs],
        "same_tokeniser": same_tokeniser(runs),
        "equal": equal,
        "differences": differences(runs),
        "remarks": remarks(runs),
    }


def _summary(run: Told, stepped: Sequence[Told]) -> JsonObject:
    values: JsonObject = {
        "name": run.label,
        "path": str(run.path),
        "recipe": run.recipe.name,
        "state": run.state,
        "parent": run.parent.path if run.parent else None,
        "branched_at_tokens": run.branched_at,
        "step": 0,
        "tokens": 0,
        "seconds": 0.0,
        "tokens_per_second": None,
        "speed_ratio": None,
        "final_validation_loss": run.final_loss,
        "final_bits_per_byte": run.bits(run.final_loss),
    }
    if run in stepped:
        values["step"] = read_metrics(run.path / "metrics.jsonl")[-1]["step"]
        values["tokens"], values["seconds"] = int(run.curve.tokens[-1]), float(run.curve.seconds[-1])
        values["tokens_per_second"], values["speed_ratio"] = speed(run), speed(run) / speed(stepped[0])
    return values


def speed(run: Told) -> float:
    """Tokens a second, the median over the steps: the first ones of a process are slow."""
    return float(np.median(run.curve.speeds))


def _at_equal(of: str, axis: str, runs: Sequence[Told], stepped: Sequence[Told]) -> JsonObject | None:
    """Losses at the last place that all runs with steps reached: between two evaluations on a straight line, training
    losses as the mean of the tokens before. None where there is no such place."""
    window = WINDOW * min((float(run.curve.tokens[-1]) for run in stepped), default=0.0)
    lines = {id(run): _line(run.curve, of, axis, window) for run in stepped}
    if len(stepped) < LEAST or not all(len(places) for places, _ in lines.values()):
        return None
    at = min(float(places[-1]) for places, _ in lines.values())
    if at < max(float(places[0]) for places, _ in lines.values()):
        return None
    losses = [float(np.interp(at, *lines[id(run)])) if id(run) in lines else None for run in runs]
    bits = [run.bits(loss) for run, loss in zip(runs, losses, strict=True)]
    return {"of": of, "by": axis, "at": at, "losses": losses, "bits_per_byte": bits}


def _line(curve: Curve, of: str, axis: str, window: float) -> tuple[Array, Array]:
    """Places on an axis and the losses there, where they are finite."""
    places = curve.along(axis)
    if of == "validation":
        return places[curve.evaluations], curve.held_out
    losses = curve.smoothed(window)
    return places[np.isfinite(losses)], losses[np.isfinite(losses)]


def differences(runs: Sequence[Told]) -> list[JsonObject]:
    """What differs of recipe, resolved JSON, starts and data: a value of each run, None where it has none."""
    readers = {"recipe": _recipe, "json": _json, "start": _starts, "data": _data}
    found = []
    for of, read in readers.items():
        each = [read(run) for run in runs]
        for name in dict.fromkeys(name for facts in each for name in facts):
            values = [facts.get(name) for facts in each]
            if any(value != values[0] for value in values):
                found.append({"of": of, "name": name, "values": values})
    return found


def _flat(values: JsonObject, before: str = "") -> JsonObject:
    """The leaves of nested objects, by their dotted names."""
    found: JsonObject = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{before}{name}.")
        elif name not in LEFT_OUT:
            found[before + name] = value
    return found


def _recipe(run: Told) -> JsonObject:
    return _flat(json.loads(json.dumps(settings.plain(run.recipe, ("name", "source", "status")))))


def _json(run: Told) -> JsonObject:
    """The resolved JSON without what is as the recipe says: that stands there."""
    asked = run.recipe.engine_values()
    found = _flat(record.read_object(run.path / "ds_config.resolved.json"))
    return {name: value for name, value in found.items() if name not in asked or asked[name] != value}


def _starts(run: Told) -> JsonObject:
    """With what a run was started: all values in their order, where its starts differ."""
    names = ("commit", "python", "versions", "device", "world_size", "max_steps")
    lines = json_lines.read(run.path / "starts.jsonl")
    starts = [_flat({name: line[name] for name in names if name in line}) for line in lines]
    starts = [start | ({"commit": _short(start["commit"])} if "commit" in start else {}) for start in starts]
    values = {
        name: list(dict.fromkeys(start[name] for start in starts if name in start))
        for start in starts
        for name in start
    }
    return {name: each[0] if len(each) == 1 else ", then ".join(map(str, each)) for name, each in values.items()}


def _short(commit: str) -> str:
    """A commit that people can read; a changed tree stays one."""
    return commit[:12] + ("-dirty" if commit.endswith("-dirty") else "")


def _data(run: Told) -> JsonObject:
    """The prepared data: their sizes and fingerprints, and the tokeniser."""
    found: JsonObject = {"bytes_per_token": round(run.bytes_per_token, 4), "tokeniser": run.tokeniser}
    for number, part in enumerate(run.data["parts"]):
        here = {"corpus": part["corpus"], "share": part["share"], "vocab_size": part["vocab_size"]}
        here["tokeniser"] = part["source"]["tokeniser"]
        for split in ("train", "validation"):
            facts = part[split]
            here[split] = {"documents": facts["documents"], "tokens": facts["tokens"], "sha256": facts["sha256"][:12]}
        here |= {kind: part[kind]["sha256"][:12] for kind in KINDS if kind in part}
        found |= _flat(here, f"part {number + 1} ")
    return found


def remarks(runs: Sequence[Told]) -> list[str]:
    """What one must know to read the comparison, a line each."""
    lines = [f"{run.label} has no finished step" for run in runs if not len(run.curve.tokens)]
    lines += comparable(runs)
    for run in runs:
        if run.parent:
            of = record.label(Path(run.parent.path)) if Path(run.parent.path).exists() else run.parent.id
            how, read = ("tunes", "") if run.branched_at is None else ("branched from", f", {run.branched_at:,} tokens")
            lines.append(f"{run.label} {how} {of} after step {run.parent.step:,}{read}")
    return lines


def comparable(runs: Sequence[Told]) -> list[str]:
    """Why losses of runs do not compare, a line for each reason."""
    lines, units = [], list(dict.fromkeys(run.unit for run in runs))
    if len(units) > 1:
        lines.append(f"the losses are those of {' and of '.join(units)}: they do not compare")
    if len({run.tokeniser for run in runs}) > 1 and PAIR not in units:
        lines.append("the tokenisers differ: losses a token do not compare, bits a byte do")
    if len({_held_out(run) for run in runs}) > 1:
        lines.append("the held-out texts differ: validation losses are of different texts")
    if len({run.recipe.model.objective for run in runs}) > 1:
        lines.append("the objectives differ: losses do not compare")
    if units == [PAIR] and len({_reference(run) for run in runs}) > 1:
        lines.append("the references differ: losses do not compare")
    return lines


def same_tokeniser(runs: Sequence[Told]) -> bool:
    """Whether losses a token compare. Where they do not, bits a byte of the same text do."""
    return len({run.tokeniser for run in runs}) == 1


def _held_out(run: Told) -> str:
    """The same for runs that are evaluated on the same texts."""
    parts = [
        (part["share"], part["validation"]["documents"], part["validation"]["bytes"]) for part in run.data["parts"]
    ]
    return str(parts)


def _reference(run: Told) -> str:
    """The same for runs of preferences with the same reference."""
    return str([part[REFERENCE]["sha256"] for part in run.data["parts"]])


def loss_scales(runs: Sequence[Told]) -> tuple[str, list[float]]:
    """The unit that losses are shown in, and the factor to it: where tokenisers differ, it is bits a byte."""
    units = {run.unit for run in runs}
    if same_tokeniser(runs) or PAIR in units:
        return f"loss (nats {' or '.join(sorted(units))})", [1.0] * len(runs)
    return "loss (bits a byte)", [1 / run.bytes_per_token / math.log(2) for run in runs]


def plot(runs: Sequence[Told], out: Path) -> None:
    """Draw the curves over tokens and over the time of training. Errors: `UserError` where `out` cannot be written."""
    name, scales = loss_scales(runs)
    drawn = [Drawn(run.label, run.curve, scale, run.branched_at) for run, scale in zip(runs, scales, strict=True)]
    with picture(out, panels=2) as (left, right):
        for axes, axis in ((left, "tokens"), (right, "seconds")):
            draw(axes, axis, drawn)
            axes.set_ylabel(name)
        left.legend(title="line: training, dots: validation")
