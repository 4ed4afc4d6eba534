"""A distributed checkpoint of megatron-core (`torch_dist`): pieces of tensors in `.distcp` files, and where they lie.

All layers are stacked to one tensor, layers first. Its pieces are read one at a time. The fp32 weights of the optimizer
are taken where they are there under the model's own names.
"""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from model.convert import megatron, pickles
from model.convert.foreign import Foreign, Lazy, Read
from model.convert.universal import arguments
from support.errors import UserError

INDEX, COMMON, SAID = ".metadata", "common.pt", "metadata.json"
VERSION = 3.0  # of the order of queries, keys and values
MASTERS = "optimizer.state.fp32_param."
OPTIMIZER = re.compile(r"(^|\.)optimizer\.")
STACKED = re.compile(r"decoder\.layers\.([a-z].+)")
OF_TORCH = "torch.distributed.checkpoint."
ALLOWED = {
    *((f"{OF_TORCH}metadata", name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
    *((f"{OF_TORCH}metadata", f"{name}StorageMetadata") for name in ("Tensor", "Bytes", "Chunk")),
    (f"{OF_TORCH}metadata", "_MEM_FORMAT_ENCODING"),
    (f"{OF_TORCH}filesystem", "_StorageInfo"),
    *((f"{OF_TORCH}planner", name) for name in ("SavePlan", "WriteItem", "WriteItemType")),  # how it was written
    *((f"{OF_TORCH}planner", f"{name}WriteData") for name in ("Tensor", "BytesIO")),
    ("pathlib", "PosixPath"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    *(("torch", name) for name in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "bool")),
    ("collections", "OrderedDict"),
}


def found(folder: Path) -> Path | None:
    """The distributed checkpoint in a folder, if there is one. Errors: `UserError` for one of another kind."""
    folder = megatron.newest(folder)
    try:
        kind = json.loads((folder / SAID).read_bytes())["sharded_backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if kind != "torch_dist":
        raise UserError(
            f"{folder} is a distributed checkpoint of the kind {kind}; have Megatron-LM save it as torch_dist"
        )
    return folder


def opened(folder: Path) -> Foreign:
    """The model in a distributed checkpoint. Errors: `UserError` where it is a variant that we have not."""
    index = pickles.plain(folder / INDEX, ALLOWED)
    if not isinstance(index, Metadata):
        raise UserError(f"{folder / INDEX} does not say where tensors lie; fetch it again")
    common = pickles.load(folder / COMMON)
    about = {name: each for name, each in index.state_dict_metadata.items() if isinstance(each, TensorStorageMetadata)}
    reads: dict[str, Read] = {}
    for name, each in about.items():
        if OPTIMIZER.search(name):
            continue
        master = about.get(MASTERS + name)
        source = MASTERS + name if master and master.size == each.size else name
        if stacked := STACKED.fullmatch(name):
            if each.size[0] > sum(chunk.sizes[0] for chunk in each.chunks):
                raise UserError(f"{folder} lacks pieces of {name}; fetch it again")
            for layer in range(each.size[0]):
                reads[f"decoder.layers.{layer}.{stacked[1]}"] = partial(_tensor, folder, index, source, layer)
        else:
            reads[name] = partial(_tensor, folder, index, source, None)
    asked = arguments(common.get("args") if isinstance(common, dict) else None)
    return megatron.model_of("distributed checkpoint of megatron-core", folder, [Lazy(reads)], VERSION, asked)


def _tensor(folder: Path, index: Metadata, name: str, layer: int | None) -> Tensor:
    """A tensor put together of its pieces; of a stack, one layer. Errors: `UserError` where a piece is missing."""
    about: Any = index.state_dict_metadata[name]
    first = 0 if layer is None else 1  # of the dimensions that are kept
    result = torch.empty(about.size[first:], dtype=about.properties.dtype)
    filled = 0
    for chunk in about.chunks:
        if layer is not None and not chunk.offsets[0] <= layer < chunk.offsets[0] + chunk.sizes[0]:
            continue
        lies = (index.storage_data or {}).get(MetadataIndex(name, chunk.offsets))
        if lies is None:
            raise UserError(f"{folder / INDEX} does not say where a piece of {name} lies; fetch it again")
        file = folder / Path(lies.relative_path).name
        piece = pickles.load(file, (lies.offset, lies.length))
        if not isinstance(piece, Tensor) or piece.shape != chunk.sizes:
            raise UserError(f"{file} has another piece of {name} than {INDEX} says; fetch both again")
        piece = piece if layer is None else piece[layer - chunk.offsets[0]]
        ends = zip(chunk.offsets[first:], piece.shape, strict=True)
        result[tuple(slice(start, start + length) for start, length in ends)] = piece
        filled += piece.numel()
    if filled != result.numel():
        raise UserError(f"{folder} lacks pieces of {name}; fetch it again")
    return result
