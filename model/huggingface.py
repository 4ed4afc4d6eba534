"""Conversion to and from `GPT2LMHeadModel`.

Rows of the embedding that are no id of the tokeniser are not exported. The padding of an imported model is zeros.
"""

import re
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from model.config import GPTConfig
from model.gpt import GPT
from model.layers import Norm
from support.errors import UserError

TANH_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # transformers' names of one formula
NAMES = {
    "embed.weight": "wte.weight",
    "position.weight": "wpe.weight",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
    "final_norm": "ln_f",
}


def hf_name(name: str) -> str:
    """The name that `GPT2LMHeadModel` gives to one of our parameters."""
    if name in NAMES:
        return f"transformer.{NAMES[name]}"
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if block:
        return f"transformer.h.{block[1]}.{NAMES[block[2]]}.{block[3]}"
    stem, _, kind = name.rpartition(".")
    return f"transformer.{NAMES[stem]}.{kind}"


def hf_layer(layer: str) -> str:
    """The name that `GPT2LMHeadModel` gives in a block to one of our linear layers: `attn.c_attn` of `qkv`."""
    return next(theirs for ours, theirs in NAMES.items() if ours.endswith(f".{layer}"))


def shapes(config: GPTConfig) -> dict[str, torch.Size]:
    """The shape of each parameter of the model, by name. Takes no memory."""
    with torch.device("meta"):
        model = GPT(config)
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def hf_config(config: GPTConfig, entries: int, end_of_document: int, pad: int) -> GPT2Config:
    """What transformers has to know of a model with a row for each of the tokeniser's `entries`.

    `end_of_document` and `pad` are the ids of the tokeniser's end-of-text and pad tokens. Errors: `UserError` where the
    model has no GPT-2 form.
    """
    if config.objective != "causal":
        raise UserError(f"a model of the {config.objective} objective has no GPT-2 form: its attention is not causal")
    return GPT2Config(
        vocab_size=entries,
        n_positions=config.seq_length,
        n_embd=config.hidden_size,
        n_layer=config.num_layers,
        n_head=config.num_attention_heads,
        n_inner=config.ffn_hidden_size,
        activation_function="gelu_new",
        resid_pdrop=config.dropout,
        embd_pdrop=config.dropout,
        attn_pdrop=config.dropout,
        layer_norm_epsilon=Norm.EPSILON,
        initializer_range=config.init_method_std,
        bos_token_id=end_of_document,
        eos_token_id=end_of_document,
        pad_token_id=pad,
    )


def hf_shape(name: str, shape: torch.Size, entries: int) -> torch.Size:
    """The shape that one of our parameters has in `GPT2LMHeadModel`."""
    if name == "embed.weight":
        return torch.Size((entries, *shape[1:]))
    return torch.Size(reversed(shape)) if is_block_matrix(name, len(shape)) else shape


def to_hf_value(name: str, value: Tensor, config: GPTConfig, entries: int) -> Tensor:
    """One of our parameters as `GPT2LMHeadModel` has it."""
    if name == "embed.weight":
        return value[:entries]
    if ".qkv." in name:  # here the rows are grouped by head; there all queries come first, then keys, then values
        rest = value.shape[1:]
        value = value.view(config.num_attention_heads, 3, config.head_size, *rest).transpose(0, 1)
        return (value.movedim(-1, 0) if rest else value).reshape(*rest, -1).contiguous()  # one copy, transposed too
    return _transposed(name, value)


def to_hf(model: GPT, entries: int, end_of_document: int, pad: int) -> GPT2LMHeadModel:
    """The same model as `GPT2LMHeadModel`, fp32; the arguments are those of `hf_config`."""
    config = model.config
    hf = GPT2LMHeadModel(hf_config(config, entries, end_of_document, pad))
    target = hf.state_dict()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            target[hf_name(name)].copy_(to_hf_value(name, value, config, entries))
    return hf.eval()


def from_hf(hf: GPT2LMHeadModel, vocab_multiple: int = 128) -> GPT:
    """A `GPT2LMHeadModel` as our model, fp32.

    Errors: `UserError` where it is a variant of GPT-2 that this model is not.
    """
    config = config_from_hf(hf.config, vocab_multiple)
    model = GPT(config)
    source = hf.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = from_hf_value(name, source[hf_name(name)], config)
            parameter.zero_()[: len(value)].copy_(value)  # the embedding has more rows
    return model.eval()


def config_from_hf(hf: Any, vocab_multiple: int = 128) -> GPTConfig:
    """The shape of a GPT-2. Errors: `UserError` where it is a variant that this model is not."""
    wanted: dict[str, tuple[object, ...]] = {
        "activation_function": TANH_GELU,
        "layer_norm_epsilon": (Norm.EPSILON,),
        "tie_word_embeddings": (True,),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    }
    for key, values in wanted.items():
        if getattr(hf, key, values[0]) not in values:
            raise UserError(f"cannot convert a GPT-2 with {key}={getattr(hf, key)!r}; this model has {values[0]!r}")
    return GPTConfig(
        num_layers=hf.n_layer,
        hidden_size=hf.n_embd,
        num_attention_heads=hf.n_head,
        seq_length=hf.n_positions,
        vocab_size=hf.vocab_size,
        ffn_hidden_size=hf.n_inner or 0,
        vocab_multiple=vocab_multiple,
        init_method_std=hf.initializer_range,
        dropout=hf.resid_pdrop,
    )


def from_hf_value(name: str, value: Tensor, config: GPTConfig) -> Tensor:
    """One of `GPT2LMHeadModel`'s parameters as ours, without the padding of the embedding."""
    value = _transposed(name, value)
    if ".qkv." in name:
        heads = (3, config.num_attention_heads, config.head_size)
        value = value.view(*heads, *value.shape[1:]).transpose(0, 1).reshape(value.shape)
    return value


def _transposed(name: str, value: Tensor) -> Tensor:
    """GPT-2 keeps its block matrices as [in, out] (`Conv1D`)."""
    return value.t().contiguous() if is_block_matrix(name, value.dim()) else value


def is_block_matrix(name: str, dimensions: int) -> bool:
    """Whether a parameter is one of those that GPT-2 keeps as [in, out]."""
    return name.startswith("blocks.") and dimensions == 2
