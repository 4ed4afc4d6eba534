"""Masked and prefix models are measured on what their training's validation asks; pseudo-perplexity by hand."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data.samples.mixture import Mixture, PreparedPart
from data.tokens import prepare
from inference import evaluate
from inference.measuring import losses, models
from inference.measuring.losses import Measured, Objective, mean_loss
from inference.measuring.pseudo import pseudo_loss
from inference.measuring.texts import Text
from model.config import GPTConfig
from model.gpt import GPT
from model.init import init_weights
from model.loss import token_losses
from recipes.registry import load
from recipes.settings import override
from tests.inference.conftest import SHAPE, WORDS
from training.source import Source

END, ENTRIES, LENGTH, MASK = 3, 40, 8, 49


def made(config: GPTConfig) -> GPT:
    model = GPT(config).eval()
    wide = dataclasses.replace(config, init_method_std=0.2)  # so that losses of tokens are far apart
    init_weights({p: name for name, p in model.named_parameters()}, wide, 1)
    return model


@pytest.fixture(params=["masked", "masked separate", "prefix"])
def trained(request: pytest.FixtureRequest, run: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Source, GPT]:
    """A run of an objective, what its training validates on, and its model."""
    objective, _, separate = request.param.partition(" ")
    lines = [json.dumps({"text": f"{WORDS}{i}" * (1 + i % 3), "split": "train"}) for i in range(40)]
    held_out = [json.dumps({"text": f"{i} {WORDS}", "split": "validation"}) for i in range(20)]
    (run.parent / "texts.jsonl").write_text("\n".join(lines + held_out) + "\n")
    folder = prepare.prepare(str(run.parent / "texts.jsonl"), str(run / "tokeniser"), 300, run.parent / "out")
    settings = [f"model.{each}" for each in SHAPE] + [f"model.objective={objective}", "data.masked_share=0.3"]
    recipe = override(load("tiny"), [*settings, f"data.separate_documents={str(bool(separate)).lower()}"])
    mixture = Mixture([PreparedPart("texts", folder, 1)])
    (run / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe)))
    (run / "data.json").write_text(json.dumps(mixture.described))
    model = made(recipe.model)
    monkeypatch.setattr(models, "load_model", lambda run, checkpoint: model)
    return run, Source(recipe, mixture), model


def test_the_loss_is_that_of_the_validation_of_a_training(
    trained: tuple[Path, Source, GPT], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, source, model = trained
    monkeypatch.setattr(losses, "BATCH_TOKENS", 96)  # three windows
    batch = source.validation(list(range(len(source.samples))))
    with torch.no_grad():
        logits = model(batch.tokens_BS, batch.prefix_B, batch.documents_BS)
        each = token_losses(logits, batch.labels_BS, source.entries)
    asked = batch.weights_BS.sum()
    values = evaluate.evaluate(run, "validation")
    assert len(source.samples) > 6 and values["tokens"] == asked < source.mask.sum()
    assert values["loss"] == pytest.approx(float((each * batch.weights_BS).sum() / asked), rel=1e-6)
    masked = source.recipe.model.objective == "masked"
    assert (values["bits_per_byte"] is None) == masked == ("pseudo_perplexity" in values)


def subject(model: GPT, separate: bool = False) -> Measured:
    objective = Objective("masked", mask_token=MASK, separate=separate)
    return Measured(model, 128, LENGTH, ENTRIES, END, END, torch.device("cpu"), objective)


def masked_model() -> GPT:
    return made(GPTConfig(2, 16, 2, seq_length=LENGTH, vocab_size=50, objective="masked"))


def text_of(tokens: NDArray[np.int64]) -> Text:
    return Text("a", lambda start, stop: tokens[start:stop], len(tokens), 1)


def hidden(model: GPT, tokens: NDArray[np.int64], place: int, separate: bool) -> float:
    """The loss of a token that a mask hides in its window, without a batch."""
    start = max(0, min(place // LENGTH * LENGTH, len(tokens) - LENGTH))
    window = torch.from_numpy(tokens[start : start + LENGTH])[None]
    shown, documents = window.clone(), [0]
    shown[0, place - start] = MASK
    for token in window[0, :-1].tolist():
        documents.append(documents[-1] + (token == END))
    with torch.no_grad():
        logits = model(shown, None, torch.tensor([documents]) if separate else None)
    return -float(logits[0, place - start, :ENTRIES].log_softmax(-1)[window[0, place - start]])


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("count", [1, 5, 8, 30])
def test_pseudo_perplexity_by_hand(count: int, separate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token hidden alone; no pass shows two masks."""
    model, tokens = masked_model(), np.random.default_rng(2).integers(ENTRIES, size=count)
    tokens[[0, count // 2]] = END
    monkeypatch.setattr(losses, "BATCH_TOKENS", 3 * LENGTH)
    wanted = [hidden(model, tokens, place, separate) for place in range(count)]
    found = pseudo_loss(subject(model, separate), text_of(tokens), 10**6)
    assert found.mean == pytest.approx(np.mean(wanted), rel=1e-5)
    assert (found.tokens, found.error) == (count, 0)  # nothing was left out


def test_some_tokens_stand_for_all() -> None:
    """They are spread over the text, the same ones at each call; the error is the sample's."""
    model, tokens = masked_model(), np.random.default_rng(2).integers(ENTRIES, size=30)
    found = pseudo_loss(subject(model), text_of(tokens), 5)
    wanted = [hidden(model, tokens, place, False) for place in (3, 9, 15, 21, 27)]
    assert found.mean == pytest.approx(np.mean(wanted), rel=1e-5) and found.tokens == 5
    assert found.error == pytest.approx(np.std(wanted, ddof=1) * np.sqrt((1 - 5 / 30) / 5), rel=1e-4)


@pytest.mark.parametrize("trained", ["masked"], indirect=True)
def test_the_command_says_over_how_many_tokens(
    trained: tuple[Path, Source, GPT], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, _ = trained
    values = evaluate.evaluate(run, "validation", pseudo_tokens=7)
    evaluate.show(values)
    assert "over 7 tokens, each hidden alone" in capsys.readouterr().out
    assert values["pseudo_tokens"] == 7 and values["pseudo_perplexity"] == pytest.approx(np.exp(values["pseudo_loss"]))
    with pytest.raises(ValueError, match="--pseudo-tokens 0 must be at least 1"):
        evaluate.evaluate(run, "validation", pseudo_tokens=0)


def test_a_causal_model_has_no_pseudo_perplexity(run: Path) -> None:
    with pytest.raises(ValueError, match="--pseudo-tokens 5 needs a model of the masked objective; leave it out"):
        evaluate.evaluate(run, "validation", pseudo_tokens=5)


@pytest.mark.parametrize("objective", ["causal", "masked", "prefix"])
def test_a_context_of_one_token(objective: str) -> None:
    model = made(GPTConfig(1, 16, 2, seq_length=1, vocab_size=50, objective=objective))
    tokens = np.random.default_rng(2).integers(ENTRIES, size=5)
    one = dataclasses.replace(subject(model), context=1, objective=Objective(objective, mask_token=MASK))
    found = mean_loss(one, text_of(tokens))
    assert found.tokens == 5 and np.isfinite(found.mean)
