"""Tasks by their names: our own, those of a user's folder, and only then those that lm-eval has, of which most read
their data from the Hugging Face hub."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.corpus import bigbench
from data.taught import sets
from inference.ranks import leads
from inference.tasks import rows
from support.errors import UserError
from support.files import NO_ROOM, NoRoomError
from support.json_object import JsonObject
from support.nearest import hint

if TYPE_CHECKING:
    from lm_eval.api.group import Group
    from lm_eval.api.task import Task
    from lm_eval.tasks import TaskManager

OWN = Path(__file__).parent / "own"
PIP = "pip install lm_eval==0.4.13"


@dataclass(frozen=True)
class Asked:
    """Which tasks, with how many examples in front (None: as many as the task says), on how many documents of each
    (None: all), where a user keeps tasks, and whether to tell what the examples share with the training data."""

    names: tuple[str, ...]
    shots: int | None = None
    limit: int | None = None
    folder: Path | None = None
    overlap: bool = False

    def __post_init__(self) -> None:
        if not self.names or not all(self.names):
            raise UserError("--tasks names no task; give names with commas between them")
        if twice := next((name for name in self.names if self.names.count(name) > 1), None):
            raise UserError(f"--tasks names {twice} twice; give it once")
        for flag, value, least in (("--shots", self.shots, 0), ("--limit", self.limit, 1)):
            if value is not None and value < least:
                raise UserError(f"{flag} is {value}; it must be at least {least}")


@dataclass(frozen=True)
class Found:
    """Tasks that were loaded and can be run, and the groups that sum them up, by name."""

    tasks: "dict[str, Task]"
    groups: "dict[str, Group]"


def library() -> None:
    """Errors: `UserError` where lm-eval is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise UserError(f"tasks need the package lm-eval; install it with {PIP}") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Without what lm-eval and its libraries print: a bar a task, and warnings. Errors are raised all the same."""
    import logging

    from datasets import disable_progress_bars

    logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
    disable_progress_bars()
    with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
        yield


def find(asked: Asked) -> Found:
    """Load tasks, and try each on a document with made-up answers: what is wrong with one is known before the work.

    Errors: `UserError` where there is no such task, its data cannot be read, or a row, a metric or a template is wrong.
    """
    library()
    if asked.folder is not None:
        _check_folder(asked.folder)
    manager = _manager(asked)
    found = Found({}, {})
    for name in asked.names:
        loaded = _loaded(manager, name)
        found.tasks.update(loaded["tasks"])
        found.groups.update(loaded.get("groups", {}))
    for name, task in found.tasks.items():
        shots = task.get_config("num_fewshot")
        if asked.shots is not None and shots != 0:  # a task that says 0 means it, as for lm-eval itself
            task.set_config(key="num_fewshot", value=asked.shots)
        elif shots is None:
            task.set_config(key="num_fewshot", value=0)
        _try(name, task)
    return found


def _check_folder(folder: Path) -> None:
    """lm-eval passes over a file that it cannot read. Errors: `UserError` for one, and where there is none."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not folder.is_dir():
        raise UserError(f"--task-folder {folder} is no directory; give one that holds YAML files of tasks")
    files = sorted(folder.rglob("*.yaml"))
    if not files:
        raise UserError(f"--task-folder {folder} holds no *.yaml; give a folder that holds tasks")
    for file in files:
        try:
            load_yaml(file, resolve_func=False)
        except Exception as error:
            words = " ".join(str(error).split())
            raise UserError(f"--task-folder: {file} cannot be read: {words}; mend it") from None


def _manager(asked: Asked) -> "TaskManager":
    """What knows the tasks that are asked for. To index the thousands of lm-eval takes most of a minute."""
    from lm_eval.tasks import TaskManager

    folders = [str(folder) for folder in (OWN, asked.folder) if folder]
    with quiet():
        manager = TaskManager(include_path=folders, include_defaults=False)
    if all(name in manager.all_tasks for name in asked.names):
        return manager
    if leads():
        print("looking through the tasks of lm-eval, which takes up to a minute", file=sys.stderr)
    with quiet():
        manager = TaskManager(include_path=folders, include_defaults=True)
    for name in asked.names:
        if name not in manager.all_tasks:
            raise UserError(
                f"there is no task {name}; {hint(name, manager.all_tasks, 3, otherwise='lm-eval ls tasks lists them')}"
            )
    return manager


