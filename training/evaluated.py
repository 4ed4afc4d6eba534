"""Scores of a run that were found after it had trained, among the numbers that it has of their step."""

from contextlib import ExitStack
from pathlib import Path

from inference.tasks import harness
from run.directory import read_run
from run.metrics import add_to_step
from support.errors import UserError
from support.files import locked
from support.json_object import JsonObject
from support.terminal import Say
from training import monitors


def add(values: JsonObject, say: Say) -> None:
    """Add what `harness.evaluate` found to the metrics of the run and to the monitors that its JSON switches on.

    An import or a folder has neither. A run that trains at this moment keeps its files for itself: that is said.
    """
    run, step, scores = Path(values["run"]), values["checkpoint"], harness.named(values["tasks"])
    metrics = run / "metrics.jsonl"
    if step is None or not metrics.exists():
        return
    with ExitStack() as held:
        try:
            held.enter_context(locked(run / ".lock", "it trains"))
        except UserError:
            say(f"{run} trains at this moment: the scores stand in {values['file']} alone")
            return
        if add_to_step(metrics, step, scores):
            monitors.add(read_run(run), step, scores, say)
