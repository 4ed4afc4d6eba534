"""Checkpoints that are written while the loop trains on: it ends with the same numbers, whatever comes meanwhile."""

import json
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.format import manifest
from recipes.registry import ROOT
from run import save_request
from run.metrics import read_steps
from tests.faults.loops import Fault, happened, run_steps, steps, tensors

LATE = Fault(holds=99)  # rank 1 writes when training waits for it, and not before


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))


def saved(path: Path, event: str = "saved") -> list[int]:
    return [each["step"] for each in happened(path, event)]


def content(checkpoint: Path) -> tuple[dict[str, Any], list[bytes]]:
    """All that a checkpoint holds, but of which run it is."""
    found = manifest(checkpoint)
    return {name: found[name] for name in ("step", "state", "engine", "files")}, tensors(checkpoint)


def test_saves_beside_training_change_no_number(tmp_path: Path) -> None:
    """Each is of its step, though it is written three steps later, when the next one is due."""
    beside, whole, short = (tmp_path / name for name in ("beside", "whole", "short"))
    assert run_steps(beside, 8, fault=LATE) == ["", ""]
    assert run_steps(whole, 8, "intervals.save_every=1000") == ["", ""]
    assert run_steps(short, 3) == ["", ""]
    assert steps(beside) == steps(whole)
    assert saved(beside) == saved(beside, "saving") == [3, 6, 8] and saved(whole) == [8]
    for other, step in ((short, 3), (whole, 8)):
        name = Path("checkpoints", f"step-{step:08d}")
        assert content(beside / name) == content(other / name)
    assert all(0 < event["waited"] <= event["seconds"] for event in happened(beside, "saved"))


def test_a_save_that_is_written_gets_its_name_after_the_step(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert run_steps(path, 5, "intervals.save_every=1000", fault=Fault(save=(1,), holds=3)) == ["", ""]
    assert saved(path) == [1, 5] and saved(path, "saving") == [5]
    assert [line["step"] for line in read_steps(path / "metrics.jsonl") if "save_seconds" in line] == [4]


def test_training_does_not_wait_for_a_signal_to_save(tmp_path: Path) -> None:
    """What comes while a save is written is heard when that is whole, once."""
    path = tmp_path / "run"
    assert run_steps(path, 7, "intervals.save_every=1000", fault=Fault(save=(1, 2, 3), holds=4)) == ["", ""]
    assert saved(path) == [1, 5, 7] and saved(path, "saving") == [5, 7]  # the last step waits, for both


def test_a_stop_finishes_what_is_written_and_saves(tmp_path: Path) -> None:
    """A save that was asked for by the file is answered once, by the checkpoint that was begun for it."""
    whole, path = tmp_path / "whole", tmp_path / "run"
    ends = run_steps(path, 8, fault=Fault(stop=4, holds=99))
    assert all(end.startswith("75: stopped after step 4 and saved") for end in ends)
    assert saved(path) == [3, 4] and not list((path / "checkpoints").glob("*.partial"))
    (path / save_request.FILE).touch()
    assert run_steps(path, 8, fault=LATE) == ["", ""]
    assert saved(path) == [3, 4, 5, 6, 8] and save_request.asked(path) is None
    assert run_steps(whole, 8) == ["", ""]
    assert steps(path) == steps(whole)


def test_a_rollback_goes_back_to_what_was_being_written(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert run_steps(path, 7, fault=Fault(bad=(4, 5), most_skipped=2, holds=99)) == ["", ""]
    assert [event["to_step"] for event in happened(path, "rollback")] == [3]
    assert saved(path) == [3, 5, 6, 7]
    third, fifth = (tensors(path / "checkpoints" / f"step-0000000{step}") for step in (3, 5))
    assert third == fifth


def test_a_loss_scale_at_its_floor_keeps_what_was_being_written(tmp_path: Path) -> None:
    """The fourth step and all after it overflow: the scale falls from 4 to 1, and step 6 cannot make it fall."""
    config = json.loads((ROOT / "ds_configs" / "zero1_fp16.json").read_text())
    config["fp16"] |= {"initial_scale_power": 2, "hysteresis": 1, "min_loss_scale": 1}
    (tmp_path / "floor.json").write_text(json.dumps(config))
    path, floor = tmp_path / "run", str(tmp_path / "floor")
    ends = run_steps(path, 9, engine=floor, fault=Fault(bad=(4, 9), holds=99))
    good = path / "checkpoints" / "step-00000003"
    assert all(end.startswith("3: ") and end.endswith(f"last good checkpoint: {good}") for end in ends), ends
    assert saved(path) == [3] and not list(good.parent.glob("*.partial"))


def test_training_waits_where_memory_has_no_room(tmp_path: Path) -> None:
    """As long as that is so; it is said once."""
    path = tmp_path / "run"
    assert run_steps(path, 8, "intervals.save_every=2", fault=Fault(scarce=4, holds=99)) == ["", ""]
    said = [event["line"] for event in happened(path, "said") if event["line"].startswith("training waits")]
    assert len(said) == 1 and "GB of memory free, and a copy takes" in said[0]
    assert saved(path) == saved(path, "saving") == [2, 4, 6, 8]
