"""A run of five steps that is killed, goes back to step three and trains to the seventh: its curves go on."""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2 as wandb_messages

from recipes.registry import load
from run import events, record
from run.directory import Run
from run.metrics import read_steps
from support.errors import UserError
from training import monitors
from training.log import Log

STEPS = [1, 2, 3, 4, 5, 6, 7]


def run_in(path: Path, resume: bool, **sections: Any) -> Any:
    config = {name: {"enabled": True, **section} for name, section in sections.items()}
    return SimpleNamespace(path=path, recipe=load("tiny"), engine=SimpleNamespace(json=config), resume=resume)


def train(run: Run, step: int, reached: int, last: int) -> list[str]:
    """Train from `step` to `last`; the loss of a step taken again is another, as on a GPU."""
    said: list[str] = []
    ours = monitors.opened(run, step, reached, said.append)
    for number in range(step + 1, last + 1):
        line = {"step": number, "time": 1.0, "loss": number + step / 100, "mfu": None, "skipped": number == 2}
        line |= {"memory_bytes": [3, 9, 4], "samples_by_part": [number, 10 * number]}
        for monitor in ours:
            monitor.write(number, monitors.numbers(line | ({"validation_loss": math.nan} if number == 6 else {})))
    for monitor in ours:
        monitor.close(failed=False)
    return said


def twice(path: Path, **sections: Any) -> list[str]:
    path.mkdir()
    return train(run_in(path, False, **sections), 0, 0, 5) + train(run_in(path, True, **sections), 3, 5, 7)


def test_a_csv_has_one_header_and_each_step_once(tmp_path: Path) -> None:
    twice(tmp_path / "run", csv_monitor={})
    folder = tmp_path / "run" / "csv_monitor"
    taken_again = [f"{step},{step + 0.03}" for step in (4, 5, 6, 7)]
    assert (folder / "train_loss.csv").read_text().split() == ["step,loss", "1,1.0", "2,2.0", "3,3.0", *taken_again]
    assert (folder / "train_memory_bytes.csv").read_text().split()[1] == "1,9"
    assert (folder / "train_samples_by_part_1.csv").read_text().split()[:2] == ["step,1", "1,10"]
    assert (folder / "train_validation_loss.csv").read_text().split() == ["step,validation_loss", "6,nan"]
    assert not (folder / "train_mfu.csv").exists() and not (folder / "train_time.csv").exists()


def test_a_torn_row_of_a_csv_goes_and_rows_of_an_earlier_run_stay(tmp_path: Path) -> None:
    """Two runs may be told the same folder; one that is new cuts nothing."""
    section = {"output_path": str(tmp_path), "job_name": "both"}
    train(run_in(tmp_path / "a", False, csv_monitor=section), 0, 0, 2)
    train(run_in(tmp_path / "b", False, csv_monitor=section), 0, 0, 2)
    file = tmp_path / "both" / "train_loss.csv"
    with open(file, "a") as stream:
        stream.write("3,")
    train(run_in(tmp_path / "b", True, csv_monitor=section), 1, 3, 2)
    assert file.read_text().split() == ["step,loss", "1,1.0", "2,2.0", "1,1.0", "2,2.01"]


