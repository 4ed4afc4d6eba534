"""Write text with a run or a folder. Imports nothing heavy: flags are checked first."""

from pathlib import Path
from typing import TYPE_CHECKING

from inference.sampling import Sampling, new_tokens, room_behind
from run.checkpoints import Chosen, choose
from support.errors import UserError
from support.json_object import JsonObject

if TYPE_CHECKING:
    from inference.decode.rows import Request, Row
    from inference.writers import Writer


def load(path: Path, which: str | None = None) -> "tuple[Writer, Chosen | None]":
    """What writes with a folder of Hugging Face's form, or with the checkpoint of a run that `which` means.

    Errors: `UserError` where it is neither, or there is no such checkpoint.
    """
    from transformers.utils import logging

    from inference.foreign import load_folder
    from inference.writers import load_run

    logging.disable_progress_bar()
    if (path / "config.json").exists():
        if which is not None:
            raise UserError(f"{path} is an exported folder: it has no checkpoints; leave --checkpoint out")
        return load_folder(path), None
    checkpoint = choose(path, which)
    checkpoint.tell()
    return load_run(path, checkpoint), checkpoint


def told(checkpoint: Chosen | None) -> JsonObject:
    """Which checkpoint wrote, for a program."""
    return checkpoint.told if checkpoint else {"checkpoint": None, "passed_over": []}


def requests(writer: "Writer", prompt: str, sampling: Sampling, special: bool, first: int = 0) -> "list[Request]":
    """The texts that go on from a prompt, numbered from `first`.

    Errors: `UserError` where the prompt does not fit into the context, or the new tokens do not where they must.
    """
    from inference.decode.rows import Request
    from inference.writers import encode

    # A prompt of nothing is the beginning of a document.
    tokens = tuple(encode(writer.tokeniser, prompt, special)) or (writer.tokeniser.eos_token_id,)
    asked, room = sampling.max_new_tokens, room_behind(len(tokens), writer.context)
    most = asked if asked and writer.slides else new_tokens(len(tokens), writer.context, asked)
    assert most <= room or writer.slides
    return [Request(first + number, tokens, seed, most) for number, seed in enumerate(sampling.seeds)]


def text_of(writer: "Writer", row: "Row") -> tuple[str, str]:
    """The prompt of a row, and what was written behind it."""
    from inference.writers import decode

    prompt = decode(writer.tokeniser, list(row.request.prompt))
    return prompt, decode(writer.tokeniser, row.tokens)[len(prompt) :]


def generate(
    path: Path, prompt: str, sampling: Sampling, stream: bool = False, which: str | None = None, special: bool = False
) -> JsonObject:
    """Texts that go on from a prompt; a `stream` prints them as they come.

    `special` takes the names of special tokens in the prompt for these tokens, and not for plain text.
    """
    from inference.shown import Shown

    writer, checkpoint = load(path, which)
    wanted = requests(writer, prompt, sampling, special)
    shown = Shown(sampling) if stream else None

    def stopped(row: "Row") -> bool:
        looked_at = shown is not None and shown.wants(row.request.number)
        if not looked_at and not sampling.stop:
            return False
        before, new = text_of(writer, row)
        cut = sampling.cut(new)
        if shown and looked_at:
            shown.grown(row.request.number, before + cut)
        return len(cut) < len(new)

    texts = {}
    for row in writer.write(wanted, sampling, stopped):
        before, new = text_of(writer, row)
        texts[row.request.number] = before + sampling.cut(new)
        if shown:
            shown.done(row.request.number, texts[row.request.number])
    return {"prompt": prompt, "samples": [texts[request.number] for request in wanted], **told(checkpoint)}
