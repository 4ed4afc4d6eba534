"""A run as one file in GGUF, for llama.cpp and what is built upon it."""

import errno
import json
import math
import os
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from inference.form import Form
from inference.weights import Weights
from support.errors import UserError
from support.files import give_name, scratch_beside

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Size
    from transformers import PreTrainedTokenizerFast

    from model.config import GPTConfig

BLOCK = 32  # weights that share a scale; a matrix whose rows it does not divide stays as it is


def check(file: Path) -> None:
    """Whether an export may take a file's place, and the package is there. Errors: `UserError` where not."""
    from model.convert.gguf_file import MAGIC, library

    library()
    if file.is_dir() or (file.exists() and file.open("rb").read(4) != MAGIC):
        raise UserError(f"{file} exists and is no GGUF; give another --out")


def write(file: Path, weights: Weights, tokeniser: "PreTrainedTokenizerFast", name: str, form: Form) -> None:
    """Write the file, whole or not at all; two copies of a tensor are in memory.

    Matrices are quantised as `form` says, but for that of the positions; the rest is fp32. Errors: `UserError` where
    the model or its tokeniser has no GPT-2 form.
    """
    from data.tokens import tokenisers
    from model.convert import gguf_file

    gguf, config, entries = gguf_file.library(), weights.config, tokenisers.entries(tokeniser)
    if config.objective != "causal":
        raise UserError(f"a model of the {config.objective} objective has no GPT-2 form: its attention is not causal")
    kinds = {ours: _kind(gguf, ours, shape, form) for ours, shape in weights.shapes.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    scratch = scratch_beside(file)
    writer = gguf.GGUFWriter(scratch, gguf_file.ARCHITECTURE)
    _describe(gguf, writer, config, name, form)
    _add_words(gguf, writer, tokeniser, entries)
    for ours, theirs in gguf_file.names(config).items():
        rows, *row = weights.shapes[ours]
        shape = (min(rows, entries), *row) if ours == "embed.weight" else (rows, *row)
        size = math.prod(gguf.quant_shape_to_byte_shape(shape, kinds[ours]))
        writer.add_tensor_info(theirs, shape, np.dtype("float32"), size, raw_dtype=kinds[ours])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for ours in weights.shapes:
            value = gguf_file.to_gguf_value(ours, weights.read(ours), config, entries)
            _append(writer, gguf.quants.quantize(value.numpy(), kinds[ours]))
        writer.close()
        give_name(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)


def _kind(gguf: ModuleType, name: str, shape: "Size", form: Form) -> Any:
    """How a parameter is stored."""
    quantised = len(shape) == 2 and name != "position.weight" and shape[-1] % BLOCK == 0
    return gguf.GGMLQuantizationType[(form.quantize or "f32").upper() if quantised else "F32"]


def _append(writer: Any, values: "NDArray[Any]") -> None:
    try:
        writer.write_tensor_data(values)
    except OSError as error:
        if error.errno is None:  # numpy says how much it wrote, and not that the disk is full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise


def _describe(gguf: ModuleType, writer: Any, config: "GPTConfig", name: str, form: Form) -> None:
    """The shape of the model."""
    from model.layers import Norm

    types = {"f32": "ALL_F32", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
    writer.add_name(name)
    writer.add_context_length(config.seq_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.ffn_hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_layer_norm_eps(Norm.EPSILON)
    writer.add_file_type(gguf.LlamaFileType[types[form.quantize or "f32"]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_words(gguf: ModuleType, writer: Any, tokeniser: "PreTrainedTokenizerFast", entries: int) -> None:
    """The tokeniser. Errors: `UserError` where it is no byte-level BPE that cuts words as GPT-2's."""
    described = json.loads(tokeniser.backend_tokenizer.to_str())
    kinds = (described["model"]["type"], (described["pre_tokenizer"] or {}).get("type"))
    if kinds != ("BPE", "ByteLevel"):
        raise UserError(f"the tokeniser is no byte-level BPE as GPT-2's but {' and '.join(map(str, kinds))}: no GGUF")
    added = {each["id"]: each["special"] for each in described["added_tokens"]}
    words, types = [], []
    for number, word in enumerate(tokeniser.convert_ids_to_tokens(range(entries))):
        words.append(word or f"[unused {number}]")
        usual = gguf.TokenType.NORMAL if word else gguf.TokenType.UNUSED
        special = gguf.TokenType.CONTROL if added.get(number) else gguf.TokenType.USER_DEFINED
        types.append(special if number in added else usual)
    merges = described["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(tokeniser.eos_token_id)
    writer.add_eos_token_id(tokeniser.eos_token_id)
    writer.add_pad_token_id(tokeniser.pad_token_id)
    writer.add_add_bos_token(False)
    if isinstance(tokeniser.chat_template, str):
        writer.add_chat_template(tokeniser.chat_template)
