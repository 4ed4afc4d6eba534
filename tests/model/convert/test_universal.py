"""Universal checkpoints built by hand, with the names of Megatron-DeepSpeed, of its pipeline and of gpt-neox."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from model.convert import detect, universal
from support.errors import UserError
from tests.model.convert.test_megatron import ARGS, STEMS, known, same

ENCODER = "language_model.encoder."
PREFIX = {  # of the embeddings, of a block, of the last norm
    "megatron": ("language_model.embedding.", f"{ENCODER}layers.NUMBER.", f"{ENCODER}final_layernorm."),
    "pipeline": ("tied_modules.embed.", "NUMBER.", "6."),
    "neox": ("sequential.0.", "sequential.NUMBER.", "sequential.5.norm."),
}
FIRST = {"megatron": 0, "pipeline": 3, "neox": 2}  # number of the first block


def their_name(name: str, style: str) -> str:
    """What a program calls one of our parameters."""
    (embedding, block, norm), attention = PREFIX[style], "attention" if style == "neox" else "self_attention"
    if name.startswith("blocks."):
        _, number, inner = name.split(".", 2)
        stem, _, kind = inner.rpartition(".")
        layer = block.replace("NUMBER", str(int(number) + FIRST[style]))
        return f"{layer}{STEMS[stem].replace('ATTENTION', attention)}.{kind}"
    if name.startswith("final_norm"):
        return norm + name.rpartition(".")[2]
    return f"{embedding}{'word' if name == 'embed.weight' else 'position'}_embeddings.weight"


def write(root: Path, style: str, args: Any = None) -> None:
    """A checkpoint as `ds_to_universal` leaves it."""
    for name, value in known().state_dict().items():
        theirs = their_name(name, style)
        folder = root / "step9_universal" / "zero" / theirs
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"param": value, "cat_dim": 0}, folder / "fp32.pt")
        torch.save({"param": torch.zeros_like(value)}, folder / "exp_avg.pt")
    (root / universal.LATEST).write_text("step9_universal\n")
    torch.save({"args": args, "ds_version": "0.19.8"}, root / "step9_universal" / universal.SAID)


@pytest.mark.parametrize("style", list(PREFIX))
def test_it_is_read_to_the_bit(tmp_path: Path, style: str) -> None:
    told = {**ARGS, "tensor_model_parallel_size": 8}
    write(tmp_path, style, told if style == "neox" else argparse.Namespace(**told))
    foreign = detect.opened(tmp_path)
    assert foreign.form == "universal checkpoint of DeepSpeed's" and not foreign.notes
    assert same(known(), dict(foreign.weights()))
    assert detect.opened(tmp_path / "step9_universal").config == foreign.config


def test_what_cannot_be_taken_is_one_line(tmp_path: Path) -> None:
    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as raised:
            detect.opened(tmp_path)
        assert "\n" not in str(raised.value)

    write(tmp_path, "neox", {**ARGS, "gpt_j_residual": True})
    refused("gpt_j_residual=True; this model has False")
    write(tmp_path, "neox", ARGS)
    zero = tmp_path / "step9_universal" / "zero"
    head = zero / "sequential.6.final_linear.weight"
    head.mkdir()
    torch.save({"param": torch.ones(2, 2)}, head / "fp32.pt")
    refused("has a head .*final_linear.weight. of its own")
    (head / "fp32.pt").unlink()
    (zero / "sequential.0.position_embeddings.weight" / "fp32.pt").unlink()  # what has rotary positions
    refused("lacks the tensor language_model.embedding.position_embeddings.weight")
    torch.save([1], head / "fp32.pt")
    refused("holds no tensor")
