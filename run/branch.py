"""A branch: a new run that goes on from a checkpoint of another, and may change all but the shape of the model."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from recipes import settings
from recipes.recipe import BASE, Data, Recipe
from run import record, select
from run.checkpoints import Chosen, choose
from run.directory import Run, read_recipe
from run.record import Parent
from support.errors import UserError
from support.json_object import differences

SHAPELESS = ("dropout", "init_method_std")  # fields of the model that no weight depends on
DESCRIBED = ("source", "status", "cluster")  # what a recipe says of itself changes no run


@dataclass(frozen=True)
class Point:
    """Where a branch begins: a checkpoint that is whole, of a run that was trained with `recipe`."""

    run: Path
    checkpoint: Chosen
    recipe: Recipe
    consumed_samples: int

    def __str__(self) -> str:
        return f"{self.run}@{self.checkpoint.step}"


def point_of(text: str) -> Point:
    """The point that `run`, `run@step`, `run@best` or `run@newest` means. Errors: `UserError` where there is none."""
    from model.checkpoint.format import manifest

    name, at, which = text.rpartition("@")
    if not at or Path(text).exists():
        name, which = text, "newest"
    elif not which or not name:
        raise UserError(f"--from {text}: write run@step, run@best, or run alone for its newest checkpoint")
    run = select.find(name)
    recipe = read_recipe(run)
    checkpoint = choose(run, which)
    return Point(run, checkpoint, recipe, manifest(checkpoint.path)["state"]["consumed_samples"])


def fitted(recipe: Recipe, point: Point) -> Recipe:
    """The recipe of a branch from `point`. Errors: `UserError` where its model has another shape.

    A tokeniser that a recipe trains on its corpus (`bpe:N`) would be another one on other texts, and each id would
    mean something else to the weights: the branch takes its parent's.
    """
    before, after = point.recipe, recipe
    for entry in dataclasses.fields(before.model):
        old, new = getattr(before.model, entry.name), getattr(after.model, entry.name)
        if old != new and entry.name not in SHAPELESS:
            raise UserError(
                f"--from {point}: its model has {entry.name} {old}, not {new}, and a branch keeps the shape of its "
                "parent's model; leave that setting out, or start a new run"
            )
    trained = after.data.tokeniser.startswith("bpe:") and after.data.tokeniser == before.data.tokeniser
    if trained and not same_texts(before.data, after.data):
        data = dataclasses.replace(after.data, tokeniser=str(point.run.resolve() / "tokeniser"))
        return dataclasses.replace(after, data=data)
    return after


def based(recipe: Recipe, point: Point | None) -> Recipe:
    """A recipe that tunes, with the shape and the tokeniser of the model at `point`, which it begins with.

    Errors: `UserError` where no model is named, or the recipe asks for another tokeniser.
    """
    if point is None:
        raise UserError(
            f"{recipe.name} tunes a model; say which with --from: a run, the folder of a model, or a hub id"
        )
    if recipe.data.tokeniser != BASE:
        raise UserError(
            f"{recipe.name} has data.tokeniser {recipe.data.tokeniser}, but a model that is tuned keeps its own; write "
            f'tokeniser="{BASE}"'
        )
    model = dataclasses.replace(point.recipe.model, dropout=recipe.model.dropout)
    data = dataclasses.replace(recipe.data, tokeniser=str(point.run.resolve() / "tokeniser"))
    return dataclasses.replace(recipe, model=model, data=data)


def begins_anew(recipe: Recipe, point: Point) -> bool:
    """Whether a branch takes its parent's weights alone: it tunes, and its parent was trained for something else."""
    before, after = (bool(each.dpo.beta) for each in (point.recipe, recipe))
    return recipe.data.tunes and (recipe.name != point.recipe.name or before != after)


def same_texts(one: Data, other: Data) -> bool:
    """Whether two recipes read the same tokens."""
    read = ("corpus", "tokeniser", "clean", "temperature", "template", "skip_longer")
    return all(getattr(one, name) == getattr(other, name) for name in read)


