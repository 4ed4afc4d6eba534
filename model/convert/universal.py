"""A universal checkpoint of DeepSpeed's, of Megatron-DeepSpeed or gpt-neox: a folder a parameter, whole and fp32.

DeepSpeed's `ds_to_universal` makes one of a checkpoint of any ZeRO stage and layout. Parameters are called as in
Megatron-LM, or in a pipeline by the number of their layer.
"""

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from model.convert import megatron, pickles
from model.convert.foreign import Foreign
from support.errors import UserError

Value = TypeVar("Value")  # a tensor, or how it is read

LATEST = "latest_universal"
SAID = "mp_rank_00_model_states.pt"
GROUPED = 2.0  # the order of queries, keys and values, as Megatron-LM counts it
NUMBERED = re.compile(r"(?:sequential\.)?(\d+)\.(.+)")
EMBEDDING = re.compile(r"(?:tied_modules\.embed|(?:sequential\.)?\d+)\.((?:word|position)_embeddings\.weight)")


def found(folder: Path) -> Path | None:
    """The universal checkpoint in a folder, if there is one."""
    if (folder / LATEST).is_file():
        folder /= Path((folder / LATEST).read_text(errors="replace").strip()).name
    return folder if any(folder.glob("zero/*/fp32.pt")) else None


def opened(folder: Path) -> Foreign:
    """The model in a universal checkpoint; its tensors stay in their files until they are read.

    Errors: `UserError` where it is a variant that we have not.
    """
    tensors = {file.parent.name: _tensor(file) for file in sorted(folder.glob("zero/*/fp32.pt"))}
    said = pickles.load(folder / SAID) if (folder / SAID).exists() else {}
    asked = arguments(said.get("args") if isinstance(said, dict) else None)
    return megatron.model_of("universal checkpoint of DeepSpeed's", folder, [named(tensors, folder)], GROUPED, asked)


def arguments(args: object) -> dict[str, Any]:
    """What a training program kept of its arguments, by name."""
    return vars(args) if isinstance(args, Namespace) else args if isinstance(args, dict) else {}


def _tensor(file: Path) -> Tensor:
    held = pickles.load(file)
    value = held.get("param") if isinstance(held, dict) else held
    if not isinstance(value, Tensor):
        raise UserError(f"{file} holds no tensor; make the universal checkpoint again")
    return value


def named(tensors: Mapping[str, Value], where: Path) -> dict[str, Value]:
    """The same tensors by Megatron-LM's names: in a pipeline blocks are counted among all layers.

    The last stage of a pipeline has the embedding once more; the first counts. Errors: `UserError` where a layer in
    the midst of a pipeline is missing.
    """
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    numbers = [int(match[1]) for name in tensors if (match := NUMBERED.fullmatch(name)) and "input_layernorm.w" in name]
    block = {number: place for place, number in enumerate(sorted(numbers))}
    if gap := set(range(min(numbers, default=0), max(numbers, default=-1))) - set(numbers):
        raise UserError(f"{where} lacks layer {min(gap)} of a pipeline; fetch it again")
    result: dict[str, Value] = {}
    for name, value in tensors.items():
        embedding, numbered = EMBEDDING.fullmatch(name), NUMBERED.fullmatch(name)
        if embedding:
            name = f"language_model.embedding.{embedding[1]}"
        elif numbered and int(numbered[1]) in block:
            name = f"language_model.encoder.layers.{block[int(numbered[1])]}.{numbered[2]}"
        elif numbered and re.fullmatch(r"(norm\.)?(weight|bias)", numbered[2]):
            name = f"language_model.encoder.final_layernorm.{numbered[2].removeprefix('norm.')}"
        result.setdefault(name, value)
    return result
