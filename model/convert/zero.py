"""A checkpoint of DeepSpeed's as training left it, with a file or more a rank, of Megatron-DeepSpeed or gpt-neox.

A model rank is a tensor rank of a stage of a pipeline; all of the first stage come first. Its file has the weights in
the precision of training, or a pipeline has a file for each layer and tensor rank. With ZeRO the fp32 weights lie in
the optimizer's files, and are taken from there.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from model.convert import flat, megatron, pickles
from model.convert.foreign import Foreign, Lazy, Read
from model.convert.universal import GROUPED, arguments, named
from support.errors import UserError

LATEST = "latest"
MODEL = re.compile(r"(?:zero_pp_rank_(\d+)_)?mp_rank_(\d+)_model_states\.pt")
OPTIMIZER = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_?optim_states\.pt")
LAYER = re.compile(r"layer_(\d+)(?:-model_(\d+))?-model_states\.pt")
TIED = "tied_modules."

Place = tuple[int, int]  # a model rank and a data rank


def found(folder: Path) -> Path | None:
    """The checkpoint in a folder, if there is one. Errors: `UserError` where the newest is not there."""
    if (folder / LATEST).is_file():
        tag = (folder / LATEST).read_text(errors="replace").strip()
        if not (folder / Path(tag).name).is_dir():
            raise UserError(f"{folder / LATEST} names {tag}, which is not there; fetch it too, or give another folder")
        folder /= Path(tag).name
    return folder if any(folder.glob("*_model_states.pt")) or any(folder.glob("*optim_states.pt")) else None


def opened(folder: Path) -> Foreign:
    """The model in a checkpoint; its tensors stay in their files until they are read.

    Errors: `UserError` where a rank is missing, or it is a variant that we have not.
    """
    if expert := next(folder.glob("*expert_*_states.pt"), None):
        raise UserError(f"{expert} is a part of an expert; this model has none")
    models = {place: _held(file) for place, file in _files(folder, MODEL)}
    if (0, 0) not in models:
        raise UserError(f"{folder} lacks the model states of its first rank; fetch all files of it")
    said = models[0, 0]
    asked = _configuration(folder) | arguments(said.get("args"))
    parts = [models[rank, 0] for rank in _counted(folder, [rank for rank, data in models if data == 0])]
    masters = _masters(folder, parts)
    kept = _layers(folder) or _over_stages([_modules(part) for part in parts])
    _check_steps(folder, "model states", [part.get("global_steps") for part in models.values()])
    if not kept and not masters:
        raise UserError(f"{folder} holds no weights: with ZeRO-3 they are in the *_optim_states.pt; fetch those too")
    degree = asked.get("tensor_model_parallel_size", asked.get("model_parallel_size", max(len(kept), len(masters))))
    for ranks in filter(None, (kept, masters)):
        if len(ranks) != degree:
            raise UserError(f"{folder} is of {degree} tensor ranks, and {len(ranks)} are there; fetch all files of it")
    both = [{**(kept[rank] if kept else {}), **(masters[rank] if masters else {})} for rank in range(degree)]
    lazy = [Lazy(named(_ordered(reads), folder)) for reads in both]
    return megatron.model_of("ZeRO checkpoint of DeepSpeed's", folder, lazy, GROUPED, asked)


def _files(folder: Path, pattern: re.Pattern[str]) -> Iterator[tuple[Place, Path]]:
    """The files of a kind and whose they are, in order."""
    matches = ((pattern.fullmatch(file.name), file) for file in folder.iterdir())
    yield from sorted(((int(match[2]), int(match[1] or 0)), file) for match, file in matches if match)


def _held(file: Path) -> dict[str, Any]:
    held = pickles.load(file)
    if not isinstance(held, dict):
        raise UserError(f"{file} is no state of DeepSpeed's; fetch it again")
    return held


def _counted(folder: Path, ranks: list[int]) -> list[int]:
    """The same ranks. Errors: `UserError` where one is missing among them."""
    if lacking := set(range(max(ranks, default=0))) - set(ranks):
        raise UserError(f"{folder} lacks the states of model rank {min(lacking)}; fetch all files of it")
    return ranks


def _configuration(folder: Path) -> dict[str, Any]:
    """What gpt-neox was told: it keeps its files beside its checkpoints. Empty where there are none."""
    result: dict[str, Any] = {}
    for file in sorted(folder.glob("configs/*.yml")):
        try:
            values = yaml.safe_load(file.read_text())
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{file} cannot be read: {str(error).partition(chr(10))[0]}; fetch it again") from None
        result |= {str(key).replace("-", "_"): value for key, value in dict(values or {}).items()}
    return {"bias_gelu_fusion": False, **result} if result else {}  # as gpt-neox has it where it is not told


def _modules(held: dict[str, Any]) -> dict[str, Read]:
    """The weights in the states of a model rank; with ZeRO-3 there are none but empty ones."""
    tensors = megatron.flat_names(held.get("module") or {})
    return {name: value.clone for name, value in tensors if value.numel()}


def _layers(folder: Path) -> list[dict[str, Read]]:
    """The weights in the files of a pipeline's layers, by tensor rank."""
    ranks: dict[int, dict[str, Read]] = {}
    for (tensor, layer), file in sorted(_layer_files(folder)):
        for name, value in _held(file).items():
            if isinstance(value, Tensor):
                ranks.setdefault(tensor, {})[f"{layer}.{name}"] = value.clone
    return [ranks[rank] for rank in _counted(folder, sorted(ranks))]


