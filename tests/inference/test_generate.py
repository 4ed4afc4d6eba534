"""What is written can be read: no id that the tokeniser does not have."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from commands import generate
from data.tokens import tokenisers
from inference.generate import load, meaningless
from model.config import GPTConfig
from model.gpt import GPT
from model.huggingface import to_hf
from tests.data.tokens.test_tokenisers import with_gap
from tests.inference.conftest import WORDS

FLAGS = [["--top-k", "0"], ["--top-k", "0", "--repetition-penalty", "5"], ["--top-p", "0.9"], ["--greedy"]]


def written(run: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids that `generate` writes in eight texts."""
    ids: list[int] = []
    kept = GPT2LMHeadModel.generate

    def noted(self: Any, inputs: torch.Tensor, **settings: Any) -> Any:
        output = kept(self, inputs, **settings)
        ids.extend(output[0, inputs.size(1) :].tolist())
        return output

    monkeypatch.setattr(GPT2LMHeadModel, "generate", noted)
    command = ["generate", "--run", str(run), "--prompt", "the", "--samples", "8", "--json", *flags]
    monkeypatch.setattr("sys.argv", command)
    generate.main()
    return ids


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_a_run_with_more_room_than_entries_writes_entries_only(
    run: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = written(run, flags, monkeypatch)
    assert len(json.loads(capsys.readouterr().out)["samples"]) == 8 and len(ids) > 100
    known = set(tokenisers.load(str(run / "tokeniser")).get_vocab().values())
    assert set(ids) <= known  # by chance, of 4,096 equally likely ids: 0.07 to the power of the number of ids
    assert len(set(ids)) > 100 or "--greedy" in flags


def test_neither_gaps_nor_the_padding_of_another_model_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_gap(tmp_path / "folder", [WORDS] * 9)
    tokeniser = tokenisers.load(str(folder))
    # With all weights zero every id is as likely as any other.
    model = GPT(GPTConfig(num_layers=1, hidden_size=8, num_attention_heads=1, seq_length=32, vocab_size=512))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    to_hf(model, 400, 0, 0).save_pretrained(str(folder))
    ids = written(folder, ["--top-k", "0"], monkeypatch)
    known = tokeniser.get_vocab().values()
    assert set(ids) <= set(known) and max(ids) >= 261  # past the gap
    assert len(ids) > 100 and len(set(ids)) > len(known) / 3
    assert meaningless(GPT2LMHeadModel.from_pretrained(folder), tokeniser) == [
        *range(257, 261), *range(max(known) + 1, 400)
    ]  # fmt: skip


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"cannot be read as a model: Unrecognized model .*; give a run"):
        load(tmp_path)
    OPTForCausalLM(
        OPTConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, ffn_dim=8, num_attention_heads=1)
    ).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds an? OPTForCausalLM, not a GPT-2"):
        load(tmp_path)
    GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    tokenisers.save(tokenisers.train_bpe([WORDS] * 9, 300), tmp_path)
    entries = tokenisers.entries(tokenisers.load(str(tmp_path)))
    with pytest.raises(ValueError, match=f"a tokeniser of {entries} entries for a model of 256"):
        load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"cannot be read as a model: .*header"):
        load(tmp_path)


def test_a_prompt_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--prompt is not UTF-8 at byte 1; convert it"):
        generate.read_prompt(os.fsdecode(b"a\xff"), None)
    with pytest.raises(ValueError, match=r"prompt file .*none\.txt does not exist; give"):
        generate.read_prompt(None, tmp_path / "none.txt")
    monkeypatch.setattr("sys.stdin", None)  # as where it is closed
    assert generate.read_prompt(None, None) == "" and generate.read_prompt("Käse 漢字", None) == "Käse 漢字"
