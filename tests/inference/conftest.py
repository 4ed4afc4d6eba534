"""A run that was never trained: what commands read of one, made in a moment."""

import dataclasses
import json
from pathlib import Path

import pytest

from data.tokens import tokenisers
from inference import export
from inference.measuring import models
from model.checkpoint.weights import write_weights
from model.gpt import GPT
from model.init import init_weights
from recipes.registry import ROOT, load
from recipes.settings import override

WORDS = "the cat sat on the mat, the rat sat on the cat <|endoftext|> and more\n"
ROOM = 4096  # entries that the model has room for, many times the tokeniser's
SHAPE = ["num_layers=2", "hidden_size=16", "num_attention_heads=2", "seq_length=32", f"vocab_size={ROOM}"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's directory with a checkpoint of random weights; `load_model` gives one model to all who ask."""
    path = tmp_path / "run"
    tokenisers.save(tokenisers.train_bpe([WORDS] * 9, 300), path / "tokeniser")
    recipe = override(load("tiny"), [f"model.{setting}" for setting in SHAPE])
    (path / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe)))
    for name in ("ds_config.json", "ds_config.resolved.json"):
        (path / name).write_text((ROOT / "ds_configs" / "zero1_fp32.json").read_text())
    model = GPT(recipe.model).eval()
    init_weights({p: name for name, p in model.named_parameters()}, recipe.model, 1)
    weights = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    write_weights(path / "checkpoints", weights, {}, {"step": 7, "consumed_samples": 112})
    for module in (models, export):
        monkeypatch.setattr(module, "load_model", lambda run, checkpoint=None: model)
    return path
