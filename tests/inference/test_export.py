"""An export is as large as its tokeniser, and pads."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from commands import export


def test_an_export_has_a_row_for_each_entry_and_pads_a_batch(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["export", "--run", str(run), "--out", str(run / "out"), "--json"])
    export.main()
    assert json.loads(capfd.readouterr().out) == {
        "run": str(run),
        "folder": str(run / "out"),
        "checkpoint": 7,
        "passed_over": [],
    }
    modes = {file.stat().st_mode & 0o777 for file in (run / "out").iterdir()}
    assert modes == {(run / "out").stat().st_mode & 0o666}  # a colleague reads it who may read the folder
    model, tokeniser = AutoModelForCausalLM.from_pretrained(run / "out"), AutoTokenizer.from_pretrained(run / "out")
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == len(tokeniser)
    assert model.config.pad_token_id == tokeniser.pad_token_id == tokeniser.eos_token_id == 0
    assert tokeniser.padding_side == "right"
    texts = ["the cat", "the rat sat on the mat"]
    with torch.no_grad():
        padded = model(**tokeniser(texts, padding=True, return_tensors="pt")).logits
        for text, together in zip(texts, padded, strict=True):
            (alone,) = model(**tokeniser(text, return_tensors="pt")).logits
            torch.testing.assert_close(together[: len(alone)], alone)
    assert len(alone) > len(tokeniser(texts[0])["input_ids"])
