"""Adapters go out as peft's, come back, and never onto another base; peft itself is the judge."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from commands.__main__ import main
from inference import adapters
from inference.export import export, load_model
from inference.form import Form
from model.checkpoint.base import Base
from model.checkpoint.overlay import fingerprint
from model.checkpoint.read import Reader
from model.checkpoint.weights import write_weights
from model.config import LAYERS, LoRA
from model.lora import shapes
from run import record
from run.branch import point_of
from run.checkpoints import choose
from run.directory import read_recipe
from run.record import Parent
from support.errors import WRONG_INPUT, UserError
from tests.inference.conftest import write_untrained

TOKENS = torch.tensor([[5, 77, 260, 3, 4, 4, 9, 120]])


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    write_untrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(path: Path, base: Path, lora: LoRA) -> Path:
    """A run with adapters of random values on a base."""
    checkpoint, recipe = choose(base), dataclasses.replace(read_recipe(base), lora=lora)
    lies_on = Base(str(checkpoint.path), fingerprint(checkpoint.path), lora.scale)
    shutil.copytree(base, path, ignore=shutil.ignore_patterns("checkpoints"))
    parent = Parent("", str(base), checkpoint.step, 0, base=lies_on.path, base_fingerprint=lies_on.fingerprint)
    who = record.write(path, None, parent)
    (path / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe)))
    generator = torch.Generator().manual_seed(2)
    weights = ((n, torch.randn(s, generator=generator) * 0.3) for n, s in shapes(recipe.model, lora).items())
    state = {"step": 9, "consumed_samples": 144}
    write_weights(path / "checkpoints", weights, {record.RUN: who.id}, state, base=lies_on)
    return path


@pytest.fixture(params=[LAYERS, ("qkv", "out"), ("down",)], ids="-".join)
def run(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> Path:
    return adapted(tmp_path / "lora", base, LoRA(4, 6.0, 0.1, request.param))


def our_logits(run: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(run, choose(run))(TOKENS)


def logits_of(model: torch.nn.Module, like: torch.Tensor) -> torch.Tensor:
    """What a model of transformers says, as wide as its rows."""
    with torch.no_grad():
        found: torch.Tensor = model.eval()(TOKENS).logits
    return found


def test_peft_loads_and_merges_what_is_exported(run: Path, base: Path, tmp_path: Path) -> None:
    export(base, tmp_path / "base_export"), export(run, tmp_path / "merged")
    export(run, tmp_path / "adapter", form=Form("adapter"))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base_export")
    right = our_logits(run)
    untouched = logits_of(plain, right)
    model = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    theirs = logits_of(model, right)
    ours = right[..., : theirs.size(-1)]
    assert (theirs - ours).abs().max() < 1e-5 < 1e-2 < (untouched - ours).abs().max()
    # A weight is at most 4, and its gain a sum of four products below 1: rounding is below 5 x 4 x 2^-24.
    assert "| tuned | with LoRA of rank 4 and alpha 6 beside " in (tmp_path / "merged" / "README.md").read_text()
    merged = model.merge_and_unload().state_dict()
    for name, value in load_file(tmp_path / "merged" / "model.safetensors").items():
        assert torch.allclose(merged[name], value, rtol=0, atol=1.2e-6), name
    with safe_open(str(tmp_path / "adapter" / adapters.WEIGHTS), "pt") as file:
        assert file.metadata()[adapters.FINGERPRINT] == fingerprint(choose(base).path)


def test_what_went_out_comes_back_to_the_bit(run: Path, base: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "adapter", form=Form("adapter"))
    told = adapters.import_adapter(tmp_path / "adapter", point_of(str(base)), tmp_path / "back", None)
    assert told["notes"] == [] and read_recipe(tmp_path / "back").lora == read_recipe(run).lora
    before, after = Reader(choose(run).path), Reader(choose(tmp_path / "back").path)
    assert before.names() == after.names()
    assert all(torch.equal(before.whole(name), after.whole(name)) for name in before.names())
    assert torch.equal(our_logits(tmp_path / "back"), our_logits(run))


def test_what_peft_has_made_comes_in(base: Path, tmp_path: Path) -> None:
    export(base, tmp_path / "export")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    named = {"r": 3, "lora_alpha": 5, "target_modules": ["c_attn", "c_fc"], "init_lora_weights": False}
    model = get_peft_model(plain, LoraConfig(fan_in_fan_out=True, task_type="CAUSAL_LM", **named))  # type: ignore[arg-type]
    model.save_pretrained(str(tmp_path / "theirs"))
    told = adapters.import_adapter(tmp_path / "theirs", point_of(str(base)), tmp_path / "in", None)
    assert "nobody compared" in told["notes"][0] and read_recipe(tmp_path / "in").lora.targets == ("qkv", "up")
    right = our_logits(tmp_path / "in")
    theirs = logits_of(model, right)
    assert (theirs - right[..., : theirs.size(-1)]).abs().max() < 1e-5


@pytest.fixture
def folder(base: Path, tmp_path: Path) -> Path:
    """Adapters as they were exported."""
    run = adapted(tmp_path / "lora", base, LoRA(4, targets=("up",)))
    export(run, tmp_path / "adapter", form=Form("adapter"))
    return tmp_path / "adapter"


def change(folder: Path, **changes: object) -> None:
    file = folder / adapters.CONFIG
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_adapters_of_another_base_are_one_line_and_nothing_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_untrained(tmp_path / "other", "init_method_std=0.03")
    words = ["import", str(folder), "--from", str(tmp_path / "other"), "--run-dir", str(tmp_path / "in")]
    monkeypatch.setattr("sys.argv", ["stagecraft", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    line = capfd.readouterr().err
    assert ended.value.code == WRONG_INPUT and line.count("\n") == 1
    assert f"the adapters in {folder} lie on another base: its fingerprint is" in line
    assert not list(tmp_path.glob("in*"))


@pytest.mark.parametrize(("changes", "words"), [
    ({"peft_type": "IA3"}, "peft_type IA3 is no LoRA that this model has"),
    ({"use_rslora": True}, "use_rslora True is no LoRA"),
    ({"r": 5}, r"lora_A.weight is \(4, 16\), and with this base \(5, 16\)"),
    ({"r": 0}, "r 0 is no LoRA"), ({"alora_invocation_tokens": [3]}, "alora_invocation_tokens .* is no LoRA"),
    ({"r": "x"}, "holds no adapters of peft that can be read"), ({"lora_alpha": -1}, "lora.alpha is -1"),
])  # fmt: skip
def test_other_adapters_are_one_line(
    changes: dict[str, object], words: str, folder: Path, base: Path, tmp_path: Path
) -> None:
    change(folder, **changes)
    with pytest.raises(UserError, match=words) as caught:
        adapters.import_adapter(folder, point_of(str(base)), tmp_path / "in", None)
    assert "\n" not in str(caught.value) and not (tmp_path / "in").exists()


def test_a_matrix_too_few_is_named(folder: Path, base: Path, tmp_path: Path) -> None:
    file = folder / adapters.WEIGHTS
    weights = load_file(file)
    del weights["base_model.model.transformer.h.1.mlp.c_fc.lora_B.weight"]
    save_file(weights, file)
    with pytest.raises(UserError, match=r"do not have the same adapters, for example .*h\.1\.mlp\.c_fc\.lora_B"):
        adapters.import_adapter(folder, point_of(str(base)), tmp_path / "in", None)


def test_what_cannot_be_exported_or_begun_with(folder: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no adapters: all of its weights were trained"):
        export(base, tmp_path / "x", form=Form("adapter"))
    with pytest.raises(UserError, match="exists and holds no adapters"):
        export(tmp_path / "lora", tmp_path / "base", form=Form("adapter"))
    with pytest.raises(UserError, match=r"--from .*lora@9 has adapters itself"):
        adapters.import_adapter(folder, point_of(str(tmp_path / "lora")), tmp_path / "in", None)
    export(tmp_path / "lora", folder, form=Form("adapter"))  # its own place
    shutil.rmtree(base / "checkpoints")
    with pytest.raises(UserError, match=r"step-00000007 is gone, on which the adapters of .* lie"):
        export(tmp_path / "lora", tmp_path / "merged")
