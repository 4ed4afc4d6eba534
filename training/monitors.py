"""TensorBoard, wandb and CSV, where the JSON switches them on. A resumed run goes on with the same curves.

DeepSpeed 0.19.8 has such monitors. With them a resumed run has the steps that it takes again twice, a second header in
its CSV, and is another run for wandb. So DeepSpeed gets none of these sections, and they mean the same here.
"""

import csv
import dataclasses
import io
import os
import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from run import record
from run.directory import Run
from run.metrics import TASK
from support import files
from support.errors import UserError
from support.json_object import JsonObject
from support.terminal import Say


class Monitor(ABC):
    """Gets the numbers of a step."""

    @abstractmethod
    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Add the numbers of a step, by name. Steps come in order."""

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """Add further numbers of a step that was written before."""
        self.write(step, numbers)

    @abstractmethod
    def close(self, failed: bool) -> None:
        """Write out what is left."""


def opened(run: Run, step: int, reached: int, say: Say) -> list[Monitor]:
    """The monitors of a run that goes on after `step` and had come as far as `reached` before."""
    return _opened(run, step if run.resume else None, reached, say)


def add(run: Run, step: int, numbers: dict[str, float], say: Say) -> None:
    """Give the monitors of a run that does not train further numbers of one of its steps. One that fails says so."""
    for monitor in _opened(run, None, step, say):
        try:
            monitor.add(step, numbers)
            monitor.close(failed=False)
        except Exception as error:
            say(f"{type(monitor).__name__} did not take the scores: {error}")


def _opened(run: Run, step: int | None, reached: int, say: Say) -> list[Monitor]:
    """With a step what came after it is forgotten."""
    config = run.engine.json
    result: list[Monitor] = []
    if config.get("csv_monitor", {}).get("enabled"):
        result.append(CSV(_folder(run, "csv_monitor"), step))
    if config.get("tensorboard", {}).get("enabled"):
        result.append(TensorBoard(_folder(run, "tensorboard"), step))
    if config.get("wandb", {}).get("enabled"):
        result.append(Wandb(run, reached, say))
    return result


def numbers(line: JsonObject) -> dict[str, float]:
    """The numbers of a line of metrics by their names there: of the memory the fullest rank's, of lists each entry."""
    result: dict[str, float] = {}
    for key, value in line.items():
        if key == "memory_bytes":
            result[f"train/{key}"] = max(value)
        elif isinstance(value, list):
            result |= {f"train/{key}/{index}": each for index, each in enumerate(value)}
        elif value is not None and key not in ("step", "time"):
            result[key if key.startswith(TASK) else f"train/{key}"] = float(value)
    return result


def _folder(run: Run, name: str) -> Path:
    """Where the JSON wants the files of a monitor: it may say nothing, the folder above, or its name in there too.

    Errors: `UserError` where that cannot be a folder.
    """
    section = run.engine.json[name]
    place = section.get("output_path")
    folder = Path(place or run.path) / section.get("job_name", run.path.absolute().name if place else name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{name}: {folder} cannot be made: {error.strerror}; give another output_path") from None
    return folder


def _id(run: Run) -> str:
    """The run's id, or where it was begun without one a name that is as good."""
    known = record.read(run.path)
    return known.id if known else re.sub(r"[^\w.-]", "-", f"{run.recipe.name}-{run.path.absolute().name}")


class CSV(Monitor):
    """A file a number: a header, and a row a step."""

    def __init__(self, folder: Path, step: int | None) -> None:
        self.folder = folder
        self.streams: dict[str, Any] = {}
        for file in folder.glob("*.csv") if step is not None else ():
            rows = list(csv.reader(io.StringIO(file.read_text(errors="replace"))))
            while len(rows) > 1 and not _came_by(rows[-1], step or 0):
                rows.pop()
            files.write(file, "".join(",".join(row) + "\n" for row in rows))

    def write(self, step: int, numbers: dict[str, float]) -> None:
        for name, number in numbers.items():
            if name not in self.streams:
                file = self.folder / f"{name.replace('/', '_')}.csv"
                new = not file.exists()
                self.streams[name] = open(file, "a", buffering=1)  # noqa: SIM115 - it is closed in `close`
                if new:
                    self.streams[name].write(f"step,{name.rsplit('/', 1)[1]}\n")
            self.streams[name].write(f"{step},{number}\n")

    def close(self, failed: bool) -> None:
        for stream in self.streams.values():
            stream.close()


def _came_by(row: list[str], step: int) -> bool:
    """Whether a row is whole and of a step up to `step`."""
    return len(row) == 2 and row[0].isdigit() and int(row[0]) <= step and bool(row[1])


class TensorBoard(Monitor):
    """Event files. TensorBoard leaves out what an earlier file holds from the step on that a later one begins with."""

    def __init__(self, folder: Path, step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder), purge_step=None if step is None else step + 1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        for name, number in numbers.items():
            self.writer.add_scalar(name, number, step)
        self.writer.flush()

    def close(self, failed: bool) -> None:
        self.writer.close()


class Wandb(Monitor):
    """A run of wandb, offline where there is no account or no network.

    wandb takes no step again. A resumed run has the id of the run that it goes on with, and sends only steps that were
    not sent before: the first time that a step was taken counts.
    """

    def __init__(self, run: Run, reached: int, say: Say) -> None:
        import wandb

        section, self.reached = run.engine.json["wandb"], reached
        os.environ.setdefault("WANDB_SILENT", "true")
        options: JsonObject = {
            "project": section.get("project", "stagecraft"),
            "group": section.get("group"),
            "entity": section.get("team"),
            "id": os.environ.get("WANDB_RUN_ID", _id(run)),  # an agent of wandb sets one
            "name": run.path.absolute().name,
            "resume": "allow",
            "dir": os.environ.get("WANDB_DIR", str(run.path)),
            "config": {"recipe": dataclasses.asdict(run.recipe), "engine": run.engine.json},
            "allow_val_change": True,
            "settings": wandb.Settings(console="off"),  # what a run prints is its own
        }
        why = ""
        if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
            why = "no account is configured, "
        else:
            try:
                self.run = wandb.init(**options)
            except wandb.Error as error:
                why = f"{' '.join(str(error).split())}; "
                wandb.teardown()  # else the id counts as in use
        if why:
            self.run = wandb.init(**options, mode="offline")
        if self.run.offline:
            say(f"wandb: {why}logging offline; send it with wandb sync {Path(self.run.dir).parent}")
        elif self.run.url:
            say(f"wandb: {self.run.url}")

    def write(self, step: int, numbers: dict[str, float]) -> None:
        if step > self.reached:
            self.run.log(numbers, step=step)

    def add(self, step: int, numbers: dict[str, float]) -> None:
        """wandb takes no step again, so these stand in the run's summary."""
        self.run.summary.update({**numbers, f"{TASK}step": step})

    def close(self, failed: bool) -> None:
        import wandb

        self.run.finish(exit_code=int(failed))
        wandb.teardown()  # its process writes the last rows after that, and may be killed with the ranks
