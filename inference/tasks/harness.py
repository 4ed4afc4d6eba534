"""Run lm-eval's tasks with a model, and keep what comes out of it."""

import errno
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference.named import at_step, is_folder
from inference.ranks import Loading, leads
from inference.tasks.find import Asked, Found, find, quiet
from run import record
from run.directory import read_recipe
from run.metrics import TASK
from support.errors import UserError
from support.files import NO_ROOM, NoRoomError, write_json
from support.json_object import JsonObject, finite
from support.terminal import now_and_then

if TYPE_CHECKING:
    from lm_eval.api.task import Task

    from inference.tasks.model import Checked, TaskModel

DRAWS = 1000  # resamples for the error of a metric that has no formula for it
FOLDER = "evaluations"


def evaluate(path: Path, asked: Asked, loading: Loading) -> JsonObject:
    """The scores of a run or of a folder of Hugging Face's form in tasks; collective where there are several ranks.

    Those of a run are kept in its directory by the first rank. Errors: `UserError` for all that is wrong with what was
    asked, with the model or with a task.
    """
    from inference.generate import load, told
    from inference.tasks import overlap
    from inference.tasks.model import Checked, TaskModel

    run, _ = at_step(path, loading.which)
    if not is_folder(run):
        check_tokeniser(run)
    found = find(asked)
    training = overlap.training_texts(run) if asked.overlap else None
    writer, checkpoint = load(path, loading)
    say = now_and_then(partial(print, file=sys.stderr, flush=True), at_once=False) if leads() else lambda line: None
    check(Checked(writer), found, limit=1)  # what no model of this context can do: else it is said after all the work
    samples: JsonObject | None = {} if asked.overlap else None
    values: JsonObject = {
        "run": str(run),
        **told(checkpoint),
        "precision": loading.precision,
        "limit": asked.limit,
        "tasks": _scores(TaskModel(writer, say), found, asked.limit, samples),
        "file": None,
    }
    if training and samples and leads():
        values["overlap"] = overlap.apart(found.tasks, samples, training)
    if checkpoint and leads():
        values["file"] = str(keep(run, values))
    return values


def _scores(model: "TaskModel", found: Found, limit: int | None, samples: JsonObject | None) -> JsonObject:
    """`scores`. Errors: `UserError` also where a task's own code fails, on a row of another kind than the first."""
    try:
        return scores(model, found, limit, samples=samples)
    except UserError:
        raise
    except Exception as error:
        if not (place := where_failed(error)):
            raise
        raise UserError(
            f"{place}: the task's own code fails: {type(error).__name__}: {error}; mend the row, or the task"
        ) from None


def where_failed(error: BaseException) -> str:
    """The task and the document on which lm-eval failed, as it worked through them; "" where it did something else."""
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    for place, here in enumerate(frames):
        for task in (here.get("task"), here.get("self")):
            name = getattr(task, "task_name", None)
            if name and "doc_id" in here and any(inner.get("self") is task for inner in frames[place + 1 :]):
                return f"task {name}, document {here['doc_id']}"
    return ""


def check_tokeniser(run: Path) -> None:
    """Errors: `UserError` where the tokeniser of a run is missing, or another one than it was trained with."""
    from data.tokens import tokenisers
    from inference.export import load_tokeniser

    room = read_recipe(run).model.vocab_size  # it says where a path is no run
    entries = tokenisers.entries(load_tokeniser(run))
    parts = record.read_object(run / "data.json").get("parts") or [{}]  # an import has none
    trained = parts[0].get("vocab_size", entries)
    if entries > room or entries != trained:
        raise UserError(
            f"{run / 'tokeniser'} has {entries} entries for a model of {trained if entries <= room else room}: it is "
            "not the one that the run was trained with; restore that"
        )


def scores(
    model: "TaskModel", found: Found, limit: int | None = None, errors: bool = True, samples: JsonObject | None = None
) -> JsonObject:
    """The scores of tasks by name, and those of the groups that sum them up; collective. Keys as in docs/json.md.

    Without `errors` no standard errors are computed, which may take longer than the task. `samples`, where given,
    receives each task's documents with their scores, as lm-eval logs them. Errors: `UserError` for a
    candidate that does not fit into the context, and for settings of a task that we do not know.
    """
    from lm_eval.evaluator import evaluate

    _draw_alike(found)
    loaded = {"tasks": found.tasks, "groups": found.groups}
    with quiet(), _one_process():
        results = evaluate(
            model, loaded, limit=limit, bootstrap_iters=DRAWS if errors else 0, log_samples=samples is not None
        )
    if samples is not None:
        samples.update(results["samples"])
    counts, shots, better = (results.get(key, {}) for key in ("n-samples", "n-shot", "higher_is_better"))
    return {
        name: {
            "samples": counts[name]["effective"] if name in counts else None,
            "shots": shots.get(name),
            **_numbers(values, better.get(name, {})),
        }
        for name, values in {**results["results"], **results.get("groups", {})}.items()
    }


