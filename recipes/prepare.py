"""Prepare a recipe's data: `python -m recipes.prepare gpt_tiny`."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data import blend, clean, corpora, mixture, prepare
from data.encode import ENGINES
from data.mixture import Mixture, PreparedPart
from data.sources import SPLITS
from data.stages import Settings
from data.tasks import Progress
from recipes import cli
from recipes.recipe import Recipe, load, override
from recipes.run import Run, runs_root

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
    """The data of a run; a resumed run gets the very shards it began with. Errors: `ValueError` where they changed."""
    stored = run.path / "data.json"
    if not run.resume or not stored.exists():
        return recipe_data(run.recipe, say)
    began_with = json.loads(stored.read_text())
    if all(Path(part["folder"], "manifest.json").exists() for part in began_with["parts"]):
        return mixture.reopened(began_with)
    return Mixture(recipe_data(run.recipe, say).parts, began_with)


def list_corpora(quiet: bool) -> list[dict[str, Any]]:
    """The registry; printed unless `quiet`."""
    known: list[dict[str, Any]] = [
        {
            "name": corpus.name,
            "what": corpus.description,
            "gone": corpus.gone,
            "from": f"hub {corpus.hub}" if corpus.hub else "fetched",
            "size_gb": corpus.size_gb,
            "licence": corpus.licence,
            "fixed_by": corpus.fixed_by,
        }
        for corpus in corpora.CORPORA.values()
    ]
    if quiet:
        return known
    from rich.console import Console
    from rich.table import Column, Table

    table = Table(Column("corpus", no_wrap=True), "what", "from", "GB", "licence", "fixed by")
    for entry in known:
        what = f"{entry['what']}. {entry['gone']}" if entry["gone"] else entry["what"]
        size = "?" if entry["size_gb"] is None else f"{entry['size_gb']:.3g}"
        table.add_row(entry["name"], what, entry["from"], size, entry["licence"], entry["fixed_by"])
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    return known


def main() -> None:
    parser = cli.Parser(
        "Fetch, clean, tokenise and pack a recipe's data into shards below runs/data; a no-op when it is there. After "
        "an interruption the same command goes on where it was."
    )
    parser.add_argument("recipe", nargs="?", help="for example gpt_tiny, or tiny")
    parser.add_argument("--corpora", action="store_true", help="list the corpora known by name, and end")
    parser.add_argument("--set", dest="settings", nargs="+", action="extend", default=[], metavar="SECTION.FIELD=VALUE")
    parser.add_argument("--workers", type=int, default=0, help="processes that tokenise; 0 is one a core")
    parser.add_argument("--nodes", type=int, default=1, help="machines that share the work, without a coordinator")
    parser.add_argument("--node", type=int, default=0, help="which of them this is, from 0")
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="for input that cannot be read")
    parser.add_argument("--engine", choices=("auto", *ENGINES), default="auto", help="what encodes")
    parser.add_argument("--json", action="store_true", help="print the manifest, or the corpora, as JSON")
    args = parser.parse_args()

    def job() -> Any:
        if args.corpora:
            return list_corpora(args.json)
        if not args.recipe:
            raise ValueError("name a recipe, for example gpt_tiny, or give --corpora to see what there is to prepare")
        say: Say = (lambda line: None) if args.json else print
        bar = Bar(say, live=sys.stdout.isatty())
        report = None if args.json else bar
        skip = args.on_error == "skip"
        options = prepare.Options(args.workers, args.nodes, args.node, skip, args.engine, report=report)
        recipe = override(load(args.recipe), args.settings)
        try:
            described = recipe_data(recipe, say, options).described
        except prepare.OthersUnfinished as state:
            print(state)
            return {"unfinished": str(state)}
        finally:
            bar.stop()
        if args.json:
            return described
        total = sum(part["share"] for part in described["parts"])
        for part in described["parts"]:
            for split in SPLITS:
                facts = part[split]
                if facts["tokens"]:
                    print(
                        f"{split:10s} {facts['documents']:,} documents, {facts['bytes'] / 1e6:,.2f} MB, "
                        f"{facts['tokens']:,} tokens ({facts['bytes'] / facts['tokens']:.2f} bytes a token)"
                    )
            share = part["share"] / total
            epochs = share * recipe.schedule.train_tokens / part["train"]["tokens"]
            print(f"data: {part['folder']} ({share:.3%} of the samples, {epochs:,.2f} epochs in the token budget)")
        return described

    cli.run_job(job, args.json)


if __name__ == "__main__":
    main()
