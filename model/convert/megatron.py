"""A GPT of Megatron-LM: `model_optim_rng.pt` of each rank, as NVIDIA's 345M and what came after it.

A rank is a tensor rank (`mp_rank_01`), or one of a stage of a pipeline (`mp_rank_01_003`).

The fused rows of queries, keys and values stand in three orders. Checkpoints of version 0 (those that say none) have
[3, heads, width], of version 1 [heads, width, 3], from version 2 on [heads, 3, width], which is also ours.
"""

import re
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.config import GPTConfig
from model.convert import pickles
from model.convert.foreign import Foreign
from model.huggingface import shapes
from model.layers import Norm
from support.errors import UserError

PLACE = re.compile(r"mp_rank_(\d+)(?:_(\d+))?")
LAYER = re.compile(r"\blayers\.(\d+)\.")
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
    "num_experts": None,  # Megatron-DeepSpeed says [1]
    "apply_residual_connection_post_layernorm": False,
    "gpt_j_residual": False,
    "use_rotary_position_embeddings": False,
    "window_size": None,
    "pos_emb": "learned",  # from here on gpt-neox's
    "norm": "layernorm",
    "no_weight_tying": False,
    "sliding_window_width": None,
}
FULL = {"global", "flash"}  # gpt-neox's kinds of attention that see all that is before
HEADS = ("output_layer.weight", "final_linear.weight", "lm_head.weight")
BESIDE = ("_extra_state", "word_embeddings_for_head.weight")  # no weights of their own: of fp8, and a copy
HEAD_SIZE = 64  # of GPT-2, where a checkpoint does not say how many heads there are


def newest(folder: Path) -> Path:
    """The newest checkpoint of a folder of several; else the folder itself."""
    if not (folder / LATEST).is_file():
        return folder
    said = (folder / LATEST).read_text(errors="replace").strip()
    return folder / (f"iter_{int(said):07d}" if said.isdecimal() else "release")


def found(folder: Path) -> list[Path]:
    """The files of a checkpoint's ranks, none where the folder holds no checkpoint of Megatron-LM's."""
    if (folder / FILE).is_file():
        return [folder / FILE]
    return sorted(newest(folder).glob(f"mp_rank_*/{FILE}"))


def opened(files: list[Path]) -> Foreign:
    """The model in the files of all ranks. Errors: `UserError` where it is a variant that we have not."""
    held = {_place(file): pickles.load(file) for file in files}
    first = next(iter(held.values()))
    if not all(isinstance(each, dict) and _parts(each) for each in held.values()):
        raise UserError(f"{files[0]} holds no model; give a checkpoint of Megatron-LM")
    args = first.get("args")
    asked = vars(args) if isinstance(args, Namespace) else {}
    _check_complete(files[0], held, asked)
    version = float(first.get("checkpoint_version", 0))
    tensor_ranks = sorted({tensor for _, tensor in held})
    ranks = [joined([_parts(held[place]) for place in sorted(held) if place[1] == tensor]) for tensor in tensor_ranks]
    return model_of(f"Megatron-LM checkpoint of version {version:g}", files[0], ranks, version, asked)


def _place(file: Path) -> tuple[int, int]:
    """The stage and the tensor rank that a file is of. Errors: `UserError` for an expert's."""
    found = PLACE.fullmatch(file.parent.name)
    if not found and file.parent.name.startswith("mp_rank_"):
        raise UserError(f"{file.parent} is a part of an expert; this model has none")
    return (int(found[2] or 0), int(found[1])) if found else (0, 0)


def _parts(held: dict[str, Any]) -> list[dict[str, Any]]:
    """What a rank has of the model: one part, or one for each time that a pipeline with turns comes by."""
    names = ["model"] if "model" in held else sorted(name for name in held if re.fullmatch(r"model\d+", name))
    return [held[name] for name in names if isinstance(held[name], dict)]


def _check_complete(file: Path, held: dict[tuple[int, int], dict[str, Any]], asked: dict[str, Any]) -> None:
    """Errors: `UserError` that names a rank that is missing, or says that they are of several iterations."""
    tensor = asked.get("tensor_model_parallel_size", asked.get("model_parallel_size", 1 + max(t for _, t in held)))
    stages = asked.get("pipeline_model_parallel_size", 1 + max(stage for stage, _ in held))
    for stage, rank in product(range(stages), range(tensor)):
        if (stage, rank) not in held:
            lacking = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if stages > 1 else "")
            many = f"{tensor} tensor ranks and {stages} pipeline stages"
            raise UserError(f"{file} is of {many}, and {lacking} is not there; fetch all mp_rank folders")
    steps = {each.get("iteration") for each in held.values()}
    if len(steps) > 1:
        raise UserError(
            f"{file} and the ranks beside it are of several iterations ({_listed(steps)}); fetch them again"
        )
    if len({len(_parts(each)) for each in held.values()}) > 1:
        raise UserError(f"{file} and the ranks beside it have several numbers of parts; fetch them again")


def _listed(values: set[Any]) -> str:
    return ", ".join(sorted(map(str, values)))


