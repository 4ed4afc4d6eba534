"""A GPT of Megatron-LM: `model_optim_rng.pt` of each tensor rank, as NVIDIA's 345M and what came after it.

The fused rows of queries, keys and values stand in three orders. Checkpoints of version 0 (those that say none) have
[3, heads, width], of version 1 [heads, width, 3], from version 2 on [heads, 3, width], which is also ours.
"""

import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import GPTConfig
from model.convert import pickles
from model.convert.foreign import Foreign
from model.layers import Norm
from support.errors import UserError

FILE, LATEST = "model_optim_rng.pt", "latest_checkpointed_iteration.txt"
OUTER = {  # our name, and theirs: Megatron-LM's of all ages, and megatron-core's
    "embed": ("language_model.embedding.word_embeddings", "embedding.word_embeddings"),
    "position": ("language_model.embedding.position_embeddings", "embedding.position_embeddings"),
    "final_norm": (
        "language_model.transformer.final_layernorm", "language_model.encoder.final_layernorm",
        "decoder.final_layernorm",
    ),
}  # fmt: skip
LAYERS = ("language_model.transformer.layers", "language_model.encoder.layers", "decoder.layers")
INNER = {
    "norm1": ("input_layernorm.", "self_attention.linear_qkv.layer_norm_"),
    "norm2": ("post_attention_layernorm.", "pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_"),
    "attention.qkv": ("attention.query_key_value.", "self_attention.query_key_value.", "self_attention.linear_qkv."),
    "attention.out": ("attention.dense.", "self_attention.dense.", "self_attention.linear_proj."),
    "mlp.up": ("mlp.dense_h_to_4h.", "mlp.linear_fc1."),
    "mlp.down": ("mlp.dense_4h_to_h.", "mlp.linear_fc2."),
}
CUT = {
    "embed.weight": 0,
    "qkv.weight": 0,
    "qkv.bias": 0,
    "up.weight": 0,
    "up.bias": 0,
    "out.weight": 1,
    "down.weight": 1,
}
WANTED = {  # what an argument must be, where the checkpoint has it
    "position_embedding_type": "learned_absolute",
    "normalization": "LayerNorm",
    "layernorm_epsilon": Norm.EPSILON,
    "norm_epsilon": Norm.EPSILON,
    "apply_layernorm_1p": False,
    "add_bias_linear": True,
    "activation": "gelu",
    "swiglu": False,
    "squared_relu": False,
    "untie_embeddings_and_output_weights": False,
    "group_query_attention": False,
    "num_experts": None,
    "apply_residual_connection_post_layernorm": False,
    "gpt_j_residual": False,
}
HEADS = ("output_layer.weight", "final_linear.weight")
HEAD_SIZE = 64  # of GPT-2, where a checkpoint does not say how many heads there are


def found(folder: Path) -> list[Path]:
    """The files of a checkpoint's tensor ranks, none where the folder holds no checkpoint of Megatron-LM's."""
    if (folder / FILE).is_file():
        return [folder / FILE]
    if (folder / LATEST).is_file():
        newest = (folder / LATEST).read_text(errors="replace").strip()
        folder /= f"iter_{int(newest):07d}" if newest.isdecimal() else "release"
    return sorted(folder.glob(f"mp_rank_*/{FILE}"))


def opened(files: list[Path]) -> Foreign:
    """The model in the files of all tensor ranks. Errors: `UserError` where it is a variant that we have not."""
    if parted := [file.parent for file in files if re.match(r"mp_rank_\d+_", file.parent.name)]:
        raise UserError(
            f"{parted[0]} is a part of a pipeline or an expert; have Megatron-LM's tools/checkpoint/convert.py merge it"
        )
    held = [pickles.load(file) for file in files]
    if not all(isinstance(each, dict) and isinstance(each.get("model"), dict) for each in held):
        raise UserError(f"{files[0]} holds no model; give a checkpoint of Megatron-LM")
    args = held[0].get("args")
    asked = vars(args) if isinstance(args, Namespace) else {}
    if asked.get("tensor_model_parallel_size", asked.get("model_parallel_size", len(files))) != len(files):
        raise UserError(f"{files[0]} is of several tensor ranks and {len(files)} are there; fetch all mp_rank folders")
    version = float(held[0].get("checkpoint_version", 0))
    ranks = [dict(_flat(each["model"])) for each in held]
    return model_of(f"Megatron-LM checkpoint of version {version:g}", files[0], ranks, version, asked)