def check(model: "Checked", found: Found, limit: int | None = None) -> None:
    """Errors: `UserError` for what a model will refuse in the requests of the tasks."""
    _draw_alike(found)
    for task in found.tasks.values():
        with quiet():
            task.build_all_requests(limit=limit, rank=0, world_size=1)
        kinds: dict[str, list[Any]] = {}
        for request in task.instances:
            kinds.setdefault(request.request_type, []).append(request)
        for kind, requests in kinds.items():
            getattr(model, kind)(requests)


def keep_requests(found: Found) -> None:
    """Have the requests that `check` built asked each time: to build them takes lm-eval a millisecond a document."""

    def ask_again(task: "Task", **_: object) -> None:
        for request in task.instances:
            request.resps, request.filtered_resps = [], {}

    for task in found.tasks.values():
        task.build_all_requests = partial(ask_again, task)


def _draw_alike(found: Found) -> None:
    """Have the same examples drawn as lm-eval draws, whatever was drawn before, such as for a trial."""
    for task in found.tasks.values():
        task.set_fewshot_seed(seed=1234)  # lm-eval's own


def _numbers(values: JsonObject, better: JsonObject) -> JsonObject:
    """The numbers of a task. lm-eval calls them `acc,none`: the metric, and what its answers went through before."""
    found: JsonObject = {"scores": {}, "errors": {}, "higher_is_better": {}}
    for key, value in values.items():
        metric, comma, through = key.partition(",")
        if not comma or isinstance(value, str):
            continue
        plain = metric.removesuffix("_stderr")
        name = plain if through == "none" else f"{plain},{through}"
        found["errors" if plain != metric else "scores"][name] = value
        if plain == metric:
            found["higher_is_better"][name] = better.get(metric)
    return found


@contextmanager
def _one_process() -> Iterator[None]:
    """lm-eval resamples in as many processes as there are cores: forks of one that holds a GPU and other ranks."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DISABLE_MULTIPROC"]


def named(values: JsonObject) -> dict[str, float]:
    """The scores of tasks as they are called among the metrics of a run: `task/NAME/METRIC`."""
    return {
        f"{TASK}{task}/{metric}": float(score)
        for task, value in values.items()
        for metric, score in value["scores"].items()
        if isinstance(score, (int, float))
    }


def keep(run: Path, values: JsonObject) -> Path:
    """Write what was found into the run directory, whole or not at all; returns the file.

    Errors: `UserError` where that cannot be written, `NoRoomError` where the disk is full.
    """
    step = "import" if values["checkpoint"] is None else f"{values['checkpoint']:08}"
    place = run / FOLDER / f"tasks-{step}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    number = 2
    while place.exists():
        place, number = place.with_name(f"{place.stem.rsplit('_', 1)[0]}_{number}.json"), number + 1
    try:
        place.parent.mkdir(exist_ok=True)
        write_json(place, finite({**values, "file": str(place)}))
    except OSError as error:
        full = error.errno in NO_ROOM
        remedy = "free some" if full else "make it writable"
        raise (NoRoomError if full else UserError)(
            f"{place} cannot be written: {os.strerror(error.errno or errno.EIO)}; {remedy}, and run the same again"
        ) from None
    return place


def show(values: JsonObject) -> None:
    """Print the scores as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for title in ("task", "documents", "shots", "metric", "score", "error"):
        table.add_column(title, justify="left" if title in ("task", "metric") else "right", overflow="fold")
    for task, value in values["tasks"].items():
        for number, (metric, score) in enumerate(value["scores"].items()):
            first = (task, f"{value['samples'] or ''}", "" if value["shots"] is None else str(value["shots"]))
            error = value["errors"].get(metric)
            shown = _shown(error) if isinstance(error, float) else ""
            table.add_row(*(("", "", "") if number else first), metric, _shown(score), shown)
    Console(soft_wrap=True).print(table)
    if "overlap" in values:
        from inference.tasks import overlap

        overlap.show(values["overlap"])


def _shown(number: float) -> str:
    return f"{number:,.4f}" if abs(number) < 1e6 else f"{number:.4g}"
