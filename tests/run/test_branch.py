"""What a branch takes from its parent, what it may change, and where its data begin."""

import json
import shutil
from pathlib import Path

import pytest

from recipes.registry import load
from run import record
from run.directory import Run
from run.record import Parent
from run.request import Request, plan_run
from support.errors import UserError
from tests.run import directories


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 400 of 1,600 steps with checkpoints of steps 200 and 400."""
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    path = directories.run(
        tmp_path / "runs", "20270101-100000", steps=400, name="mine", settings=["optimizer.lr=0.002"]
    )
    directories.checkpoint(path, 200)
    directories.checkpoint(path, 400)
    return path


def branch(text: str, *settings: str, recipe: str = "tiny", **more: object) -> Run:
    return plan_run(load(recipe), Request(settings=settings, branch=text, **more), 2)  # type: ignore[arg-type]


def test_a_branch_without_a_change_goes_on_with_its_parent_s_recipe_and_json(parent: Path) -> None:
    (parent / "ds_config.json").write_text((parent / "ds_config.json").read_text().replace('"stage": 1', '"stage": 2'))
    run = branch("mine")
    assert run.recipe.optimizer.lr == 0.002 and run.engine.json["zero_optimization"]["stage"] == 2
    assert run.parent == Parent(record.read(parent).id, str(parent), 400, 6400, (), 0)  # type: ignore[union-attr]
    assert run.parent.checkpoint == parent / "checkpoints" / "step-00000400" and not run.resume and run.path != parent
    assert branch("mine@200").parent.consumed_samples == 3200  # type: ignore[union-attr]
    assert branch(f"{parent}@200").parent == branch("newest@200").parent


def test_what_a_branch_changes_is_listed(parent: Path) -> None:
    settings = ("optimizer.lr=0.001", "schedule.train_tokens=3_000_000", "model.dropout=0.1", "intervals.save_every=7")
    run = branch("mine", *settings, deepspeed_config="ds_configs/zero2_fp16.json")
    changes = run.parent.changes  # type: ignore[union-attr]
    assert changes[:4] == (
        "model.dropout 0.0 -> 0.1", "optimizer.lr 0.002 -> 0.001",
        "schedule.train_tokens 1638400 -> 3000000", "intervals.save_every 800 -> 7",
    )  # fmt: skip
    assert "zero_optimization.stage 1 -> 2" in changes and "fp16.enabled none -> True" in changes
    alone = plan_run(load("tiny"), Request(branch="mine"), 1)
    assert alone.parent.changes == ("processes 2 -> 1",)  # type: ignore[union-attr]


def test_other_data_begin_at_their_start_and_keep_the_parent_s_tokeniser(parent: Path) -> None:
    run = branch("mine", "data.corpus=my/texts")
    assert run.data_from == run.parent.consumed_samples == 6400  # type: ignore[union-attr]
    assert run.recipe.data.tokeniser == str(parent / "tokeniser")  # bpe:4096 of other texts would be another one
    assert branch("mine", "data.corpus=my/texts", "data.tokeniser=gpt2x").recipe.data.tokeniser == "gpt2x"
    assert branch("mine", seed=7).data_from == 6400  # another order, from its start
    assert branch("mine", seed=7).recipe.data.tokeniser == "bpe:4096"
    assert branch("mine", "optimizer.lr=1e-4").data_from == 0


def test_a_branch_of_a_branch_reads_on_where_the_first_was(parent: Path, tmp_path: Path) -> None:
    first = {"id": "a" * 16, "path": "gone", "step": 100, "consumed_samples": 1600, "changes": [], "data_from": 1600}
    who = json.loads((parent / "run.json").read_text())
    (parent / "run.json").write_text(json.dumps({**who, "parent": first}))
    assert branch("mine").data_from == 1600
    assert branch("mine", "data.corpus=my/texts").data_from == 6400


def test_a_recipe_of_another_name_is_taken_as_it_is(parent: Path) -> None:
    stored = json.loads((parent / "recipe.json").read_text())
    (parent / "recipe.json").write_text(json.dumps({**stored, "name": "gpt_mine"}))
    run = branch("mine")
    assert run.recipe == load("tiny")
    assert run.parent.changes == (  # type: ignore[union-attr]
        "name gpt_mine -> gpt_tiny", "optimizer.lr 0.002 -> 0.003",
    )  # fmt: skip


@pytest.mark.parametrize(("text", "settings", "words"), [
    ("mine", ["model.num_layers=3"], "its model has num_layers 2, not 3, and a branch keeps the shape"),
    ("mine", ["model.objective=masked"], "its model has objective causal, not masked"),
    ("mine@", [], "--from mine@: write run@step, run@best, or run alone"),
    ("@200", [], "--from @200: write run@step"),
    ("mine@300", [], "has no checkpoint of step 300; there are 200, 400"),
    ("mine@soon", [], "'soon' is no checkpoint of .*; give a step .200, 400., best or newest"),
    ("mine@best", [], "no validation loss of .* was measured at a step that is saved"),
    ("", [], "an empty text"),
    ("../mine", [], "../mine is not a run directory"),
    ("me", [], "'me' is not a run directory, nor the name of a run below .* mean mine"),
    ("mine", ["schedule.train_tokens=400_000", "schedule.decay_tokens=400_000"], "409,600 tokens were read there, and"),
])  # fmt: skip
def test_what_no_branch_can_begin_with_is_one_line(
    text: str, settings: list[str], words: str, parent: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        branch(text, *settings)
    assert "\n" not in str(caught.value)


def test_flags_that_do_not_go_together(parent: Path) -> None:
    with pytest.raises(UserError, match=r"--max-steps 400 is not after step 400, where --from .*@400 begins"):
        branch("mine", max_steps=400)
    with pytest.raises(UserError, match="--resume goes on with a run, and --from begins another"):
        branch("mine", resume=True)
    with pytest.raises(UserError, match="--name names a new run"):
        plan_run(load("tiny"), Request(resume=True, name="x"), 2)
    for setting, words in (("data.corpus=x", "begin a branch of it with --from"), ("model.num_layers=3", "a new run")):
        with pytest.raises(UserError, match=f"resume it without that setting, or .*{words}"):
            plan_run(load("tiny"), Request(resume=True, settings=(setting,)), 2)


@pytest.mark.parametrize("name", ["", " ", "../x", "a/b", "a@b", "newest:345m", "-x", ".x", "x y", "a" * 65, "x\n"])
def test_what_is_no_name(name: str, parent: Path) -> None:
    with pytest.raises(UserError, match="is no name; write 1 to 64"):
        plan_run(load("tiny"), Request(name=name), 2)


@pytest.mark.parametrize(("name", "means"), [
    ("mine", "20270101-100000"), ("20270101-100000", "20270101-100000"), ("newest", "the newest run"),
    ("tiny", "the recipe gpt_tiny"), ("gpt_345m", "the recipe gpt_345m"),
])  # fmt: skip
def test_a_name_that_means_something_already(name: str, means: str, parent: Path) -> None:
    with pytest.raises(UserError, match=f"--name {name} means .*{means} already; give another"):
        plan_run(load("tiny"), Request(name=name), 2)


def test_a_start_that_came_to_nothing_does_not_keep_its_name(parent: Path) -> None:
    (parent / "metrics.jsonl").write_text("")
    assert plan_run(load("tiny"), Request(name="mine"), 2).name == "mine"


def test_a_name_may_be_of_any_letters(parent: Path) -> None:
    assert plan_run(load("tiny"), Request(name="u\u0308bung-2.b_1"), 2).name == "\u00fcbung-2.b_1"


def test_a_damaged_checkpoint_is_passed_over_or_refused(parent: Path) -> None:
    shutil.rmtree(parent / "checkpoints" / "step-00000400")
    directories.checkpoint(parent, 400, damaged=True)
    assert branch("mine").parent.step == 200  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"is not the file that its manifest describes; restore it, .* may be 200"):
        branch("mine@400")
