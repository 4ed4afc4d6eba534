"""GPT-2 in GGUF, the file of llama.cpp: how its tensors are called, and a model read from one.

A matrix of a block lies there as [out, in], with all queries before all keys before all values.
"""

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from model.config import GPTConfig
from model.convert.foreign import Foreign
from model.huggingface import from_hf_value, hf_name, is_block_matrix, shapes, to_hf_value
from model.layers import Norm
from support.errors import UserError

SUFFIX = ".gguf"
MAGIC = b"GGUF"
ARCHITECTURE = "gpt2"
HEAD = "output.weight"


def library() -> ModuleType:
    """The package that reads and writes GGUF. Errors: `UserError` where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF needs the package gguf; install it with pip install gguf==0.19.0") from None
    return gguf


def names(config: GPTConfig) -> dict[str, str]:
    """What GGUF calls each of our parameters."""
    gguf = library()
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.num_layers)
    return {name: known.get_name(hf_name(name), (".weight", ".bias")) for name in shapes(config)}


def to_gguf_value(name: str, value: Tensor, config: GPTConfig, entries: int) -> Tensor:
    """One of our parameters as GGUF has it, fp32, with a row of the embedding for each of the tokeniser's `entries`."""
    value = to_hf_value(name, value, config, entries)
    return (value.t() if is_block_matrix(name, value.dim()) else value).contiguous()


def opened(path: Path) -> Foreign:
    """The GPT-2 in a GGUF; what is quantised there is rounded, and stays so.

    Errors: `UserError` where it holds another architecture, or cannot be read.
    """
    gguf = library()
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read as GGUF: {reason}; fetch it again") from None

    def field(key: str) -> Any:
        found = reader.get_field(key)
        if found is None:
            raise UserError(f"{path} does not say {key}; fetch it again")
        return found.contents()

    if (kind := field("general.architecture")) != ARCHITECTURE:
        raise UserError(f"{path} holds a model of type {kind}, not a GPT-2; this model is of GPT-2's form")
    if not math.isclose(epsilon := field("gpt2.attention.layer_norm_epsilon"), Norm.EPSILON, rel_tol=1e-6):
        raise UserError(f"{path} has a model with layer_norm_epsilon={epsilon:.3g}; this model has {Norm.EPSILON}")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "token_embd.weight" not in tensors:
        raise UserError(f"{path} lacks the tensor token_embd.weight; fetch it again")
    if (blocks := field("gpt2.block_count")) > len(tensors):
        raise UserError(f"{path} says {blocks} blocks and has {len(tensors)} tensors; fetch it again")
    config = GPTConfig(
        num_layers=blocks,
        hidden_size=field("gpt2.embedding_length"),
        num_attention_heads=field("gpt2.attention.head_count"),
        seq_length=field("gpt2.context_length"),
        vocab_size=int(tensors["token_embd.weight"].shape[1]),
        ffn_hidden_size=field("gpt2.feed_forward_length"),
    )
    theirs, known = names(config), shapes(config)
    if lacking := [name for name in theirs.values() if name not in tensors]:
        raise UserError(f"{path} lacks the tensor {lacking[0]}; fetch it again")
    if more := [name for name in tensors if name not in {*theirs.values(), HEAD}]:
        raise UserError(f"{path} has the tensor {more[0]}, which this model has not; it is another model")
    head, embedding = tensors.get(HEAD), tensors["token_embd.weight"]
    if head and not _values(gguf, head).equal(_values(gguf, embedding)):
        raise UserError(f"{path} has a head ({HEAD}) that is not its embedding; this model has one for both")

    def read(name: str) -> Tensor:
        value = _values(gguf, tensors[theirs[name]])
        wanted = known[name] if name != "embed.weight" else (config.vocab_size, config.hidden_size)
        if value.shape != wanted:
            raise UserError(f"{path}: {theirs[name]} has shape {list(value.shape)}, not {list(wanted)}; fetch it again")
        return from_hf_value(name, value.t() if is_block_matrix(name, value.dim()) else value, config)

    quants = sorted({tensor.tensor_type.name for tensor in reader.tensors} - {"F32"})
    notes = (f"some weights were rounded to {', '.join(quants)} when the file was made",) if quants else ()
    return Foreign("GGUF GPT-2", config, read, notes)


def _values(gguf: ModuleType, tensor: Any) -> Tensor:
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(values if values.flags.writeable else values.copy())  # else it is the file, read-only
