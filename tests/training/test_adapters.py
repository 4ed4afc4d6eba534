"""A run that trains adapters: it begins with its base's loss, is broken off, goes on, and knows its base again."""

import dataclasses
from pathlib import Path

import pytest
import torch

from inference.export import load_model
from model.checkpoint.weights import write_weights
from recipes.registry import load
from run import cleaning
from run.checkpoints import choose
from run.directory import created, read_recipe
from run.prepared import run_data
from run.request import Request, plan_run
from support.errors import UserError
from tests.distributed import run_ranks
from tests.faults.loops import Fault, _rank, happened, run_steps, steps
from tests.inference.conftest import write_untrained

BASE, HALF, LAST = 3, 5, 7
SETTINGS = ("lora.rank=4", "lora.dropout=0.2", "lora.targets=qkv,down", "intervals.save_every=99")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapters") / "base"
    assert run_steps(path, BASE) == ["", ""]
    return path


def run(path: Path, last: int, *settings: str, branch: Path | None = None) -> None:
    """Train a branch up to a step, or go on with one."""
    request = Request(
        settings=settings, run_dir=str(path), max_steps=last, resume=branch is None, branch=branch and str(branch)
    )
    planned = plan_run(load("tiny"), request, 2)
    with created(planned, run_data(planned, lambda line: None)):
        assert run_ranks(2, _rank, path, Fault()) == ["", ""]


def test_it_is_broken_off_and_goes_on_bit_for_bit(base: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole", LAST, *SETTINGS, branch=base)
    run(tmp_path / "broken", HALF, *SETTINGS, branch=base)
    run(tmp_path / "broken", LAST)
    run(tmp_path / "on", LAST + 1, branch=tmp_path / "whole")
    assert steps(tmp_path / "whole") == steps(tmp_path / "broken") and len(steps(tmp_path / "whole")) == LAST - BASE
    for path in ("whole", "broken", "on"):  # of the base's samples, of its own, and of its parent's
        assert sum("proved: " in each["line"] for each in happened(tmp_path / path, "said")) == 1 + (path == "broken")
    before, after = (load_model(path, choose(path)).state_dict() for path in (base, tmp_path / "on"))
    moved = {name.split(".", 2)[2] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"attention.qkv.weight", "mlp.down.weight"}
    size = sum(file.stat().st_size for file in choose(tmp_path / "whole").path.glob("*.safetensors"))
    assert size < 0.3 * sum(file.stat().st_size for file in choose(base).path.glob("*.safetensors"))


def test_a_base_that_is_gone_or_another_is_one_line_and_stays_where_it_is_needed(base: Path, tmp_path: Path) -> None:
    run(tmp_path / "lora", BASE + 1, *SETTINGS, branch=base)
    request = Request(run_dir=str(tmp_path / "lora"), resume=True)
    write_untrained(tmp_path / "another")
    before = {file: file.read_bytes() for file in sorted((tmp_path / "lora").glob("*.json*"))}
    with pytest.raises(UserError, match=r"was started with lora.rank 4, not 8; .*start a new run"):
        plan_run(load("tiny"), dataclasses.replace(request, settings=("lora.rank=8",)), 2)
    with pytest.raises(
        UserError, match=r"its adapters have lora.targets \('qkv', 'down'\), not \('up',\); ask for the"
    ):
        plan_run(load("tiny"), Request(branch=str(tmp_path / "lora"), settings=("lora.targets=up",)), 2)
    with pytest.raises(
        UserError, match=r"lora.rank is 2, and adapters lie on a trained model; give it with --from RUN"
    ):
        plan_run(load("tiny"), Request(settings=("lora.rank=2",)), 2)
    checkpoint = choose(base).path
    assert checkpoint.resolve() in cleaning._begun_with([tmp_path / "lora"])
    checkpoint.rename(checkpoint.with_name("away"))
    with pytest.raises(UserError, match="is gone, on which the adapters of this run lie; restore it"):
        plan_run(load("tiny"), request, 2)
    with pytest.raises(UserError, match=r"is gone, on which the adapters of .* lie; restore it, or take another"):
        choose(tmp_path / "lora")
    weights = load_model(tmp_path / "another", choose(tmp_path / "another")).state_dict()
    write_weights(base / "checkpoints", weights.items(), {}, {"step": BASE, "consumed_samples": 24})
    with pytest.raises(UserError, match="the adapters of this run lie on another base: its fingerprint is"):
        plan_run(load("tiny"), request, 2)
    assert before == {file: file.read_bytes() for file in sorted((tmp_path / "lora").glob("*.json*"))}
    assert read_recipe(tmp_path / "lora").lora.rank == 4
