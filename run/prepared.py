"""The prepared data of a recipe or a run: made, opened again, and told."""

from pathlib import Path
from typing import Any

from data.cleaning import clean
from data.cleaning.stages import Settings
from data.corpus import corpora
from data.corpus.examples import AUTO, Form
from data.corpus.named import CORPORA
from data.corpus.sources import SPLITS
from data.samples import blend, mixture
from data.samples.mixture import Mixture, PreparedPart
from data.tokens import prepare
from data.tokens.tasks import Progress
from recipes.recipe import BASE, Recipe
from run.branch import parents_texts
from run.directory import Run, read_data, runs_root
from support.errors import UserError
from support.json_object import JsonObject
from support.terminal import Say, now_and_then


class Bar:
    """Progress as a line now and then, or where it is `live` as a bar."""

    def __init__(self, say: Say, live: bool = False) -> None:
        self.say, self.live = now_and_then(say, at_once=False), live
        self.bar: Any = None

    def __call__(self, progress: Progress) -> None:
        if self.live:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Live

            if self.bar is None:
                self.bar = Live(BarColumn(), TextColumn("{task.description}"))
                self.bar.add_task("")
                self.bar.start()
            self.bar.update(0, total=progress.total_bytes, completed=progress.done_bytes, description=str(progress))
        else:
            self.say(str(progress))

    def stop(self) -> None:
        """End the bar, so that what follows stands below it."""
        if self.bar:
            self.bar.stop()


def recipe_data(recipe: Recipe, say: Say, options: prepare.Options | None = None, hashes: bool = True) -> Mixture:
    """The prepared data of a recipe, made now where it is missing. One of many processes `hashes` what changed."""
    options = options or prepare.Options(report=Bar(say))
    data, root = recipe.data, runs_root() / "data"
    reserved = 1 if recipe.model.objective == "masked" else 0  # the last entry of the vocabulary is the mask token
    room = recipe.model.vocab_size - reserved
    texts = {part.corpus: part.corpus for part in data.parts}
    if data.clean:
        settings = [Settings(corpus, data.clean, options.skip) for corpus in texts]  # all checked before any work
        texts = {each.corpus: str(clean.cleaned(each, root, options.processes, say)) for each in settings}
    form = form_of(recipe)
    tokeniser = prepare.shared_tokeniser(list(texts.values()), data.tokeniser, root, say, options.skip)
    made: dict[str, Path] = {}
    unfinished: list[str] = []
    for corpus, text in texts.items():
        try:
            made[corpus] = prepare.prepare(text, tokeniser, room, root, say, options, form)
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
    return Mixture(
        [PreparedPart(p.corpus, f, s) for p, f, s in zip(data.parts, folders, shares, strict=True)], None, hashes
    )


def form_of(recipe: Recipe) -> Form | None:
    """How rows become examples, where the recipe tunes. Errors: `UserError` where the template or the base is none."""
    data = recipe.data
    if not data.tunes:
        return None
    if data.tokeniser == BASE:
        raise UserError(
            f"{recipe.name} tunes a model, in the tokens of that; say which: pretrain takes --from RUN, prepare and "
            "inspect --set data.tokeniser=FOLDER, that of the tokeniser in its run's directory"
        )
    chat, special = "", ()
    if data.template == AUTO:
        from data.tokens import tokenisers

        words = tokenisers.obtain(data.tokeniser, ())
        if words.chat_template:
            chat, special = words.get_chat_template(), tuple(sorted(words.special_tokens_map.items()))
    return Form(
        data.template, recipe.model.seq_length + 1, chat, special, data.skip_longer, pairs=bool(recipe.dpo.beta)
    )


def print_data(parts: list[JsonObject], train_tokens: int) -> None:
    """Print the size of each split, and how often a run of `train_tokens` tokens reads each part of its blend."""
    total = sum(part["share"] for part in parts)
    for part in parts:
        for split in SPLITS:
            facts = part[split]
            if facts["tokens"]:
                print(
                    f"{split:10s} {facts['documents']:,} documents, {facts['bytes'] / 1e6:,.2f} MB, "
                    f"{facts['tokens']:,} tokens ({facts['bytes'] / facts['tokens']:.2f} bytes a token)"
                    + (f", {facts['answer_tokens']:,} of them answers" if "answer_tokens" in facts else "")
                )
        share = part["share"] / total
        epochs = share * train_tokens / part["train"]["tokens"]
        print(f"data: {part['folder']} ({share:.3%} of the samples, {epochs:,.2f} epochs in the token budget)")
        if teacher := part.get("teacher"):
            where = f"{teacher['name']} beside the shards, {teacher['bytes'] / 1e6:,.2f} MB"
            print(f"teacher: {teacher['asked']['model']}, its {teacher['top_k']} likeliest ids a token ({where})")


def run_data(run: Run, say: Say, hashes: bool = True) -> Mixture:
    """The data of a run.

    A resumed run gets the very shards it began with; a branch that reads the same texts, those of its parent. Errors:
    `UserError` where they changed.
    """
    home = run.path if run.resume and (run.path / "data.json").exists() else parents_texts(run)
    if home is None:
        return recipe_data(run.recipe, say, hashes=hashes)
    began_with = read_data(home)
    if all(Path(part["folder"], "manifest.json").exists() for part in began_with["parts"]):
        return mixture.reopened(began_with, hashes, taught=run.resume)
    return Mixture(recipe_data(run.recipe, say, hashes=hashes).parts, began_with, hashes)


def missing(run: Run) -> list[str]:
    """The corpora of a run that are not prepared yet. Writes nothing, asks no hub, and reads no text.

    Errors: `UserError` where a corpus cannot be found.
    """
    home = run.path if run.resume and (run.path / "data.json").exists() else parents_texts(run)
    if home is not None:
        parts = read_data(home)["parts"]
        return [part["corpus"] for part in parts if not Path(part["folder"], "manifest.json").exists()]
    return missing_data(run.recipe)


def missing_data(recipe: Recipe) -> list[str]:
    """As `missing`, of a recipe."""
    return [corpus for corpus, folder in found_data(recipe).items() if folder is None]


def found_data(recipe: Recipe) -> dict[str, Path | None]:
    """The prepared folder of each corpus of a recipe, None where there is none. Writes nothing, and asks no hub.

    Errors: `UserError` where a corpus cannot be found.
    """
    data, root, form = recipe.data, runs_root() / "data", form_of(recipe)
    texts = {part.corpus: part.corpus for part in data.parts}
    for corpus in texts:
        if corpus not in CORPORA and corpora.hub_of(corpus) is None:
            corpora.pieces(corpus, form)  # of local files, or it does not exist
    if data.clean:
        texts = {corpus: str(clean.folder_of(Settings(corpus, data.clean, None), root)) for corpus in texts}
        if any(not Path(folder).exists() for folder in texts.values()):
            return {corpus: Path(text) if Path(text).exists() else None for corpus, text in texts.items()}
    tokeniser = prepare.tokeniser_of(list(texts.values()), data.tokeniser, root)
    return {corpus: prepare.found(text, tokeniser, root, form) for corpus, text in texts.items()}