def _loaded(manager: "TaskManager", name: str) -> Any:
    """A task, or those of a group. Errors: `UserError` where its data cannot be read, or it is wrong."""
    for each in _leaves(manager, name):
        config = manager.task_index[each].cfg or {}
        rows.check(each, config)
        if (taken := (config.get("dataset_kwargs") or {}).get("rows")) in bigbench.SOURCES:
            bigbench.rows_file(taken)  # here, because what is fetched says its licence
        elif taken in sets.SETS:
            sets.rows_file(taken)
        for metric in config.get("metric_list") or ():
            _check_metric(each, config, metric)
    kept = sys.modules.get("evaluate")
    sys.modules["evaluate"] = None  # type: ignore[assignment]  # lm-eval would ask the hub for a metric
    try:
        with quiet():
            return manager.load([name])
    except UserError:
        raise
    except (ConnectionError, OSError) as error:
        _check_room(name, error)
        where = (manager.task_index[name].cfg or {}).get("dataset_path")
        raise UserError(
            f"task {name}: its data {f'({where}) ' if where else ''}cannot be read: {_first_line(error)}; where they "
            "are on the hub, try again with a network, or give a task whose data are on this machine"
        ) from None
    except Exception as error:
        # `datasets` says only that it failed, and has the reason as the cause.
        cause = error.__cause__ if type(error).__module__.startswith("datasets") and error.__cause__ else error
        _check_room(name, cause)
        raise UserError(f"task {name} cannot be loaded: {_first_line(cause)}; mend it, or give another") from None
    finally:
        if kept is None:
            del sys.modules["evaluate"]
        else:
            sys.modules["evaluate"] = kept


def _check_room(name: str, error: BaseException) -> None:
    """Errors: `NoRoomError` where the disk is full."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        from datasets import config

        raise NoRoomError(
            f"task {name}: no room left for its data in {config.HF_DATASETS_CACHE}; free some, or set "
            "HF_DATASETS_CACHE to a folder elsewhere"
        ) from None


def _leaves(manager: "TaskManager", name: str) -> list[str]:
    """The tasks below a name that are known by a name of their own."""
    entry = manager.task_index[name]
    below = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else sorted(entry.tags)
    if entry.kind.name not in ("GROUP", "TAG"):
        return [name]
    names = [str(each.get("task") if isinstance(each, dict) else each) for each in below or ()]
    return [leaf for each in names if each in manager.task_index for leaf in _leaves(manager, each)]


def _check_metric(task: str, config: JsonObject, metric: JsonObject) -> None:
    """A metric that lm-eval does not have is either made by the task's own code, or was to come from the hub."""
    import lm_eval.api.metrics  # noqa: F401  # they register themselves
    from lm_eval.api.registry import metric_registry

    name = metric.get("metric")
    if not isinstance(name, str):
        return
    own = config.get("process_results") or config.get("class") or name.startswith("/")  # a path: a function of the task
    if metric.get("hf_evaluate") or not (own or name in metric_registry):
        raise UserError(
            f"task {task}: the metric {name} would come from the hub; use one of lm-eval's own, or process_results"
        )
    missing = [key for key in ("aggregation", "higher_is_better") if key not in metric]
    if missing and name not in metric_registry:
        raise UserError(f"task {task}: the metric {name} has no {missing[0]}; say it beside the metric")


def _try(name: str, task: "Task") -> None:
    """Run a task on its first document, with made-up answers. Errors: `UserError` for what would fail in the end."""
    from lm_eval.evaluator import evaluate

    from inference.tasks.pretended import Pretended

    try:
        with quiet():
            evaluate(Pretended(task), {"tasks": {name: task}}, limit=1, bootstrap_iters=0, log_samples=False)
        missing = sorted(task.aggregation().keys() ^ task.higher_is_better().keys())
    except UserError:
        raise
    except KeyError as error:
        raise UserError(
            f"task {name}: {error} is missing, in a row or beside a metric (each needs an aggregation and "
            "higher_is_better); add it"
        ) from None
    except Exception as error:
        raise UserError(f"task {name} fails on its first document: {_first_line(error)}; mend it") from None
    if missing:
        raise UserError(f"task {name}: the metric {missing[0]} needs both aggregation and higher_is_better; add them")


def _first_line(error: BaseException) -> str:
    words = str(error).strip().splitlines()
    return f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
