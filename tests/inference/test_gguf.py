"""A GGUF is read back by transformers, by gguf's own reader and by our import."""

import dataclasses
import json
import resource
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from commands.__main__ import main
from data.tokens import tokenisers
from inference.export import export, load_tokeniser
from inference.form import Form
from model.checkpoint.weights import write_weights
from model.config import GPTConfig
from model.convert import detect
from model.convert.gguf_file import names
from model.gpt import GPT
from run.directory import read_recipe
from support.errors import UserError
from support.files import NoRoomError
from tests.inference.test_export import model_of

TYPES = {"f32": "F32", "q8_0": "Q8_0", "q4_0": "Q4_0"}
FAR = {"f32": 4e-6, "q8_0": 2e-2, "q4_0": 0.3}  # of logits up to 1, of weights as they are drawn


def wide(run: Path) -> None:
    """Give the fixture's model rows of 32, which blocks divide."""
    recipe = read_recipe(run)
    model = dataclasses.replace(recipe.model, hidden_size=32, ffn_hidden_size=96)
    (run / "recipe.json").write_text(json.dumps(dataclasses.asdict(dataclasses.replace(recipe, model=model))))
    weights = ((name, parameter.detach()) for name, parameter in model_of(run).named_parameters())
    write_weights(run / "checkpoints", weights, {}, {"step": 7, "consumed_samples": 112})


@pytest.mark.parametrize("quant", list(TYPES))
def test_transformers_reads_it(run: Path, quant: str) -> None:
    wide(run)
    file = run / "model.gguf"
    export(run, file, form=Form("gguf", quantize=quant))
    export(run, run / "out")
    config = GPT2Config.from_pretrained(run / "out")
    theirs = GPT2LMHeadModel(config).eval()  # from_pretrained(gguf_file=…) does the same, with accelerate
    held = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=theirs)
    assert not theirs.load_state_dict(held["tensors"], strict=False).unexpected_keys
    assert held["config"]["n_layer"] == 2 and held["config"]["tie_word_embeddings"]
    tokens = torch.randint(0, config.vocab_size, (2, 32))
    with torch.no_grad():
        ours = model_of(run)(tokens)[..., : config.vocab_size]
        far = (theirs(tokens).logits - ours).abs().max()
        foreign = detect.opened(file)
        back = GPT(foreign.config).eval()
        back.load_state_dict(dict(foreign.weights()))
        alike = (theirs(tokens).logits - back(tokens)[..., : config.vocab_size]).abs().max()
    assert far <= FAR[quant] and (quant == "f32" or far > FAR[quant] / 10) and alike <= 4e-6
    tokeniser, text = load_tokeniser(run), "the rat's cat sat, and more <|endoftext|> 12 ümlaut\n"
    assert AutoTokenizer.from_pretrained(run, gguf_file=file.name)(text)["input_ids"] == tokeniser(text)["input_ids"]
    assert [path.name for path in run.glob(".*")] == []


@pytest.mark.parametrize("quant", list(TYPES))
def test_it_says_what_it_holds(run: Path, quant: str) -> None:
    wide(run)
    export(run, run / "model.gguf", form=Form("gguf", quantize=quant))
    reader = GGUFReader(run / "model.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["position_embd.weight"] == kinds["blk.0.attn_norm.weight"] == kinds["blk.0.attn_qkv.bias"] == "F32"
    assert {kinds[name] for name in ("token_embd.weight", "blk.0.ffn_up.weight", "blk.0.attn_qkv.weight")} == {
        TYPES[quant]
    }
    said = {key: field.contents() for key, field in reader.fields.items()}
    entries = tokenisers.entries(load_tokeniser(run))
    assert said["gpt2.context_length"] == said["gpt2.embedding_length"] == 32 and said["gpt2.feed_forward_length"] == 96
    assert said["general.architecture"] == said["tokenizer.ggml.model"] == "gpt2"
    assert (
        len(said["tokenizer.ggml.tokens"]) == entries and said["tokenizer.ggml.token_type"][0] == gguf.TokenType.CONTROL
    )
    assert (
        said["tokenizer.ggml.eos_token_id"] == 0
        and said["general.file_type"] == {"f32": 0, "q8_0": 7, "q4_0": 2}[quant]
    )


def test_rows_that_blocks_do_not_divide_stay_as_they_are(run: Path) -> None:
    export(run, run / "model.gguf", form=Form("gguf", quantize="q8_0"))  # rows of 16; those of mlp.down have 64
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(run / "model.gguf").tensors}
    assert [name for name, kind in kinds.items() if kind != "F32"] == ["blk.0.ffn_down.weight", "blk.1.ffn_down.weight"]