def model_of(form: str, where: Path, ranks: list[dict[str, Tensor]], version: float, asked: dict[str, Any]) -> Foreign:
    """The model in the tensors of all tensor ranks, by Megatron-LM's names, with its arguments.

    Errors: `UserError` where it is a variant that we have not.
    """
    _check(where, asked, ranks[0])
    config, notes = _config(where, ranks, asked)

    def read(name: str) -> Tensor:
        parts = [rank[_name(where, name, rank)] for rank in ranks]
        if ".qkv." in name and all(len(part) * len(ranks) == 3 * config.hidden_size for part in parts):
            parts = [grouped_by_head(part, version, config.head_size) for part in parts]
        dim = next((dim for end, dim in CUT.items() if name.endswith(end)), None)
        return parts[0] if dim is None or len(parts) == 1 else torch.cat(parts, dim)

    return Foreign(form, config, read, notes)


def grouped_by_head(value: Tensor, version: float, head_size: int) -> Tensor:
    """Fused rows of queries, keys and values in our order, from that of a version."""
    rest, heads = value.shape[1:], len(value) // (3 * head_size)
    if version < 1:
        return value.view(3, heads, head_size, *rest).transpose(0, 1).reshape(value.shape)
    if version < 2:
        return value.view(heads, head_size, 3, *rest).transpose(1, 2).reshape(value.shape)
    return value


def _flat(values: dict[str, Any], stem: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dictionaries, their names joined by dots."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{stem}{name}.")
        elif isinstance(value, Tensor):
            yield f"{stem}{name}", value


def _name(file: Path, name: str, rank: dict[str, Tensor]) -> str:
    """What a rank calls one of our parameters. Errors: `UserError` where it has none."""
    stem, _, kind = name.rpartition(".")
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)", stem)
    names = (
        [f"{layers}.{block[1]}.{inner}{kind}" for layers in LAYERS for inner in INNER[block[2]]]
        if block
        else [f"{outer}.{kind}" for outer in OUTER[stem]]
    )
    theirs = next((each for each in names if each in rank), None)
    if theirs is None:
        raise UserError(f"{file} lacks the tensor {names[0]}; fetch it again, or it is another model")
    return theirs


def _check(file: Path, asked: dict[str, Any], rank: dict[str, Tensor]) -> None:
    """Errors: `UserError` that names what the model has and ours has not."""
    for name, wanted in WANTED.items():
        if asked.get(name, wanted) != wanted:
            raise UserError(f"{file} has a model with {name}={asked[name]!r}; this model has {wanted!r}")
    if not asked.get("bias_gelu_fusion", True) and not asked.get("openai_gelu", False):
        raise UserError(f"{file} has a model with the exact GELU; this model has the tanh form")
    if heads := [name for name in rank if name.endswith(HEADS)]:
        raise UserError(f"{file} has a head ({heads[0]}) of its own; this model has one matrix for both")


def _config(file: Path, ranks: list[dict[str, Tensor]], asked: dict[str, Any]) -> tuple[GPTConfig, tuple[str, ...]]:
    """The shape of the model, from its tensors and arguments; and what was assumed."""

    def shape(name: str) -> torch.Size:
        return ranks[0][_name(file, name, ranks[0])].shape

    rows, hidden = shape("embed.weight")
    layers = {match[1] for name in ranks[0] if (match := re.search(r"\blayers\.(\d+)\.", name))}
    heads = asked.get("num_attention_heads") or max(1, hidden // HEAD_SIZE)
    notes = () if "num_attention_heads" in asked else (f"{heads} heads of {HEAD_SIZE} are assumed: it says no number",)
    config = GPTConfig(
        num_layers=len(layers),
        hidden_size=hidden,
        num_attention_heads=heads,
        seq_length=shape("position.weight")[0],
        vocab_size=rows * len(ranks),
        ffn_hidden_size=shape("blocks.0.mlp.up.weight")[0] * len(ranks),
        dropout=asked.get("hidden_dropout", 0.1),
        init_method_std=asked.get("init_method_std", 0.02),
    )
    return config, notes
