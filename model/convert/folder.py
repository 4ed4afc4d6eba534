"""A GPT-2 in a Hugging Face folder."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import GPT2Config

from model.convert import pickles
from model.convert.foreign import Foreign, Read
from model.huggingface import config_from_hf, from_hf_value, hf_name, hf_shape, shapes
from support.errors import UserError

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
PREFIX = "transformer."  # OpenAI's own files have names without it
BUFFERS = (".attn.bias", ".attn.masked_bias")  # causal masks, which old files hold
HEAD, EMBEDDING = "lm_head.weight", f"{PREFIX}wte.weight"


def opened(folder: Path) -> Foreign:
    """The GPT-2 in a folder. Errors: `UserError` where it holds another architecture, or a variant that we have not."""
    said = _json(folder / "config.json")
    kind = said.get("model_type")
    if kind != "gpt2":
        raise UserError(f"{folder} holds a model of type {kind}, not a GPT-2; this model is of GPT-2's form")
    if "quantization_config" in said:
        raise UserError(f"{folder} holds quantised weights; take the folder that they were made from")
    hf = GPT2Config(**said)
    config = config_from_hf(hf)
    tensors = _tensors(folder)
    if config.num_layers > len(tensors):
        raise UserError(f"{folder}: config.json says {config.num_layers} layers and {len(tensors)} tensors are there")
    known = shapes(config)
    _check(folder, tensors, list(map(hf_name, known)))

    def read(name: str) -> Tensor:
        value, wanted = tensors[hf_name(name)](), hf_shape(name, known[name], config.vocab_size)
        if value.shape != wanted:
            raise UserError(
                f"{folder}: {hf_name(name)} has shape {list(value.shape)} where config.json says {list(wanted)}; the "
                "two do not belong together, fetch both again"
            )
        return from_hf_value(name, value, config)

    drops = {hf.resid_pdrop, hf.embd_pdrop, hf.attn_pdrop}
    notes = () if len(drops) == 1 else (f"dropout is {hf.resid_pdrop} everywhere; the folder has {sorted(drops)}",)
    return Foreign("Hugging Face GPT-2", config, read, notes)


def _check(folder: Path, tensors: dict[str, Read], wanted: list[str]) -> None:
    """Whether the tensors are those of a GPT-2 with a tied embedding. Errors: `UserError` that names one."""
    if lacking := [name for name in wanted if name not in tensors]:
        raise UserError(f"{folder} lacks the tensor {lacking[0]}; fetch it again")
    if more := [name for name in tensors if name not in (*wanted, HEAD) and not name.endswith(BUFFERS)]:
        raise UserError(f"{folder} has the tensor {more[0]}, which a GPT-2 has not; it is another model")
    if HEAD in tensors and not tensors[HEAD]().equal(tensors[EMBEDDING]()):
        raise UserError(f"{folder} has a head ({HEAD}) that is not its embedding; this model has one matrix for both")


def _tensors(folder: Path) -> dict[str, Read]:
    """All tensors of a folder, under their names with a prefix; each is read when it is asked for."""
    for whole in (SAFE, PICKLED):
        index = folder / f"{whole}.index.json"
        names = sorted(set(_json(index).get("weight_map", {}).values())) if index.exists() else [whole]
        if index.exists() or (folder / whole).exists():
            found: dict[str, Read] = {}
            for name in names:
                file = folder / Path(name).name
                found |= _safe(file) if whole == SAFE else _pickled(file)
            return {name if name.startswith((PREFIX, HEAD)) else PREFIX + name: read for name, read in found.items()}
    raise UserError(f"{folder} holds no weights: neither {SAFE} nor {PICKLED}; fetch them too")


def _safe(file: Path) -> dict[str, Read]:
    try:
        opened = safe_open(str(file), framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read: {error}; fetch it again") from None
    return {name: partial(opened.get_tensor, name) for name in opened.keys()}  # noqa: SIM118


def _pickled(file: Path) -> dict[str, Read]:
    held = pickles.load(file)
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise UserError(f"{file} holds more than tensors by name and is not read; have it saved as tensors")
    return {name: value.clone for name, value in held.items()}


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}; fetch it again") from None
    if not isinstance(values, dict):
        raise UserError(f"{file} holds no JSON object; fetch it again")
    return values
