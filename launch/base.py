"""The model that is tuned: a folder or a model of the hub becomes a run to begin with, the first time it is named."""

import dataclasses
import hashlib
import re
from pathlib import Path

from inference.named import HUB_ID, at_step, model_of
from model.config import NO_ADAPTERS
from recipes.recipe import Data, Recipe
from run.directory import runs_root
from run.request import Request, settled
from support.files import locked
from support.json_object import JsonObject

IMPORTED = "imported"  # the folder of such runs below the root, and the name of their recipe
WITHOUT_BASE = "gpt2"  # stands for the tokeniser, until the import has its own


def with_base(recipe: Recipe, request: Request) -> Request:
    """The request, `--from` a run: what is none yet is imported, where the recipe tunes.

    Errors: `UserError` where there is no such model, or no tokeniser with it.
    """
    given = request.branch
    if given is None or not recipe.data.tunes or settled(recipe, request).resume:
        return request
    path, which = at_step(Path(given), None)
    if which is not None:
        return dataclasses.replace(request, branch=f"{path}@{which}")
    begun = Path(given.rpartition("@")[0] or given)  # of runs/x@800 the directory; a hub id looks alike
    if not path.exists() and (begun.exists() or not HUB_ID.fullmatch(given)):
        return request  # a run; who begins the run says where there is none
    source = path if path.exists() else model_of(given)
    if (source / "recipe.json").exists():
        return dataclasses.replace(request, branch=str(source))
    return dataclasses.replace(request, branch=str(_imported(source, recipe)))


def _imported(source: Path, recipe: Recipe) -> Path:
    """The run that holds the model of a folder; made where it is not there, or the folder has changed since.

    Ranks of another launcher come all at once: one makes it, and the others wait.
    """
    from inference.importing import import_model

    files = sorted(file for file in (source.iterdir() if source.is_dir() else [source]) if file.is_file())
    state = [str(source.resolve()), *((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)]
    slug = re.sub(r"[^\w.-]+", "-", source.resolve().name)
    run = runs_root() / IMPORTED / f"{slug}-{hashlib.sha256(repr(state).encode()).hexdigest()[:8]}"
    with locked(runs_root() / f".{IMPORTED}.lock"):
        if not run.exists():
            plain = Data(corpus=recipe.data.corpus, tokeniser=WITHOUT_BASE)
            whole = dataclasses.replace(recipe, name=IMPORTED, data=plain, lora=NO_ADAPTERS)
            told: JsonObject = import_model(source, whole, run, None, None)
            print(f"imported {source}, a {told['form']} of {told['parameters']:,} parameters, to {run}", flush=True)
            for note in told["notes"]:
                print(f"note: {note}", flush=True)
    return run
