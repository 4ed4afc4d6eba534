"""Look into a model while it reads a text: from a run or a folder to a page. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inference.generate import told
from inference.look.page import check_out, page
from inference.look.seen import Guesses, Seen, check_size
from inference.named import at_step, is_folder
from run.checkpoints import Chosen, choose
from run.directory import read_recipe
from support.errors import UserError
from support.files import enough_room, write
from support.json_object import JsonObject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAGE = "look.html"
WORST = 5  # tokens that the summary names


@dataclass(frozen=True)
class Looked:
    """What is seen, the tokeniser that names it, the checkpoint of a run, and what the page is called."""

    seen: Seen
    tokeniser: "PreTrainedTokenizerFast"
    checkpoint: Chosen | None
    title: str


def look(path: Path, prompt: str, which: str | None = None, special: bool = False) -> Looked:
    """Look into a run's checkpoint, or a causal model in a folder of Hugging Face's form, while it reads a prompt.

    The end of a document stands in front, as in training; a model that is no GPT-2 gets what its tokeniser puts around
    a text. `which` is a checkpoint, see `run/checkpoints.py`; `special` takes names of special tokens in the prompt for
    these tokens. Errors: `UserError` where the path is neither, or the prompt is too long for the model or for a page.
    """
    if is_folder(path):
        return _folder(path, prompt, special)
    return _run(path, prompt, which, special)


def _run(path: Path, prompt: str, which: str | None, special: bool) -> Looked:
    import torch

    from data.tokens import tokenisers
    from inference.export import load_model, load_tokeniser
    from inference.look import own
    from inference.writers import encode

    recipe, checkpoint = read_recipe(path), choose(path, which)
    checkpoint.tell()
    config, tokeniser = recipe.model, load_tokeniser(path)
    tokens = [tokeniser.eos_token_id, *encode(tokeniser, prompt, special)]
    _check_length(len(tokens), config.seq_length)
    check_size(config.num_layers, config.num_attention_heads, len(tokens), config.objective != "causal")
    model = load_model(path, checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
    apart, entries = recipe.data.separate_documents, tokenisers.entries(tokeniser)
    seen = own.look(model, tokens, entries, tokeniser.eos_token_id, apart)
    return Looked(seen, tokeniser, checkpoint, f"{recipe.name}, step {checkpoint.step:,}")


def _folder(path: Path, prompt: str, special: bool) -> Looked:
    from transformers.utils import logging

    from data.tokens import tokenisers
    from inference.foreign import load_folder
    from inference.look import foreign
    from inference.writers import encode

    logging.disable_progress_bar()
    writer = load_folder(path)
    tokeniser, config = writer.tokeniser, writer.model.config.get_text_config()
    tokens = encode(tokeniser, prompt, special, writer.framed)
    if not writer.framed or not tokens:
        tokens = [tokeniser.eos_token_id, *tokens]
    _check_length(len(tokens), writer.context)
    heads = getattr(config, "num_attention_heads", 0)  # a model without any is refused when it has read the text
    check_size(config.num_hidden_layers, heads, len(tokens), False)
    seen = foreign.look(writer.model, tokens, tokenisers.entries(tokeniser))
    return Looked(seen, tokeniser, None, path.resolve().name)


def _check_length(tokens: int, context: int) -> None:
    if tokens > context:
        raise UserError(
            f"the prompt does not fit: with what stands in front it has {tokens} tokens for a context of {context}; "
            "give a shorter one"
        )


def look_into(
    path: Path, prompt: str, out: Path | None = None, which: str | None = None, special: bool = False
) -> JsonObject:
    """Write the page of `look` to `out`, whole or not at all, and return its facts; see `docs/json.md`.

    By default it is `look.html` in the directory of a run, or here for a folder: what is beside an export is no export.
    Errors: those of `look`, `UserError` where `out` is something else, `NoRoomError`.
    """
    from inference.look import texts

    path, which = at_step(path, which)
    out = out or (Path() if is_folder(path) else path) / PAGE
    if path.is_dir():
        check_out(out)
    found = look(path, prompt, which, special)
    seen = found.seen
    called = texts.names(found.tokeniser, seen.tokens)
    guessed = {int(each) for layer in seen.lens for each in layer.ids.flatten()}
    content = page(seen, called, {each: texts.name(found.tokeniser, each) for each in sorted(guessed)}, found.title)
    with enough_room(out):
        write(out, content)
    layers, heads, *_ = seen.attention.shape
    return {
        "run": str(path),
        **told(found.checkpoint),
        "page": str(out),
        "bytes": out.stat().st_size,
        "layers": layers,
        "heads": heads,
        "mean_loss": seen.mean_loss,
        "tokens": _tokens(seen, called),
        "next": _next(seen.lens[-1], found.tokeniser) if seen.ahead else [],
        "notes": list(seen.notes),
    }


def _tokens(seen: Seen, called: list[str]) -> list[JsonObject]:
    ranks = [None, *(int(seen.lens[-1].rank[place - seen.ahead]) for place in range(1, len(seen.tokens)))]
    return [
        {"id": token, "text": text, "loss": loss, "rank": rank}
        for token, text, loss, rank in zip(seen.tokens, called, seen.losses, ranks, strict=True)
    ]


def _next(own: Guesses, tokeniser: "PreTrainedTokenizerFast") -> list[JsonObject]:
    """What the model expects behind the text."""
    from inference.look.texts import name

    best = zip(own.ids[-1].tolist(), own.odds[-1].tolist(), strict=True)
    return [{"id": token, "text": name(tokeniser, token), "odds": odds} for token, odds in best]


def show(values: JsonObject) -> None:
    """Print what `look_into` found."""
    tokens = [token for token in values["tokens"] if token["loss"] is not None]
    mean = f"mean loss {values['mean_loss']:.4f} nats a token" if tokens else "no token has a loss"
    print(f"{len(values['tokens'])} tokens, {mean}; {values['layers']} layers of {values['heads']} heads")
    if worst := sorted(tokens, key=lambda token: -token["loss"])[:WORST]:
        print("least expected: " + ", ".join(f"{token['text']!r} {token['loss']:.2f}" for token in worst))
    if values["next"]:
        print("next: " + ", ".join(f"{each['text']!r} {each['odds']:.1%}" for each in values["next"]))
    for note in values["notes"]:
        print(note)
    print(f"page: {values['page']} ({values['bytes'] / 1e6:.1f} MB)")
