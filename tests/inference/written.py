"""Checkpoints of weights alone, as a layout of choice would have written them."""

import math
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from model.checkpoint import format
from model.checkpoint.index import Fragment, index_text
from model.gpt import GPT
from model.grid import Axis
from model.parallel import Parallel, Slice, slice_of
from run import record

COUNTS = ("global_steps", "global_samples", "skipped_steps")


def checkpoint(run: Path, model: GPT, step: int, tp: int = 1, data: int = 1) -> Path:
    """Write the weights of a model, cut over `tp` tensor ranks, each part spread over `data` ranks."""
    folder = format.folder_of(run / "checkpoints", step)
    folder.mkdir(parents=True)
    contents: dict[str, dict[str, torch.Tensor]] = {}
    fragments: dict[str, list[tuple[int, Fragment]]] = {}
    for rank in range(tp):
        with torch.device("meta"):
            part = GPT(model.config, Parallel(Axis(tp, rank)))
        cuts = {name: slice_of(parameter) for name, parameter in part.named_parameters()}
        for name, parameter in model.named_parameters():
            if cuts[name] is None and rank:
                continue  # each tensor rank holds it whole
            for owner, fragment, values in _spread(name, parameter, cuts[name], data):
                file = f"rank-{owner * tp + rank:05d}.safetensors"
                number = len(contents.setdefault(file, {}))
                contents[file][f"{number}.weight"] = values
                fragments.setdefault(file, []).append((number, fragment))
    for file, tensors in contents.items():
        save_file(tensors, folder / file)
    index = folder / "index.json"
    index.write_text(index_text(fragments))
    known = record.read(run)
    manifest = {
        "step": step,
        "tie": {"run": known.id if known else ""},
        "state": {"step": step, "consumed_samples": 16 * step},
        "engine": {"optimizer_step": step, "loss_scaler": {}, **dict.fromkeys(COUNTS, step)},
        "index": format.facts(index),
        "files": {file: format.facts(folder / file) for file in contents},
    }
    format.write_manifest(folder, manifest)
    return folder


def _spread(
    name: str, parameter: nn.Parameter, cut: Slice | None, data: int
) -> list[tuple[int, Fragment, torch.Tensor]]:
    """A part of a parameter in `data` pieces that begin anywhere, as ZeRO's do."""
    part = (cut.of(parameter.data) if cut else parameter.data).contiguous()
    flat, size = part.flatten(), math.prod(part.shape)
    edges = [0, *(size * i // data + (1 if size > data else 0) for i in range(1, data)), size]
    return [
        (owner, Fragment(name, start, stop - start, 0, tuple(part.shape), cut), flat[start:stop].clone())
        for owner, (start, stop) in enumerate(pairwise(edges))
    ]
