"""What a run goes on from when it is resumed, and what a resume may not change unasked."""

import hashlib
import json
from pathlib import Path

from data.samples.mixture import Mixture
from model.engine.resolve import Resolved
from recipes.recipe import Recipe
from run import events, metrics, record
from support.errors import UserError
from support.json_object import JsonObject, differences

OF_THE_RECIPE = ("name", "model", "data", "seed")  # what no start of a run can change
IMPLEMENTATION = ("torch_adam", "fused")  # parameters of an optimizer that compute the same in another way


def tie_of(path: Path, data: Mixture) -> dict[str, str]:
    """What ties checkpoints to the run in the directory `path`: its id, and hashes of its recipe and of its data.

    The recipe is that of the first start, which no later one writes over.
    """
    known = record.read(path)
    recipe = record.read_object(path / "recipe.json")
    lasting = json.dumps({name: recipe.get(name) for name in OF_THE_RECIPE}, sort_keys=True)
    return {
        record.RUN: known.id if known else "",
        "recipe": hashlib.sha256(lasting.encode()).hexdigest(),
        "data": data.fingerprint,
    }


def check_can_go_on(path: Path) -> None:
    """A run that saved has a checkpoint to go on from, as far as manifests and the sizes of files tell.

    Errors: `UserError` where it has none: steps that were trained are not begun again unasked.
    """
    from model.checkpoint.format import completed, looks_damaged

    saved, known = completed(path / "checkpoints"), record.read(path)
    if saved and known is None:
        raise UserError(f"{path / record.FILE} is missing or was changed, and its checkpoints name a run; restore it")
    reason = ""
    for checkpoint in reversed(saved):
        found = looks_damaged(checkpoint, {record.RUN: known.id} if known else {})
        if not found:
            return
        reason = reason or (found if str(checkpoint) in found else f"{checkpoint}: {found}")
    if saved:
        raise UserError(f"no checkpoint of {path} can be used: {reason}; restore one, or start a new run")
    check_never_saved(path)


def check_no_import(path: Path) -> None:
    """An import has weights and was never started. Errors: `UserError` with the way to train on from it."""
    if (path / "checkpoints" / "step-00000000").is_dir() and not (path / "start.json").exists():
        raise UserError(f"{path} is an import, which nothing is written into; train on from it with --from {path}")


def check_never_saved(path: Path) -> None:
    """A run without a checkpoint may begin again where it never had one. Errors: `UserError` where it had."""
    if any(event["event"] == "saved" for event in events.read(path)) or any(
        "save_seconds" in line for line in metrics.each(path / "metrics.jsonl")
    ):
        raise UserError(
            f"{path} has saved and {path / 'checkpoints'} holds no checkpoint: going on would begin again with step 1; "
            "restore one, or start a new run"
        )


def changes(before: tuple[Recipe, Resolved], after: tuple[Recipe, Resolved]) -> list[str]:
    """What makes a start compute other numbers than the one before it, a line each: `optimizer.lr 0.003 -> 0.001`.

    Ranks, layout, ZeRO stage, offload, micro-batch, intervals and monitors are no such thing: they say how, not what.
    """
    found = differences(_numbers(*before), _numbers(*after))
    if before[1].dtype != after[1].dtype:  # each precision has keys of its own
        found = [each for each in found if each[0].partition(".")[0] not in ("bf16", "fp16", "data_types")]
    return [f"{name} {_shown(old)} -> {_shown(new)}" for name, old, new in found]


def _numbers(recipe: Recipe, engine: Resolved) -> JsonObject:
    """What decides the numbers of a run, of its recipe and of its JSON."""
    config: JsonObject = json.loads(json.dumps(engine.json))
    optimizer = config.get("optimizer", {})
    parameters = {key: value for key, value in optimizer.get("params", {}).items() if key not in IMPLEMENTATION}
    batch, schedule = vars(recipe.batch), vars(recipe.schedule)
    return {
        "precision": engine.dtype,
        "optimizer": {"type": optimizer.get("type"), **parameters},
        "schedule": dict(schedule),
        "batch": {name: value for name, value in batch.items() if name.startswith("ramp_")},
        **{name: config.get(name) for name in ("train_batch_size", "gradient_clipping", "scheduler")},
        **{name: config.get(name) for name in ("bf16", "fp16", "data_types")},
    }


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
