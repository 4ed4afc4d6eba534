"""A model of somebody else's as a run that branches begin with: a checkpoint of step 0, a recipe and a tokeniser."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from model.engine import config as engine_config
from recipes.recipe import Recipe
from recipes.registry import ROOT, short_name
from run import record
from support.errors import UserError
from support.files import enough_room, whole_folder, write_json
from support.json_object import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from model.convert.foreign import Foreign


def import_model(source: Path, recipe: Recipe, run: Path, tokeniser: str | None, name: str | None) -> JsonObject:
    """Write the model in `source` as the run directory `run`, whole or not at all; a tensor at a time.

    All but the model's shape is that of `recipe`. `tokeniser` is `gpt2`, a folder or a hub id; None is the one in
    `source`. Errors: `UserError` where there is no model that we have, no tokeniser that goes with it, or a run
    already; `NoRoomError`.
    """
    from data.tokens import tokenisers
    from model.checkpoint.weights import write_weights
    from model.convert import detect

    if run.exists():
        raise UserError(f"{run} exists; give another --run-dir")
    if recipe.lora.rank:
        raise UserError(
            f"{recipe.name} trains adapters, and an import has all weights of a model; give a --recipe without lora, "
            f"and then train {recipe.name} --from the import"
        )
    foreign = detect.opened(source)
    words = _tokeniser(source, foreign, tokeniser)
    imported = _recipe(source, foreign, recipe, run)
    with enough_room(run), whole_folder(run) as scratch:
        who = record.write(scratch, name)
        write_json(scratch / "ds_config.json", engine_config.parse(ROOT / recipe.engine))
        write_json(scratch / "recipe.json", dataclasses.asdict(imported))
        tokenisers.save(words, scratch / "tokeniser")
        state = {"step": 0, "consumed_samples": 0}
        write_weights(scratch / "checkpoints", foreign.weights(), {record.RUN: who.id}, state)
    return {
        "run": str(run),
        "from": str(source),
        "form": foreign.form,
        "recipe": recipe.name,
        "parameters": foreign.config.num_parameters,
        "notes": list(foreign.notes),
        "next": [f"stagecraft pretrain {short_name(recipe.name)} --from {name or run}"],
    }


def _tokeniser(source: Path, foreign: "Foreign", spec: str | None) -> "PreTrainedTokenizerFast":
    """The tokeniser of an import. Errors: `UserError` where it is missing, or has more entries than the model."""
    from data.tokens import tokenisers

    if spec and spec.startswith("bpe:"):
        raise UserError(f"--tokeniser {spec} would be trained anew, and the model knows another one; give that one")
    if spec is None and not any((source / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(f"{source} has no tokeniser; give the one that the model was trained with: --tokeniser gpt2")
    words = tokenisers.obtain(spec or str(source), ())
    if (entries := tokenisers.entries(words)) > foreign.config.vocab_size:
        raise UserError(
            f"the tokeniser {spec or source} has {entries} entries and the model {foreign.config.vocab_size}: they do "
            "not belong together; give the one that the model was trained with"
        )
    return words


def _recipe(source: Path, foreign: "Foreign", recipe: Recipe, run: Path) -> Recipe:
    """The recipe of an import. Errors: `UserError` where the layout does not cut the model."""
    return dataclasses.replace(
        recipe,
        model=foreign.config,
        data=dataclasses.replace(recipe.data, tokeniser=str(run.resolve() / "tokeniser")),
        source=f"the weights of {source.resolve().name}, a {foreign.form}; all but the model as {recipe.name}",
        status="imported, not trained here",
    )