def _layer_files(folder: Path) -> Iterator[tuple[Place, Path]]:
    for file in folder.iterdir():
        if match := LAYER.fullmatch(file.name):
            yield (int(match[2] or 0), int(match[1])), file


def _masters(folder: Path, parts: list[dict[str, Any]]) -> list[dict[str, Read]]:
    """The fp32 weights in the optimizer's files, by tensor rank; none where there are no files, or none says names."""
    files = dict(_files(folder, OPTIMIZER))
    if not files or not all(part.get("param_shapes") for part in parts):
        return []
    ranks: list[dict[str, Read]] = []
    steps: list[Any] = []
    for rank, part in enumerate(parts):
        own = [file for (model, _), file in files.items() if model == rank]
        states = [_held(file).get("optimizer_state_dict") or {} for file in own]
        count = states[0].get("partition_count", len(own)) if states else 1
        count = max(count) if isinstance(count, list) else count
        if len(own) != count:
            raise UserError(
                f"{folder} has {len(own)} of {count} optimizer states of model rank {rank}; fetch all of them"
            )
        ranks.append(flat.weights(folder, part["param_shapes"], states))
        steps += map(_step, states)
    _check_steps(folder, "optimizer states", steps)
    return _over_stages(ranks)


def _step(state: dict[str, Any]) -> float | None:
    """How many steps an optimizer took, where it says so."""
    inner = state.get("base_optimizer_state") or state.get("optimizer_state_dict")
    if not isinstance(inner, dict):
        return None
    held = [*(inner.get("state") or {}).values(), *(inner.get("param_groups") or [])]
    step = next((each["step"] for each in held if isinstance(each, dict) and "step" in each), None)
    return None if step is None else float(step)


def _check_steps(folder: Path, what: str, steps: list[Any]) -> None:
    if len(several := {step for step in steps if step is not None}) > 1:
        listed = ", ".join(f"{step:g}" for step in sorted(several))
        raise UserError(f"{folder} has {what} of several steps ({listed}); fetch all files of one")


def _over_stages(parts: list[dict[str, Read]]) -> list[dict[str, Read]]:
    """What each tensor rank has over all stages of a pipeline; the first stage's embedding counts."""
    name = next((name for part in parts for name in part if not name.startswith(TIED)), None)
    if name is None:
        return []
    degree = sum(name in part for part in parts)
    result: list[dict[str, Read]] = [{} for _ in range(degree)]
    for place, part in enumerate(parts):
        result[place % degree] = {**part, **result[place % degree]}
    return result


def _ordered(reads: dict[str, Read]) -> dict[str, Read]:
    """By number of layer, for the first embedding counts."""

    def number(name: str) -> int:
        found = re.match(r"(?:sequential\.)?(\d+)\.", name)
        return int(found[1]) if found else -1

    return {name: reads[name] for name in sorted(reads, key=number)}