def joined(stages: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Tensor]:
    """The tensors of a tensor rank over all stages of a pipeline, each of as many parts.

    A part counts its layers from 0. The first parts of all stages come before the second ones. The last stage has the
    embedding once more, as its head; the first counts.
    """
    result: dict[str, Tensor] = {}
    before = 0
    for part in chain.from_iterable(zip(*stages, strict=True)):
        layers = 0
        for name, value in flat_names(part):
            if found := LAYER.search(name):
                layers = max(layers, int(found[1]) + 1)
                name = f"{name[: found.start(1)]}{before + int(found[1])}{name[found.end(1) :]}"
            result.setdefault(name, value)
        before += layers
    return result


def model_of(
    form: str, where: Path, ranks: Sequence[Mapping[str, Tensor]], version: float, asked: dict[str, Any]
) -> Foreign:
    """The model in the tensors of all tensor ranks, by Megatron-LM's names, with its arguments.

    Errors: `UserError` where it is a variant that we have not.
    """
    _check(where, asked, ranks[0])
    config, notes = _config(where, ranks, asked)
    ours = {_name(where, name, ranks[0]) for name in shapes(config)}
    if more := [name for name in ranks[0] if name not in ours and not name.endswith((*HEADS, *BESIDE))]:
        raise UserError(f"{where} has the tensor {more[0]}, which this model has not; it is another model")

    def read(name: str) -> Tensor:
        parts = [rank[_name(where, name, rank)] for rank in ranks]
        if ".qkv." in name and all(len(part) * len(ranks) == 3 * config.hidden_size for part in parts):
            parts = [grouped_by_head(part, version, config.head_size) for part in parts]
        if len({part.shape for part in parts}) > 1:
            raise UserError(f"{where}: tensor ranks have {name} of several shapes; fetch all of one checkpoint")
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


def flat_names(values: dict[str, Any], stem: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dictionaries, their names joined by dots."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat_names(value, f"{stem}{name}.")
        elif isinstance(value, Tensor):
            yield f"{stem}{name}", value


def _name(file: Path, name: str, rank: Mapping[str, Tensor]) -> str:
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


def _check(file: Path, asked: dict[str, Any], rank: Mapping[str, Tensor]) -> None:
    """Errors: `UserError` that names what the model has and ours has not."""
    for name, wanted in WANTED.items():
        if name in asked and not _as_wanted(asked[name], wanted):
            raise UserError(f"{file} has a model with {name}={asked[name]!r}; this model has {wanted!r}")
    if partial := sorted(set(_words(asked.get("attention_config"))) - FULL):
        raise UserError(f"{file} has a model with {partial[0]} attention; each token of this model sees all before it")
    if not asked.get("bias_gelu_fusion", True) and not asked.get("openai_gelu", False):
        raise UserError(f"{file} has a model with the exact GELU; this model has the tanh form")
    for name in filter(lambda name: name.endswith(HEADS), rank):
        if not rank[name].equal(rank[_name(file, "embed.weight", rank)]):
            raise UserError(f"{file} has a head ({name}) of its own; this model has one matrix for both")


def _words(said: object) -> Iterator[str]:
    """The words of nested lists."""
    if isinstance(said, str):
        yield said
    elif isinstance(said, list):
        yield from chain.from_iterable(map(_words, said))


def _as_wanted(said: Any, wanted: Any) -> bool:
    """Whether an argument is as this model has it; of classes of other programs that is left to the tensors."""
    if isinstance(said, str) and isinstance(wanted, str):
        return said.casefold() == wanted.casefold()
    return said == wanted or isinstance(said, pickles.Unknown) or (wanted is None and said in (1, [1]))


def _config(
    file: Path, ranks: Sequence[Mapping[str, Tensor]], asked: dict[str, Any]
) -> tuple[GPTConfig, tuple[str, ...]]:
    """The shape of the model, from its tensors and arguments; and what was assumed."""

    def one(name: str) -> Tensor:
        return ranks[0][_name(file, name, ranks[0])]

    embedding = one("embed.weight")
    rows, hidden = embedding.shape
    layers = len({match[1] for name in ranks[0] if (match := LAYER.search(name))})
    if asked.get("num_layers", layers) != layers:
        raise UserError(f"{file} says {asked['num_layers']} layers, and {layers} are there; fetch it again")
    heads, notes = asked.get("num_attention_heads"), []
    if not heads:
        heads = max(1, hidden // HEAD_SIZE)
        notes.append(f"{heads} heads of {HEAD_SIZE} are assumed: it says no number")
    elif not {"bias_gelu_fusion", "openai_gelu"} & asked.keys():
        notes.append("the tanh form of the GELU is assumed: it does not say which")
    if embedding.dtype != torch.float32:
        kind = str(embedding.dtype).removeprefix("torch.")
        notes.append(f"its weights are {kind}, as in training: no fp32 ones are there to take")
    if heads % len(ranks):
        raise UserError(f"{file} has {heads} heads over {len(ranks)} tensor ranks, which do not divide them")
    config = GPTConfig(
        num_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        seq_length=len(one("position.weight")),
        vocab_size=rows * len(ranks),
        ffn_hidden_size=len(one("blocks.0.mlp.up.weight")) * len(ranks),
        dropout=asked.get("hidden_dropout", 0.1),
        init_method_std=asked.get("init_method_std", 0.02),
    )
    return config, tuple(notes)
