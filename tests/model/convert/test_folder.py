"""GPT-2 folders of all ages are the same model; what is no such model is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from model.convert import detect
from model.gpt import GPT
from support.errors import UserError
from tests.model.test_huggingface import LOGIT_TOLERANCE, randomise

SHAPE = {"vocab_size": 301, "n_positions": 32, "n_embd": 48, "n_layer": 2, "n_head": 4}


def gpt2(folder: Path, **more: Any) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, and its folder."""
    hf = GPT2LMHeadModel(GPT2Config(**SHAPE, **more)).eval()
    randomise(hf)
    hf.save_pretrained(folder)
    return hf


def ours(folder: Path) -> GPT:
    foreign = detect.opened(folder)
    model = GPT(foreign.config).eval()
    model.load_state_dict(dict(foreign.weights()))
    return model


def rewritten(folder: Path, kind: str) -> None:
    """The same weights as other programs keep them."""
    tensors = load_file(folder / "model.safetensors")
    if kind == "openai":  # no prefix, causal masks, a head beside the embedding
        tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
        tensors |= {"h.0.attn.bias": torch.ones(1, 1, 32, 32), "lm_head.weight": tensors["wte.weight"].clone()}
        save_file(tensors, folder / "model.safetensors")
        return
    (folder / "model.safetensors").unlink()
    if kind == "pickle":
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    parts = [dict(list(tensors.items())[:9]), dict(list(tensors.items())[9:])]
    for number, part in enumerate(parts):
        torch.save(part, folder / f"pytorch_model-{number}.bin")
    weight_map = {name: f"pytorch_model-{number}.bin" for number, part in enumerate(parts) for name in part}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("kind", ["as it is", "openai", "pickle", "pickles"])
def test_a_folder_is_the_same_model(tmp_path: Path, kind: str) -> None:
    hf = gpt2(tmp_path, n_inner=80, activation_function="gelu_pytorch_tanh")
    if kind != "as it is":
        rewritten(tmp_path, kind)
    tokens = torch.randint(0, 301, (2, 32))
    with torch.no_grad():
        assert (ours(tmp_path)(tokens)[..., :301] - hf(tokens).logits).abs().max() <= LOGIT_TOLERANCE


def test_shards_and_halves_are_read(tmp_path: Path) -> None:
    hf = gpt2(tmp_path)
    hf.bfloat16().save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    (tmp_path / "model.safetensors").unlink(missing_ok=True)
    assert ours(tmp_path).embed.weight[:301].equal(hf.transformer.wte.weight.float())


def test_one_dropout_is_taken_and_said(tmp_path: Path) -> None:
    gpt2(tmp_path, resid_pdrop=0.3)
    foreign = detect.opened(tmp_path)
    assert foreign.config.dropout == 0.3
    assert foreign.notes == ("dropout is 0.3 everywhere; the folder has [0.1, 0.3]",)


def test_what_cannot_be_taken_is_one_line(tmp_path: Path) -> None:
    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as raised:
            list(detect.opened(tmp_path).weights())
        assert "\n" not in str(raised.value)

    refused("holds no model that can be taken")
    config = tmp_path / "config.json"
    config.write_text('{"model_type": "llama"}')
    refused("holds a model of type llama, not a GPT-2")
    config.write_text("[")
    refused("config.json cannot be read")
    gpt2(tmp_path)
    kept, weights = json.loads(config.read_text()), load_file(tmp_path / "model.safetensors")
    for change, words in (
        ({"activation_function": "gelu"}, "activation_function='gelu'; this model has 'gelu_new'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon=1e-06"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"n_positions": 64}, r"transformer.wpe.weight has shape \[32, 48\] where config.json says \[64, 48\]"),
        ({"n_embd": 96}, "where config.json says"),
        ({"n_layer": 3}, "lacks the tensor transformer.h.2.ln_1.weight"),
    ):
        config.write_text(json.dumps({**kept, **change}))
        refused(words)
    config.write_text(json.dumps(kept))
    save_file(
        {**weights, "transformer.h.0.crossattention.c_attn.weight": torch.ones(1)}, tmp_path / "model.safetensors"
    )
    refused("crossattention.c_attn.weight, which a GPT-2 has not")
    save_file({**weights, "lm_head.weight": torch.ones(301, 48)}, tmp_path / "model.safetensors")
    refused("is not its embedding")
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    refused("model.safetensors cannot be read")
    (tmp_path / "model.safetensors").unlink()
    refused("holds no weights")
    torch.save({"transformer.wte.weight": [1, 2]}, tmp_path / "pytorch_model.bin")
    refused("holds more than tensors by name")
    with pytest.raises(UserError, match="is no folder and no GGUF"):
        detect.opened(tmp_path / "gone")


def test_a_folder_with_anything_in_any_place_is_one_line(tmp_path: Path) -> None:
    gpt2(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as raised:
            list(detect.opened(tmp_path).weights())
        assert "\n" not in str(raised.value)

    told = json.loads((tmp_path / "config.json").read_text())
    for name, value in (("n_embd", "x"), ("n_head", None), ("n_layer", 1.5), ("attn_pdrop", []), ("dtype", "x")):
        (tmp_path / "config.json").write_text(json.dumps(told | {name: value}))
        refused(f"is not laid out as the program writes it .*'{value if name == 'dtype' else name}'")
    (tmp_path / "config.json").write_text(json.dumps(told))
    name = "transformer.h.1.mlp.c_fc.weight"
    torch.save(whole, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(told | {"n_layer": 10**9}))
    refused("config.json says 1000000000 layers and 28 tensors are there")
    (tmp_path / "config.json").write_text(json.dumps(told))
    for held, words in (
        ({1: torch.ones(2)}, "'int' object has no attribute"),
        (whole | {name: whole[name].to_sparse()}, "RuntimeError"),
        (whole | {name: whole[name].char()}, "are int8: no weights as they are trained"),
        (whole | {name: whole[name].cfloat()}, "are complex64: no weights"),
        (whole | {name: torch.quantize_per_tensor(whole[name], 0.1, 0, torch.qint8)}, "are qint8: no weights"),
    ):
        torch.save(held, tmp_path / "pytorch_model.bin")
        refused(words)
    for weight_map in ([], None, {name: 1}, {name: None, "x": "y"}):
        (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
        refused("is not laid out as the program writes it")
