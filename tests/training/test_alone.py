"""A rank that another launcher started."""

from pathlib import Path

import pytest
import torch

from recipes.registry import load
from run.request import Request
from tests.commands.running import small, write_corpus
from training import train


def test_what_deepspeed_refuses_writes_nothing_under_another_launcher_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's reading is made to fail: what it refuses today our own checks may know tomorrow."""
    monkeypatch.setattr(train, "check_meeting", lambda: None)
    monkeypatch.setattr(train, "start_process_group", lambda: None)
    monkeypatch.setattr(train, "_same_path", lambda recipe, request: request)
    monkeypatch.setattr(train.reference, "data_of", lambda *arguments: pytest.fail("data were prepared"))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr("deepspeed.runtime.config.get_zero_config", lambda values: 1 / 0)
    path = tmp_path / "run"
    _, *settings = small(tmp_path / "corpus.jsonl")
    with pytest.raises(ValueError, match="DeepSpeed refuses this JSON: ZeroDivisionError"):
        train.train_alone(load("tiny"), Request(settings=tuple(settings), run_dir=str(path)))
    assert not path.exists()


def test_ranks_of_several_machines_do_not_make_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "check_meeting", lambda: None)
    monkeypatch.setattr(train, "start_process_group", lambda: None)
    monkeypatch.setattr(train, "_same_path", lambda recipe, request: request)
    monkeypatch.setattr(train, "told", lambda value: value)
    monkeypatch.setattr(train.reference, "data_of", lambda *arguments: pytest.fail("data were prepared"))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    _, *settings = small(write_corpus(tmp_path / "corpus.jsonl"))
    with pytest.raises(ValueError, match=r"corpus.jsonl is not prepared, .* run stagecraft prepare tiny, then"):
        train.train_alone(load("tiny"), Request(settings=tuple(settings), run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists() and not (tmp_path / "runs").exists()