def with_parent(run: Run, point: Point) -> Run:
    """The run as a branch from `point`. Errors: `UserError` where no step is left to take."""
    step, before, after = point.checkpoint.step, point.recipe, run.recipe
    known = record.read(point.run)
    who = (known.id if known else "", str(point.run.resolve()), step)
    base, fingerprint = _base(point, after)
    if begins_anew(after, point):
        parent = Parent(*who, consumed_samples=0, tuned=True, base=base, base_fingerprint=fingerprint)
        return dataclasses.replace(run, parent=parent)
    if run.max_steps is not None and run.max_steps <= step:
        raise UserError(f"--max-steps {run.max_steps} is not after step {step}, where --from {point} begins")
    if run.last_step_from(step, point.consumed_samples) <= step:
        read = point.consumed_samples * after.model.seq_length
        raise UserError(
            f"--from {point}: {read:,} tokens were read there, and schedule.train_tokens is "
            f"{after.schedule.train_tokens:,}, those of the parent counted; set it to more"
        )
    asked = record.read_object(point.run / "start.json")
    differing = [
        *differences(settings.plain(before, DESCRIBED), settings.plain(after, DESCRIBED)),
        *differences(record.read_object(point.run / "ds_config.json"), run.engine_json),
        *(differences({"processes": asked["world_size"]}, {"processes": run.world_size}) if asked else ()),
    ]
    changes = [f"{name} {_shown(old)} -> {_shown(new)}" for name, old, new in differing]
    goes_on = same_texts(before.data, after.data) and before.seed == after.seed
    data_from = known.parent.data_from if goes_on and known and known.parent else 0
    parent = Parent(
        *who,
        consumed_samples=point.consumed_samples,
        changes=tuple(changes),
        data_from=data_from if goes_on else point.consumed_samples,
        base=base,
        base_fingerprint=fingerprint,
    )
    return dataclasses.replace(run, parent=parent)


def _base(point: Point, recipe: Recipe) -> tuple[str, str]:
    """The checkpoint that the adapters of a branch lie on, and its fingerprint; nothing where all weights train.

    Errors: `UserError` where the parent has adapters, and the branch has none or others.
    """
    before, after = (dataclasses.replace(lora, dropout=0.0) for lora in (point.recipe.lora, recipe.lora))
    if not (before.rank or after.rank):
        return "", ""
    from model.checkpoint.base import base_of
    from model.checkpoint.format import manifest
    from model.checkpoint.overlay import fingerprint

    if not before.rank:
        place = point.checkpoint.path.resolve()
        return str(place), fingerprint(place)
    if before != after:
        name, old, new = differences(vars(before), vars(after))[0]
        raise UserError(
            f"--from {point}: its adapters have lora.{name} {_shown(old)}, not {_shown(new)}; ask for the same, or "
            "export that run and import it: then its adapters are merged"
        )
    base = base_of(manifest(point.checkpoint.path))
    assert base is not None, f"{point} has adapters, and its checkpoint names no base"
    return base.path, base.fingerprint


def check_adapters(parent: Parent | None, recipe: Recipe) -> None:
    """Whether the adapters of a run have what they lie on. Errors: `UserError` where that is gone, or another."""
    rank = recipe.lora.rank
    if not rank:
        return
    from model.checkpoint.overlay import check_base

    if parent is None or not parent.base:
        raise UserError(f"lora.rank is {rank}, and adapters lie on a trained model; give it with --from RUN")
    check_base(Path(parent.base), parent.base_fingerprint, "the adapters of this run")


def parents_texts(run: Run) -> Path | None:
    """The directory of a branch's parent, where the branch reads the same texts; else None."""
    if run.parent is None:
        return None
    parent = Path(run.parent.path)
    if not run.parent.consumed_samples:  # an import: it has read none here
        return None
    return parent if same_texts(read_recipe(parent).data, run.recipe.data) else None


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
