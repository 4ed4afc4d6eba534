"""Adapters of a run as a folder of peft's, and such a folder as a run on a base of ours."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.config import LAYERS, LoRA
from run import record
from run.branch import Point
from run.checkpoints import Chosen
from run.directory import read_recipe
from run.record import Parent
from support.errors import UserError
from support.files import enough_room, whole_folder, write_json
from support.json_object import JsonObject

if TYPE_CHECKING:
    from torch import Tensor

    from model.config import GPTConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FINGERPRINT = "base_fingerprint"  # in the metadata of the weights
KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
UNKNOWN = (  # of peft's configuration
    "use_rslora",
    "use_dora",
    "alpha_pattern",
    "rank_pattern",
    "modules_to_save",
    "alora_invocation_tokens",
)


def check(folder: Path) -> None:
    """Whether adapters may take a folder's place. Errors: `UserError` where that holds anything else."""
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else {""} if folder.exists() else set()
    if names - {CONFIG, WEIGHTS, "README.md"} or (names and CONFIG not in names):
        raise UserError(f"{folder} exists and holds no adapters; give another --out")


def write(folder: Path, run: Path, checkpoint: Chosen) -> None:
    """Write the adapters of a checkpoint as peft does, whole or not at all, for the export of their base.

    Errors: `UserError` where the run has none, or their base is gone or another.
    """
    from safetensors.torch import save_file

    from model.checkpoint.base import base_of
    from model.checkpoint.format import manifest
    from model.checkpoint.overlay import reader_of
    from model.checkpoint.read import Reader

    recipe, base = read_recipe(run), base_of(manifest(checkpoint.path))
    if base is None:
        raise UserError(f"{run} has no adapters: all of its weights were trained; leave --format adapter out")
    reader_of(checkpoint.path)  # looks at the base
    reader = Reader(checkpoint.path)
    tensors = {their_key(name): to_peft(name, reader.whole(name), recipe.model) for name in reader.names()}
    with enough_room(folder), whole_folder(folder) as scratch:
        save_file(tensors, scratch / WEIGHTS, metadata={"format": "pt", FINGERPRINT: base.fingerprint})
        write_json(scratch / CONFIG, _config(recipe.lora, Path(base.path).parent.parent / "export"))
        for file in scratch.iterdir():  # safetensors gives its files to their owner alone
            file.chmod(scratch.stat().st_mode & 0o666)


def _config(lora: LoRA, base: Path) -> JsonObject:
    from model.huggingface import hf_layer

    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": [hf_layer(target) for target in lora.targets],
        "fan_in_fan_out": True,
        "bias": "none",
        "inference_mode": True,
    }


def their_key(name: str) -> str:
    """peft's name for one of our adapters' matrices."""
    from model.huggingface import hf_name
    from model.lora import A, B

    letter, stem = ("A", name.removesuffix(A)) if name.endswith(A) else ("B", name.removesuffix(B))
    return f"base_model.model.{hf_name(stem + '.weight').removesuffix('.weight')}.lora_{letter}.weight"


def to_peft(name: str, value: "Tensor", config: "GPTConfig") -> "Tensor":
    """One of our adapters' matrices as peft has it: only B of the queries, keys and values has another order."""
    from model.huggingface import to_hf_value
    from model.lora import A

    return value if name.endswith(A) else to_hf_value(name, value, config, 0).t().contiguous()


def from_peft(name: str, value: "Tensor", config: "GPTConfig") -> "Tensor":
    """The inverse of `to_peft`."""
    from model.huggingface import from_hf_value
    from model.lora import A

    return value if name.endswith(A) else from_hf_value(name, value.t(), config)


