"""What a run that tunes takes from the model that it begins with, and what it may not change."""

import dataclasses
import json
from pathlib import Path

import pytest

from recipes.recipe import Data
from recipes.registry import load
from recipes.settings import override
from run import record
from run.directory import Run
from run.prepared import form_of, recipe_data
from run.record import Parent
from run.request import Request, plan_run
from support.errors import UserError
from tests.run import directories

SHAPE = ["model.num_layers=3", "model.hidden_size=96", "model.vocab_size=2048", "model.seq_length=32"]


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of another shape than the recipe that tunes says, with a checkpoint of step 400."""
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    path = directories.run(tmp_path / "runs", "20270101-100000", steps=400, name="mine", settings=SHAPE)
    directories.checkpoint(path, 400)
    return path


def tune(text: str | None, *settings: str, **more: object) -> Run:
    return plan_run(load("tune_sentiment"), Request(settings=settings, branch=text, **more), 2)  # type: ignore[arg-type]


def test_it_begins_anew_with_the_weights_the_shape_and_the_tokeniser_of_its_base(base: Path) -> None:
    run, recipe = tune("mine", "model.dropout=0.1"), load("tune_sentiment")
    who = record.read(base)
    assert who and run.parent == Parent(who.id, str(base), 400, 0, tuned=True)
    assert run.recipe.model == dataclasses.replace(
        recipe.model, num_layers=3, hidden_size=96, vocab_size=2048, seq_length=32, ffn_hidden_size=384, dropout=0.1
    )
    assert run.recipe.data == dataclasses.replace(recipe.data, tokeniser=str(base / "tokeniser"))
    assert run.recipe.optimizer == recipe.optimizer and run.recipe.schedule == recipe.schedule
    assert run.data_from == 0 and run.last_step_from(0, 0) == -(-recipe.schedule.train_tokens // (4 * 32))
    assert [line for line in run.engine.deviations if "recipe" in line] == ["model.dropout is 0.1 (recipe: 0.0)"]
    assert tune("mine", max_steps=5).max_steps == 5  # the steps of its base do not count


def test_a_resume_and_a_branch_of_it_go_on_with_what_it_has(base: Path) -> None:
    run = tune("mine")
    path = directories.run(base.parents[1], "20270102-100000", steps=20, name="felt")
    (path / "recipe.json").write_text(json.dumps(dataclasses.asdict(run.recipe)))
    who = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**who, "parent": dataclasses.asdict(run.parent)}))  # type: ignore[call-overload]
    resumed = tune(None, run_dir=str(path), resume=True)
    assert resumed.recipe == run.recipe and resumed.parent == run.parent
    assert not [line for line in resumed.engine.deviations if "recipe" in line]
    directories.checkpoint(path, 20)
    goes_on = tune("felt", "optimizer.lr=1e-4")
    assert goes_on.parent and not goes_on.parent.tuned and goes_on.parent.consumed_samples > 0
    assert goes_on.recipe.data == run.recipe.data and goes_on.data_from == 0


@pytest.mark.parametrize(
    ("text", "settings", "words"),
    [
        (None, (), "tune_sentiment tunes a model; say which with --from: a run, the folder of a model, or a hub id"),
        ("mine", ("data.tokeniser=gpt2",), "--set data.tokeniser=gpt2: a model that is tuned keeps its own; leave"),
        ("mine", ("model.num_layers=2",), "its model has num_layers 3, not 2, and a branch keeps the shape"),
        ("mine", ("data.template=Say it.",), "data.template"),
        (
            "mine",
            ("data.clean=default",),
            "data.template tunes a model on examples, and data.clean default is for texts",
        ),
    ],
)
def test_what_cannot_be_is_one_line(base: Path, text: str | None, settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as error:
        form_of(tune(text, *settings).recipe)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_preferences_begin_anew_from_a_run_of_the_same_name_without(base: Path) -> None:
    run = tune("mine")
    path = directories.run(base.parents[1], "20270102-100000", steps=20, name="felt")
    (path / "recipe.json").write_text(json.dumps(dataclasses.asdict(run.recipe)))
    directories.checkpoint(path, 20)
    prefers = tune("felt", "dpo.beta=0.2")
    assert prefers.parent and prefers.parent.tuned and prefers.parent.consumed_samples == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("dpo.beta=-1",), "dpo.beta is -1.0; it must be above 0, or 0 for no preferences"),
        (("dpo.beta=inf",), "dpo.beta is inf; it must be above 0"),
        (
            ("dpo.beta=0.1", "data.template={text}"),
            "dpo.beta 0.1 needs data.template auto, and rows with prompt, chosen",
        ),
        (("dpo.beta=0.1", "teacher.model=x"), "teacher.model does not go with data.template: a teacher reads texts"),
    ],
)
def test_preferences_that_cannot_be_are_one_line(settings: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError) as error:
        override(load("tune_sentiment"), list(settings))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_line_end_of_a_template_can_be_typed() -> None:
    wanted = override(load("tune_sentiment"), [r"data.template=Q: {a}={b}\n\nA: {c}"])
    assert wanted.data.template == "Q: {a}={b}\n\nA: {c}"


def test_a_declaration_that_cannot_be_is_one_line() -> None:
    with pytest.raises(UserError, match=r"data.tokeniser bpe:300 is for texts; leave it out"):
        Data(corpus="x", tokeniser="bpe:300", template="auto")
    with pytest.raises(UserError, match=r"data.tokeniser base is that of a model that is tuned; give data.template"):
        Data(corpus="x", tokeniser="base")
    with pytest.raises(UserError, match=r"data.template does not go with model.objective masked"):
        override(load("tune_sentiment"), ["model.objective=masked"])
    with pytest.raises(UserError, match=r"tunes a model, in the tokens of that; say which: pretrain takes --from RUN"):
        recipe_data(load("tune_sentiment"), print)
