"""The model that is tuned, where it is no run yet: a folder, or a model of the hub."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from inference import named
from inference.export import export
from inference.importing import import_model
from launch import base
from launch.base import with_base
from model.checkpoint.read import Reader
from model.config import LoRA
from recipes.recipe import BASE
from recipes.registry import ROOT, load
from run.checkpoints import choose
from run.directory import read_recipe
from run.request import Request, plan_run
from support.errors import UserError
from support.files import locked
from tests.distributed import run_ranks
from tests.inference.conftest import write_untrained
from tests.patience import wait_until

RECIPE = load("tune_sentiment")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    write_untrained(tmp_path / "run")
    return tmp_path / "run"


def test_the_folder_of_a_model_is_imported_once(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export(run, folder)
    request = with_base(RECIPE, Request(branch=str(folder)))
    assert request.branch and with_base(RECIPE, Request(branch=str(folder))) == request
    imported = Path(request.branch)
    assert imported.parent == tmp_path / "runs" / "imported"
    theirs = Reader(choose(run).path).whole("blocks.0.mlp.up.weight")
    assert torch.equal(Reader(choose(imported).path).whole("blocks.0.mlp.up.weight"), theirs)
    tuned = plan_run(RECIPE, request, 2)
    assert tuned.parent and tuned.parent.tuned and tuned.parent.path == str(imported)
    assert tuned.recipe.model.num_layers == 2 and tuned.recipe.model.hidden_size == 16
    assert tuned.recipe.data.tokeniser == str(imported / "tokeniser") and RECIPE.data.tokeniser == BASE
    assert read_recipe(imported).data.template == ""


def branch_of(folder: str, root: str) -> str | None:
    os.environ["STAGECRAFT_RUNS"] = root  # ranks are forked from a process that knows none of this test's own
    return with_base(RECIPE, Request(branch=folder)).branch


def test_ranks_that_come_all_at_once_import_once(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "export")
    assert len(set(run_ranks(3, branch_of, str(tmp_path / "export"), str(tmp_path / "runs")))) == 1
    (imported,) = (tmp_path / "runs" / "imported").iterdir()
    assert plan_run(RECIPE, Request(branch=str(imported)), 2).parent


def test_a_rank_that_waits_for_an_import_ends_when_it_is_asked_to(tmp_path: Path) -> None:
    """A launcher asks so where the rank that imports failed or was killed: the wait would go on for that rank's."""
    (tmp_path / "model").mkdir()
    there = {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "STAGECRAFT_RUNS": str(tmp_path / "runs")}
    lock = tmp_path / "runs" / ".imported.lock"
    with locked(lock):
        line = [sys.executable, "-m", "recipes.tune_sentiment", "--from", str(tmp_path / "model")]
        rank = subprocess.Popen(line, cwd=ROOT, env=there)
        try:
            wait_until(lambda: lock in [file.resolve() for file in Path(f"/proc/{rank.pid}/fd").iterdir()], rank.pid)
            rank.terminate()
            assert rank.wait(timeout=60) == -signal.SIGTERM
        finally:
            rank.kill()
            rank.wait()


def test_a_recipe_that_declares_adapters_has_them_on_what_is_imported(run: Path, tmp_path: Path) -> None:
    folder, recipe = tmp_path / "export", dataclasses.replace(RECIPE, lora=LoRA(4))
    export(run, folder)
    request = with_base(recipe, Request(branch=str(folder)))
    tuned = plan_run(recipe, request, 2)
    assert tuned.recipe.lora.rank == 4 and read_recipe(Path(str(request.branch))).lora.rank == 0
    assert tuned.parent and Path(tuned.parent.base).parents[1] == Path(str(request.branch))
    with pytest.raises(UserError, match="tune_sentiment trains adapters, and an import has all weights of a model"):
        import_model(folder, recipe, tmp_path / "x", None, None)


def test_a_run_is_taken_as_it_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, meant in ((str(run), str(run)), ("mine@800", "mine@800"), (None, None)):
        assert with_base(RECIPE, Request(branch=given)).branch == meant
    monkeypatch.chdir(run.parent.parent)
    beside = f"{run.parent.name}/run@7"  # as a hub id with a revision
    assert named.HUB_ID.fullmatch(beside) and with_base(RECIPE, Request(branch=beside)).branch == beside
    checkpoint = run / "checkpoints" / "step-00000007"
    assert with_base(RECIPE, Request(branch=str(checkpoint))).branch == f"{run}@7"
    again = Request(branch="owner/name", auto=True, run_dir="x")  # it goes on, and asks no hub
    monkeypatch.setattr(
        base, "settled", lambda recipe, asked: dataclasses.replace(asked, resume=asked.auto or asked.resume)
    )
    for other in (Request(branch="owner/name", resume=True), again):
        assert with_base(RECIPE, other) == other
    assert with_base(load("tiny"), Request(branch="owner/name")).branch == "owner/name"  # it does not tune


def test_a_model_of_the_hub_is_fetched_and_imported(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "snapshot"
    export(run, folder)
    asked = []
    monkeypatch.setattr(base, "model_of", lambda text: asked.append(text) or folder)
    request = with_base(RECIPE, Request(branch="owner/name@main"))
    assert asked == ["owner/name@main"] and Path(str(request.branch)).parent.name == "imported"
    assert named.HUB_ID.fullmatch("owner/name@main")


def test_a_folder_without_a_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no model that can be taken"):
        with_base(RECIPE, Request(branch=str(tmp_path / "empty")))
    assert not [*(tmp_path / "runs").glob("*/*")]  # but for a lock
