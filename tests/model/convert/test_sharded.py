"""Distributed checkpoints in the form of megatron-core's, damaged; test_megatron.py has one that it wrote."""

import argparse
import dataclasses
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter, save
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata

from model.convert import detect, sharded
from model.gpt import GPT
from support.errors import UserError
from tests.model.convert.test_megatron import ARGS, CORE, known, same
from tests.model.convert.test_pickles import Harmful


def write(folder: Path, masters: bool = False, model: GPT | None = None, **args: object) -> None:
    """A model, by default the known one, by the names of megatron-core, with layers stacked."""
    tensors: dict[str, torch.Tensor] = {}
    stacks: dict[str, list[torch.Tensor]] = {}
    for name, value in (model or known()).state_dict().items():
        for ours, theirs in {
            "embed.": "embedding.word_embeddings.", "position.": "embedding.position_embeddings.",
            "final_norm.": "decoder.final_layernorm.", **CORE,
        }.items():  # fmt: skip
            name = name.replace(ours, theirs)
        if name.startswith("blocks."):
            stacks.setdefault("decoder.layers." + name.split(".", 2)[2], []).append(value)
        else:
            tensors[name] = value
    tensors |= {name: torch.stack(values) for name, values in stacks.items()}
    if masters:
        tensors = {
            **{name: value.bfloat16() for name, value in tensors.items()},
            **{f"optimizer.state.fp32_param.{name}": value for name, value in tensors.items()},
        }
    save(tensors, storage_writer=FileSystemWriter(folder), no_dist=True)
    torch.save({"args": argparse.Namespace(**{**ARGS, **args})}, folder / sharded.COMMON)
    (folder / sharded.SAID).write_text(json.dumps({"sharded_backend": "torch_dist"}))


@pytest.mark.parametrize("masters", [False, True])
def test_it_is_read_to_the_bit(tmp_path: Path, masters: bool) -> None:
    write(tmp_path, masters)
    foreign = detect.opened(tmp_path)
    assert foreign.form == "distributed checkpoint of megatron-core" and not foreign.notes
    assert same(known(), dict(foreign.weights()))


def test_what_cannot_be_taken_is_one_line(tmp_path: Path) -> None:
    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as raised:
            list(detect.opened(tmp_path).weights())
        assert "\n" not in str(raised.value)

    write(tmp_path, swiglu=True)
    refused("swiglu=True; this model has False")
    write(tmp_path)
    index, pieces = tmp_path / sharded.INDEX, next(tmp_path.glob("*.distcp"))
    kept = {file: file.read_bytes() for file in (index, pieces)}
    for change, words in (
        (lambda: index.write_bytes(pickle.dumps(Harmful(tmp_path / "harm"))), r"it asks for (builtins\.)?eval"),
        (lambda: index.write_bytes(pickle.dumps([1])), "does not say where tensors lie"),
        (lambda: index.write_bytes(kept[index][:99]), ".metadata cannot be read"),
        (lambda: index.write_bytes(b"no pickle"), ".metadata"),
        (lambda: index.unlink(), "cannot be read"),
        (lambda: pieces.write_bytes(kept[pieces][: len(kept[pieces]) // 2]), f"{pieces.name}"),
        (lambda: pieces.unlink(), f"{pieces.name} cannot be read"),
        (lambda: (tmp_path / sharded.SAID).write_text('{"sharded_backend": "zarr"}'), "of the kind zarr"),
    ):
        change()
        refused(words)
        assert not (tmp_path / "harm").exists()
        for file, content in kept.items():
            file.write_bytes(content)
    (tmp_path / sharded.SAID).write_text("[")
    refused("holds no model that can be taken")


def test_an_index_with_anything_in_any_place_is_one_line(tmp_path: Path) -> None:
    """Also where it shows only as a tensor is read."""
    write(tmp_path)
    index = tmp_path / sharded.INDEX
    whole, name = index.read_bytes(), "decoder.layers.mlp.linear_fc1.weight"
    lies = next(key for key in pickle.loads(whole).storage_data if key.fqn == name)

    def refused(held: Metadata) -> None:
        index.write_bytes(pickle.dumps(held))
        with pytest.raises(UserError) as raised:
            list(detect.opened(tmp_path).weights())
        assert "\n" not in str(raised.value)

    for change in (
        {"size": torch.Size([2, 10**12, 10**6])}, {"size": torch.Size([])}, {"size": torch.Size([2, 192])},
        {"size": torch.Size([10**12, 192, 128])},
        {"chunks": 5}, {"chunks": [ChunkStorageMetadata(torch.Size([0]), torch.Size([2]))]}, {"properties": None},
    ):  # fmt: skip
        held = pickle.loads(whole)
        held.state_dict_metadata[name] = dataclasses.replace(held.state_dict_metadata[name], **change)
        refused(held)
    for change in ({"offset": -5}, {"offset": "x"}, {"length": 3}, {"relative_path": 5}, {"relative_path": ""}):
        held = pickle.loads(whole)
        held.storage_data[lies] = dataclasses.replace(held.storage_data[lies], **change)
        refused(held)
