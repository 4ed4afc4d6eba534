"""A checkpoint of weights alone, written by one process without an engine: what an import begins with."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import index
from model.checkpoint.base import KEY, Base
from model.checkpoint.format import Tie, facts, folder_of, write_manifest
from model.checkpoint.index import WEIGHT, Fragment, index_text, tensor_key
from support.files import whole_folder
from support.json_object import JsonObject

FILE_BYTES = 5_000_000_000
UNTRAINED: JsonObject = {  # what an engine has counted before its first step
    "optimizer_step": 0.0,
    "loss_scaler": {},
    **dict.fromkeys(("global_steps", "global_samples", "skipped_steps"), 0),
}


def write_weights(
    root: Path,
    weights: Iterable[tuple[str, Tensor]],
    tie: Tie,
    state: JsonObject,
    file_bytes: int = FILE_BYTES,
    base: Base | None = None,
) -> Path:
    """Write weights without an optimiser as a checkpoint below `root`; `state` has its step.

    `weights` are whole parameters by name, fp32; of them as many are in memory as fill a file of `file_bytes`. Adapters
    lie on `base`. It is there whole or not at all. Errors: `OSError`, `SafetensorError` where it cannot be written.
    """
    final = folder_of(root, state["step"])
    with whole_folder(final) as folder:
        files: dict[str, JsonObject] = {}
        written: dict[str, list[tuple[int, Fragment]]] = {}
        for number, part in enumerate(_parts(weights, file_bytes)):
            file = folder / f"weights-{number:05d}.safetensors"
            save_file({tensor_key(flat, WEIGHT): value.flatten() for flat, (_, value) in enumerate(part)}, file)
            file.chmod(folder.stat().st_mode & 0o666)  # safetensors gives its files to their owner alone
            files[file.name] = facts(file)
            written[file.name] = [
                (flat, Fragment(name, 0, value.numel(), 0, tuple(value.shape), None))
                for flat, (name, value) in enumerate(part)
            ]
        place = folder / index.FILE
        place.write_text(index_text(written))
        content = {
            "step": state["step"],
            "tie": dict(tie),
            "state": state,
            "engine": UNTRAINED,
            "index": facts(place),
            "files": files,
        }
        if base:
            content[KEY] = asdict(base)
        write_manifest(folder, content)
    return final


def _parts(weights: Iterable[tuple[str, Tensor]], most: int) -> Iterator[list[tuple[str, Tensor]]]:
    """The weights in lists of at most so many bytes, each of at least one."""
    part: list[tuple[str, Tensor]] = []
    for name, value in weights:
        if part and sum(each.nbytes for _, each in part) + value.nbytes > most:
            yield part
            part = []
        part.append((name, value))
    if part:
        yield part
