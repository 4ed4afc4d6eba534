"""Prepare a recipe's data: `stagecraft prepare gpt_tiny`."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.cleaning import clean
from data.cleaning.stages import Settings
from data.samples import blend, mixture
from data.samples.mixture import Mixture, PreparedPart
from data.tokens import prepare
from data.tokens.tasks import Progress
from recipes.recipe import Recipe
from run.directory import Run, read_data, runs_root

Say = Callable[[str], None]


class Bar:
    """Progress as a line now and then, or where it is `live` as a bar."""

    EVERY_SECONDS = 10.0

    def __init__(self, say: Say, live: bool = False) -> None:
        self.say, self.live, self.said = say, live, time.monotonic()
        self.bar: Any = None

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if self.live:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Live

            if self.bar is None:
                self.bar = Live(BarColumn(), TextColumn("{task.description}"))
                self.bar.add_task("")
                self.bar.start()
            self.bar.update(0, total=progress.total_bytes, completed=progress.done_bytes, description=str(progress))
        elif now - self.said >= self.EVERY_SECONDS:
            self.said = now
            self.say(str(progress))

    def stop(self) -> None:
        """Leave the bar."""
        if self.bar:
            self.bar.stop()


def recipe_data(recipe: Recipe, say: Say, options: prepare.Options | None = None) -> Mixture:
    """The prepared data of a recipe, made now where it is missing."""
    options = options or prepare.Options(report=Bar(say))
    data, root = recipe.data, runs_root() / "data"
    reserved = 1 if recipe.model.objective == "masked" else 0  # the last entry of the vocabulary is the mask token
    room = recipe.model.vocab_size - reserved
    texts = {part.corpus: part.corpus for part in data.parts}
    if data.clean:
        settings = [Settings(corpus, data.clean, options.skip) for corpus in texts]  # all checked before any work
        texts = {each.corpus: str(clean.cleaned(each, root, options.processes, say)) for each in settings}
    tokeniser = prepare.shared_tokeniser(list(texts.values()), data.tokeniser, root, say, options.skip)
    made: dict[str, Path] = {}
    unfinished: list[str] = []
    for corpus, text in texts.items():
        try:
            made[corpus] = prepare.prepare(text, tokeniser, room, root, say, options)
        except prepare.OthersUnfinished as state:
            unfinished.append(str(state))
    if unfinished:
        raise prepare.OthersUnfinished("; ".join(unfinished))
    folders = [made[part.corpus] for part in data.parts]
    weights = [part.weight for part in data.parts]
    if not any(weights):
        sizes = [prepare.manifest(folder)["train"]["tokens"] for folder in folders]
        weights = [(size / max(sizes)) ** (1 / data.temperature) for size in sizes]
    shares = blend.shares(weights)
    return Mixture([PreparedPart(p.corpus, f, s) for p, f, s in zip(data.parts, folders, shares, strict=True)])


def run_data(run: Run, say: Say) -> Mixture:
    """The data of a run; a resumed run gets the very shards it began with. Errors: `UserError` where they changed."""
    stored = run.path / "data.json"
    if not run.resume or not stored.exists():
        return recipe_data(run.recipe, say)
    began_with = read_data(run.path)
    if all(Path(part["folder"], "manifest.json").exists() for part in began_with["parts"]):
        return mixture.reopened(began_with)
    return Mixture(recipe_data(run.recipe, say).parts, began_with)
