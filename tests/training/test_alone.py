"""A rank that another launcher started."""

from pathlib import Path

import pytest
import torch

from recipes.registry import load
from run.request import Request
from tests.commands.running import small
from training import train


def test_what_deepspeed_refuses_writes_nothing_under_another_launcher_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's reading is made to fail: what it refuses today our own checks may know tomorrow."""
    monkeypatch.setattr(train, "start_process_group", lambda: None)
    monkeypatch.setattr(train, "_same_path", lambda recipe, request: request)
    monkeypatch.setattr(train, "run_data", lambda *arguments: pytest.fail("data were prepared"))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr("deepspeed.runtime.config.get_zero_config", lambda values: 1 / 0)
    path = tmp_path / "run"
    _, *settings = small(tmp_path / "corpus.jsonl")
    with pytest.raises(ValueError, match="DeepSpeed refuses this JSON: ZeroDivisionError"):
        train.train_alone(load("tiny"), Request(settings=tuple(settings), run_dir=str(path)))
    assert not path.exists()
