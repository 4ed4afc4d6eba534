"""A run whose model is sure of what it says: large weights, so that texts are not one token over and over."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from data.tokens import tokenisers
from model.checkpoint.weights import write_weights
from model.gpt import GPT
from model.init import init_weights
from recipes.registry import ROOT, load
from recipes.settings import override
from tests.inference.conftest import WORDS
from tests.inference.tasks import made

SHAPE = ["num_layers=2", "hidden_size=32", "num_attention_heads=2", "seq_length=16", "vocab_size=400"]
STEP = 7


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run is, its export and the folder of tasks. What `datasets` caches lies there too."""
    from inference.export import export

    home = tmp_path_factory.mktemp("home")
    path = home / "run"
    tokenisers.save(tokenisers.train_bpe([WORDS] * 9, 300), path / "tokeniser")
    recipe = override(load("tiny"), [f"model.{setting}" for setting in (*SHAPE, "init_method_std=0.3")])
    (path / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe)))
    for name in ("ds_config.json", "ds_config.resolved.json"):
        (path / name).write_text((ROOT / "ds_configs" / "zero1_fp32.json").read_text())
    model = GPT(recipe.model).eval()
    init_weights({p: name for name, p in model.named_parameters()}, recipe.model, 1)
    weights = ((name, parameter.detach()) for name, parameter in model.named_parameters())
    write_weights(path / "checkpoints", weights, {}, {"step": STEP, "consumed_samples": 16 * STEP})
    export(path, home / "export")
    made.folder(home / "tasks")
    return home


@pytest.fixture(autouse=True)
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` writes what it has read into the test's folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "cache")
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