def test_tensorboard_shows_each_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    twice(tmp_path / "run", tensorboard={"output_path": ""})
    read = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    read.Reload()
    assert [event.step for event in read.Scalars("train/loss")] == STEPS
    losses = [1, 2, 3, 4.03, 5.03, 6.03, 7.03]
    assert [event.value for event in read.Scalars("train/loss")] == pytest.approx(losses)
    assert [event.value for event in read.Scalars("train/skipped")] == [0, 1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(("section", "folder"), [
    ({}, "run/x"), ({"output_path": ""}, "run/x"), ({"output_path": "logs"}, "logs/run"),
    ({"output_path": "logs", "job_name": "mine"}, "logs/mine"), ({"job_name": "mine"}, "run/mine"),
])  # fmt: skip
def test_where_the_json_wants_the_files(
    section: dict[str, str], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    train(run_in(Path("run"), False, csv_monitor=section), 0, 0, 1)
    assert [path.parent for path in tmp_path.rglob("*_loss.csv")] == [tmp_path / folder.replace("x", "csv_monitor")]


def test_a_file_in_the_way_of_a_monitor_is_wrong_input(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"csv_monitor: .*/file/run cannot be made: Not a directory; give another"):
        monitors.opened(
            run_in(tmp_path / "run", False, csv_monitor={"output_path": str(tmp_path / "file")}), 0, 0, print
        )


def messages(file: Path) -> Iterator[wandb_messages.Record]:
    """The records of an offline run of wandb: LevelDB's log format, blocks of 32 KiB, behind a header of 7 bytes."""
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the end of one
            yield wandb_messages.Record.FromString(whole)
            whole = b""


def test_wandb_without_an_account_goes_on_offline_with_the_same_run(tmp_path: Path) -> None:
    path = tmp_path / "run"
    said = twice(path, wandb={"project": "mine", "group": "tests"})
    assert len(said) == 2
    assert all(line.startswith("wandb: no account is configured, logging offline; send it with") for line in said)
    files = sorted((path / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime_ns)
    records = [record for file in files for record in messages(file)]
    runs = {(record.run.run_id, record.run.project, record.run.run_group) for record in records if record.run.run_id}
    assert len(files) == 2 and runs == {("gpt_tiny-run", "mine", "tests")}
    steps = [record.history for record in records if record.HasField("history")]
    assert [step.step.num for step in steps] == STEPS
    losses = [
        item.value_json
        for step in steps
        for item in step.item
        if item.key == "train/loss" or "train/loss" in item.nested_key
    ]
    assert [float(loss) for loss in losses] == pytest.approx([1, 2, 3, 4, 5, 6.03, 7.03])  # the first time counts


class Broken(monitors.Monitor):
    """As wandb is when its service was killed."""

    def write(self, step: int, numbers: dict[str, float]) -> None:
        raise ConnectionResetError("Connection lost")

    def close(self, failed: bool) -> None:
        raise AssertionError


def test_a_monitor_that_fails_ends_no_run(tmp_path: Path) -> None:
    run = run_in(tmp_path, False)
    run.metrics, log = tmp_path / "metrics.jsonl", Log.__new__(Log)
    log.run, log.display, log.writes, log._begin, log._memory = run, None, True, 0, []
    log._monitors = [Broken(), monitors.CSV(tmp_path, None)]
    with log:
        for number in (1, 2):
            log.metrics({"step": number, "loss": 4.0})
    assert (tmp_path / "train_loss.csv").read_text().split() == ["step,loss", "1,4.0", "2,4.0"]
    assert len(read_steps(run.metrics)) == 2
    (said,) = [event["line"] for event in events.read(tmp_path)]
    assert said == "Broken gets no more of this run: Connection lost"


def test_wandb_has_the_id_of_the_run(tmp_path: Path) -> None:
    known = record.write(tmp_path)
    train(run_in(tmp_path, False, wandb={}), 0, 0, 1)
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert file.name == f"run-{known.id}.wandb"


def test_wandb_without_a_network_logs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    asked: list[Any] = []

    def init(mode: str = "online", **options: Any) -> Any:
        asked.append(mode)
        if mode == "online":
            raise wandb.errors.CommError("no route\nto host")
        return SimpleNamespace(offline=True, dir=str(tmp_path / "x" / "files"), finish=lambda exit_code: None)

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", init)
    (line,) = train(run_in(tmp_path, False, wandb={}), 0, 9, 1)
    assert asked == ["online", "offline"]
    assert line == f"wandb: no route to host; logging offline; send it with wandb sync {tmp_path / 'x'}"
