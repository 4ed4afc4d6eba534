"""A universal checkpoint of DeepSpeed's, of Megatron-DeepSpeed or gpt-neox: a folder a parameter, whole and fp32.

DeepSpeed's `ds_to_universal` makes one of a checkpoint of any ZeRO stage and layout. Parameters are called as in
Megatron-LM, or in a pipeline by the number of their layer.
"""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any

from torch import Tensor

from model.convert import megatron, pickles
from model.convert.foreign import Foreign
from support.errors import UserError

LATEST = "latest_universal"
SAID = "mp_rank_00_model_states.pt"
GROUPED = 2.0  # the order of queries, keys and values, as Megatron-LM counts it
NUMBERED = re.compile(r"(?:sequential\.)?(\d+)\.(.+)")
EMBEDDING = re.compile(r"(?:tied_modules\.embed|(?:sequential\.)?\d+)\.((?:word|position)_embeddings\.weight)")


def found(folder: Path) -> Path | None:
    """The universal checkpoint in a folder, if there is one. Errors: `UserError` for another of DeepSpeed's."""
    if (folder / LATEST).is_file():
        folder /= Path((folder / LATEST).read_text(errors="replace").strip()).name
    if any(folder.glob("zero/*/fp32.pt")):
        return folder
    if any(any(folder.glob(where)) for where in ("*_optim_states.pt", "*/*_optim_states.pt")):
        raise UserError(
            f"{folder} is a checkpoint of DeepSpeed's that is bound to its ranks; make it universal: python -m "
            "deepspeed.checkpoint.ds_to_universal --input_folder … --output_folder …, and import that"
        )
    return None


def opened(folder: Path) -> Foreign:
    """The model in a universal checkpoint; its tensors stay in their files until they are read.

    Errors: `UserError` where it is a variant that we have not.
    """
    tensors = {file.parent.name: _tensor(file) for file in sorted(folder.glob("zero/*/fp32.pt"))}
    said = pickles.load(folder / SAID) if (folder / SAID).exists() else {}
    args = said.get("args") if isinstance(said, dict) else None
    asked: dict[str, Any] = vars(args) if isinstance(args, Namespace) else args if isinstance(args, dict) else {}
    return megatron.model_of("universal checkpoint of DeepSpeed's", folder, [_named(tensors)], GROUPED, asked)


def _tensor(file: Path) -> Tensor:
    held = pickles.load(file)
    value = held.get("param") if isinstance(held, dict) else held
    if not isinstance(value, Tensor):
        raise UserError(f"{file} holds no tensor; make the universal checkpoint again")
    return value


def _named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by Megatron-LM's names: in a pipeline blocks are counted among all layers."""
    tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    numbers = [int(match[1]) for name in tensors if (match := NUMBERED.fullmatch(name)) and "input_layernorm.w" in name]
    block = {number: place for place, number in enumerate(sorted(numbers))}
    result = {}
    for name, value in tensors.items():
        embedding, numbered = EMBEDDING.fullmatch(name), NUMBERED.fullmatch(name)
        if embedding:
            name = f"language_model.embedding.{embedding[1]}"
        elif numbered and int(numbered[1]) in block:
            name = f"language_model.encoder.layers.{block[int(numbered[1])]}.{numbered[2]}"
        elif numbered and re.fullmatch(r"(norm\.)?(weight|bias)", numbered[2]):
            name = f"language_model.encoder.final_layernorm.{numbered[2].removeprefix('norm.')}"
        result[name] = value
    return result