def import_adapter(source: Path, point: Point, run: Path, name: str | None) -> JsonObject:
    """Write the adapters in a folder of peft's as a run on the base `point`, whole or not at all.

    Errors: `UserError` where there are none that we have, they were trained on another base, or a run is there already;
    `NoRoomError`.
    """
    from model.checkpoint.base import Base
    from model.checkpoint.overlay import check_base, fingerprint
    from model.checkpoint.weights import write_weights

    if run.exists():
        raise UserError(f"{run} exists; give another --run-dir")
    if point.recipe.lora.rank:
        raise UserError(f"--from {point} has adapters itself; give a run that all weights of were trained or imported")
    lora, weights, said = opened(source, point.recipe.model)
    base = point.checkpoint.path.resolve()
    if said:
        check_base(base, said, f"the adapters in {source}")
    recipe = dataclasses.replace(
        point.recipe,
        lora=lora,
        source=f"the adapters of {source.resolve().name}; all else as the run that they lie on",
        status="imported, not trained here",
    )
    known, found = record.read(point.run), fingerprint(base)
    lies_on = Parent(
        known.id if known else "",
        str(point.run.resolve()),
        point.checkpoint.step,
        0,
        base=str(base),
        base_fingerprint=found,
    )
    with enough_room(run), whole_folder(run) as scratch:
        who = record.write(scratch, name, lies_on)
        shutil.copy(point.run / "ds_config.json", scratch / "ds_config.json")
        shutil.copytree(point.run / "tokeniser", scratch / "tokeniser")
        write_json(scratch / "recipe.json", dataclasses.asdict(recipe))
        state = {"step": 0, "consumed_samples": 0}
        on = Base(str(base), found, lora.scale)
        write_weights(scratch / "checkpoints", weights.items(), {record.RUN: who.id}, state, base=on)
    return {
        "run": str(run),
        "from": str(source),
        "form": "LoRA adapter of peft",
        "recipe": recipe.name,
        "parameters": sum(value.numel() for value in weights.values()),
        "notes": [] if said else ["it does not say what it was trained on: nobody compared that with its base"],
        "next": [f"stagecraft generate --run {name or run}"],
    }


def opened(source: Path, model: "GPTConfig") -> tuple[LoRA, dict[str, "Tensor"], str]:
    """What a folder of peft's holds: the adapters, their matrices by our names, and the fingerprint of their base.

    Errors: `UserError` where it cannot be read, or where its adapters are not of this model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        config: dict[str, Any] = json.loads((source / CONFIG).read_text())
        with safe_open(str(source / WEIGHTS), framework="pt") as file:
            theirs = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
            said = (file.metadata() or {}).get(FINGERPRINT, "")
        kind, rank, alpha = config["peft_type"], int(config["r"]), float(config["lora_alpha"])
        dropout = float(config.get("lora_dropout", 0.0))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{source} holds no adapters of peft that can be read: {error!r}; give such a folder") from None
    strange = [f"{key} {config[key]}" for key in UNKNOWN if config.get(key)] or [f"r {rank}"] * (rank < 1)
    if kind != "LORA" or strange:
        what = strange[0] if kind == "LORA" else f"peft_type {kind}"
        raise UserError(f"{source} / {CONFIG}: {what} is no LoRA that this model has; train plain LoRA")
    targets = tuple(layer for layer in LAYERS if any(_of_layer(key, layer) for key in theirs))
    lora = LoRA(rank, alpha, dropout, targets or LAYERS)
    return lora, _ours(source, theirs, lora, model), said


def _of_layer(key: str, layer: str) -> bool:
    from model.huggingface import hf_layer

    found = KEY.fullmatch(key)
    return bool(found) and found[1].endswith(f".{hf_layer(layer)}")  # type: ignore[index]


def _ours(source: Path, theirs: dict[str, "Tensor"], lora: LoRA, model: "GPTConfig") -> dict[str, "Tensor"]:
    from model.lora import shapes

    wanted = shapes(model, lora)
    if strangers := sorted(set(theirs) ^ {their_key(name) for name in wanted}):
        raise UserError(
            f"{source / WEIGHTS} and a model of {model.num_layers} layers do not have the same adapters, for example "
            f"{strangers[0]}; give the base that they were trained on"
        )
    for name, shape in wanted.items():
        if (found := theirs[their_key(name)].shape) != shape:
            raise UserError(
                f"{source / WEIGHTS}: {their_key(name)} is {tuple(found)}, and with this base {tuple(shape)}; give the "
                "base that they were trained on"
            )
    return {name: from_peft(name, theirs[their_key(name)], model).contiguous() for name in wanted}
