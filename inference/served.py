"""What `transformers serve` is given: an export, checked, under a name. Imports nothing heavy before it checks."""

import importlib.util
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from inference.named import is_folder
from run import record
from run.directory import read_recipe
from support.errors import UserError

PACKAGES = ("fastapi", "uvicorn", "openai", "accelerate")  # of transformers' extra `serving`: those that it imports
GENERATION = "generation_config.json"
WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Served:
    """A folder to serve. `name` is the model's for clients, `context` its tokens (None: it says none), and `template`
    whether it can chat."""

    folder: Path
    name: str
    context: int | None
    template: bool


def check_packages() -> None:
    """Errors: `UserError` where what serves is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"serving needs the package{'s' * (len(missing) > 1)} {', '.join(missing)}; install with "
            'pip install "transformers[serving]==5.23.0"'
        )


def look_at(path: Path) -> Served:
    """The export of a run, or a folder of Hugging Face's form.

    Errors: `UserError` where there is none, or a tensor or its tokeniser is missing, or that is not the model's.
    """
    folder, name = (path, path.resolve().name) if is_folder(path) else _export_of(path)
    from transformers import AutoConfig
    from transformers.utils import logging

    from data.tokens import tokenisers

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} cannot be read as a model: {reason}; export the run again") from None
    if not any(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        raise UserError(f"{folder} has no weights ({', '.join(WEIGHTS)}); export the run again")
    tokeniser = tokenisers.load(str(folder))
    if (entries := tokenisers.entries(tokeniser)) > config.vocab_size:
        raise UserError(
            f"{folder} has a tokeniser of {entries} entries for a model of {config.vocab_size}: they do not belong "
            "together; export the run again"
        )
    from inference.foreign import load_folder

    logging.disable_progress_bar()
    load_folder(folder, device="meta")  # a tensor that is missing is drawn by transformers, and the texts are noise
    context = getattr(config, "max_position_embeddings", None)
    return Served(folder.resolve(), _hub_name(name), context, bool(tokeniser.chat_template))


def _export_of(run: Path) -> tuple[Path, str]:
    """The export of a run, and the run's name or its recipe's."""
    recipe, who = read_recipe(run), record.read(run)
    if recipe.model.objective != "causal":
        raise UserError(
            f"{run} is a model of the {recipe.model.objective} objective, which has no GPT-2 form and cannot be served;"
            " give a causal one"
        )
    if not is_folder(run / "export"):
        raise UserError(f"{run} has no export; make it with stagecraft export --run {run}, or give a folder as --run")
    return run / "export", (who.name if who else None) or recipe.name


def _hub_name(name: str) -> str:
    """A name as the hub has them: letters, digits, dashes, dots and _; no two dashes or dots together."""
    return re.sub(r"(\.\.|[^A-Za-z0-9_.])+", "-", name)[:96].strip("-.") or "model"


@contextmanager
def as_hub(served: Served) -> Iterator[Path]:
    """The folder as a cache of the hub that holds it alone, of links to its files.

    transformers lists the models of its cache to clients and knows them by their names there. A path would not be
    listed, and one with an @ not be found. What an export leaves open is set as clients expect it: tokens are drawn,
    unless a request's temperature is 0. Else the temperature of a request would count for nothing.
    """
    with tempfile.TemporaryDirectory(prefix="stagecraft-serve-") as cache:
        model = Path(cache) / f"models--{served.name}"
        snapshot = model / "snapshots" / "export"
        snapshot.mkdir(parents=True)
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(snapshot.name)
        for file in served.folder.iterdir():
            (snapshot / file.name).symlink_to(file)
        _draw(snapshot / GENERATION)
        yield Path(cache)


def _draw(file: Path) -> None:
    """Put a file in the place of a link, which switches drawing on."""
    with suppress(OSError, ValueError):  # what transformers cannot read either it says itself
        settings = json.loads(file.read_bytes())
        if "do_sample" not in settings:
            file.unlink()
            file.write_text(json.dumps({**settings, "do_sample": True}))