def test_an_import_gives_the_weights_back_to_the_bit(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["stagecraft", "export", "--run", str(run), "--format", "gguf", "--json"]
    monkeypatch.setattr("sys.argv", command)
    main()
    file = Path(json.loads(capfd.readouterr().out)["folder"])
    assert file == run / "export.gguf"
    back = ["stagecraft", "import", str(file), "--recipe", "tiny", "--run-dir", str(run / "back"), "--json"]
    monkeypatch.setattr("sys.argv", [*back, "--tokeniser", str(run / "tokeniser")])
    main()
    said = capfd.readouterr()
    assert json.loads(said.out)["form"] == "GGUF GPT-2" and "not writable" not in said.err
    model, foreign = model_of(run), detect.opened(file)
    assert foreign.notes == () and foreign.config.seq_length == 32
    for name, value in foreign.weights():
        wanted = model.get_parameter(name)
        rows = foreign.config.vocab_size if name == "embed.weight" else len(value)
        assert value[:rows].equal(wanted[:rows]) and not value[rows:].any(), name
    export(run, file, form=Form("gguf", quantize="q8_0"))  # in the place of the first
    assert detect.opened(file).notes == ("some weights were rounded to Q8_0 when the file was made",)


def refused(path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as raised:
        list(detect.opened(path).weights())
    assert "\n" not in str(raised.value)


def other(path: Path, architecture: str, **more: int) -> Path:
    """A GGUF with the words of a GPT-2 and without its tensors."""
    writer = GGUFWriter(path, architecture)
    for key, value in {
        "block_count": 1,
        "embedding_length": 8,
        "context_length": 8,
        "feed_forward_length": 8,
        **more,
    }.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_uint32(f"{architecture}.attention.head_count", 1)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tensor("token_embd.weight", np.zeros((9, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_what_is_no_gpt2_is_one_line(tmp_path: Path) -> None:
    refused(other(tmp_path / "a.gguf", "llama"), "holds a model of type llama, not a GPT-2")
    refused(other(tmp_path / "b.gguf", "gpt2"), "lacks the tensor position_embd.weight")
    refused(other(tmp_path / "b.gguf", "gpt2", block_count=2**31), "says 2147483648 blocks and has 1 tensors")
    content = (tmp_path / "b.gguf").read_bytes()
    for torn in (b"", content[:100], content[:-100], b"GGML" + content[4:]):
        (tmp_path / "c.gguf").write_bytes(torn)
        refused(tmp_path / "c.gguf", "cannot be read as GGUF")


def test_a_tensor_that_this_model_has_not_is_named(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(run, run / "model.gguf", form=Form("gguf"))
    reader = GGUFReader(run / "model.gguf")
    reader.tensors.append(reader.tensors[-1]._replace(name="blk.0.attn_q_norm.weight"))
    monkeypatch.setattr(gguf, "GGUFReader", lambda path: reader)
    refused(run / "model.gguf", "has the tensor blk.0.attn_q_norm.weight, which this model has not")


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "mine.gguf").write_text("thesis")
    with pytest.raises(UserError, match="exists and is no GGUF"):
        export(run, run / "mine.gguf", form=Form("gguf"))
    with pytest.raises(UserError, match="--dtype bf16 does not go with --format gguf"):
        Form("gguf", dtype="bf16")
    with pytest.raises(UserError, match="--quantize q8_0 does not go with --format hf"):
        Form(quantize="q8_0")
    before = sorted(path.name for path in run.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))  # a file of more is refused as on a full disk
    try:
        with pytest.raises(NoRoomError, match="no room left to write"):
            export(run, run / "new.gguf", form=Form("gguf"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    words = json.loads((run / "tokeniser" / "tokenizer.json").read_text())
    (run / "tokeniser" / "tokenizer.json").write_text(json.dumps({**words, "pre_tokenizer": {"type": "Whitespace"}}))
    with pytest.raises(UserError, match="no byte-level BPE as GPT-2's but BPE and Whitespace"):
        export(run, run / "new.gguf", form=Form("gguf"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match="needs the package gguf; install it with"):
        export(run, run / "new.gguf", form=Form("gguf"))
    assert sorted(path.name for path in run.iterdir()) == before


def test_every_parameter_has_a_name() -> None:
    config = GPTConfig(2, 8, 1, 8, 8)
    assert names(config).keys() == dict(GPT(config).named_parameters()).keys() and all(names(config).values())
