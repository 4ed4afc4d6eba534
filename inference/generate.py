"""Write text with a run or a folder. Imports nothing heavy: flags are checked first."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from inference.named import at_step, is_folder
from inference.ranking import WAYS, diversity, known, scores
from inference.ranks import Loading, all_ranks, leads, load_run, told_by_first
from inference.sampling import Sampling, new_tokens, room_behind
from run.checkpoints import Chosen
from support.errors import UserError
from support.json_object import JsonObject

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inference.decode.rows import Request, Row, Stopped
    from inference.shown import Shown
    from inference.writers import Writer


def load(path: Path, loading: Loading = Loading()) -> "tuple[Writer, Chosen | None]":  # noqa: B008  # it is frozen
    """What writes with a folder of Hugging Face's form, with a run, or with the checkpoint that `path` is.

    Errors: `UserError` where it is neither, or there is no such checkpoint.
    """
    from transformers.utils import logging

    from inference.foreign import load_folder
    from model.engine.precision import DTYPES

    loading.check()
    path, which = at_step(path, loading.which)
    loading = replace(loading, which=which)
    logging.disable_progress_bar()
    if not is_folder(path):
        return load_run(path, loading)
    if loading.tensor * loading.pipeline > 1:
        raise UserError(f"{path} is no run: each rank writes with all of it; leave --tensor and --pipeline out")
    return load_folder(path, DTYPES[loading.precision], all_ranks()), None


def told(checkpoint: Chosen | None) -> JsonObject:
    """Which checkpoint wrote, for a program."""
    return checkpoint.told if checkpoint else {"checkpoint": None, "passed_over": []}


def requests(
    writer: "Writer", prompt: str, sampling: Sampling, special: bool, first: int = 0, within: bool = False
) -> "list[Request]":
    """The texts that go on from a prompt, numbered from `first`; `within` the context alone where that is asked.

    Errors: `UserError` where the prompt does not fit into the context, or the new tokens do not where they must.
    """
    from inference.decode.rows import Request
    from inference.writers import encode

    found = encode(writer.tokeniser, prompt, special, writer.framed)
    tokens = tuple(found) or (writer.tokeniser.eos_token_id,)  # a prompt of nothing is the beginning of a document
    most = sampling.max_new_tokens
    if most and writer.slides and not within and sampling.beams == 1:
        room_behind(len(tokens), writer.context)
    else:
        most = new_tokens(len(tokens), writer.context, most)
    return [Request(first + number, tokens, seed, most) for number, seed in enumerate(sampling.seeds)]


def text_of(writer: "Writer", row: "Row") -> tuple[str, str]:
    """The prompt of a row, and what was written behind it."""
    from inference.writers import decode

    prompt = decode(writer.tokeniser, list(row.request.prompt))
    return prompt, decode(writer.tokeniser, row.tokens)[len(prompt) :]


def stops(writer: "Writer", sampling: Sampling, shown: "Shown | None" = None) -> "Stopped":
    """Asked after each token of a row: whether a stop string was written. What grows is `shown`."""

    def stopped(row: "Row") -> bool:
        looked_at = shown is not None and not sampling.tidy and shown.wants(row.request.number)
        if not looked_at and not sampling.stop:
            return False
        before, new = text_of(writer, row)
        cut = sampling.cut(new)
        if shown and looked_at:
            shown.grown(row.request.number, before + cut)
        return len(cut) < len(new)

    return stopped


def described(
    writer: "Writer", rows: "Sequence[Row]", sampling: Sampling, by: str | None, speaks: bool = True
) -> JsonObject:
    """The texts of a prompt, and what they were before they were tidied; ranked `by` a score, the best first, with the
    scores and how much the texts differ. `completion` is what was written of the first.

    Collective. What a rank gets that does not speak for its model is nothing to go by.
    """
    parts = [text_of(writer, row) for row in rows]
    texts = [sampling.finished(new) for _, new in parts]
    order = list(range(len(rows)))
    values: JsonObject = {}
    if by is not None:
        found = scores(writer, rows, by, [(parts[at][0], texts[at]) for at in order], speaks)
        order.sort(key=lambda at: -found[at])
        values = {"scores": [found[at] for at in order], "seeds": [rows[at].request.seed for at in order]}
        values |= diversity(texts)
    if sampling.tidy:
        values = {"raw_samples": [parts[at][0] + sampling.cut(parts[at][1]) for at in order], **values}
    return {"samples": [parts[at][0] + texts[at] for at in order], "completion": texts[order[0]], **values}


def generate(
    path: Path,
    prompt: str,
    sampling: Sampling,
    stream: bool = False,
    loading: Loading = Loading(),  # noqa: B008
    special: bool = False,
    by: str | None = None,
) -> JsonObject:
    """Texts that go on from a prompt; a `stream` prints them as they come, or, ranked `by` a score, in the end.

    `special` takes the names of special tokens in the prompt for these tokens, and not for plain text. Of several
    ranks the first one's prompt counts.
    """
    from inference.shown import Shown, show_ranked

    known(by)
    writer, checkpoint = load(path, loading)
    prompt = told_by_first(loading.ranks, lambda: prompt)
    wanted = requests(writer, prompt, sampling, special, within=by in WAYS)
    shown = Shown(sampling) if stream and by is None else None
    rows = {}
    for row in writer.write(wanted, sampling, stops(writer, sampling, shown)):
        rows[row.request.number] = row
        if shown:
            before, new = text_of(writer, row)
            shown.done(row.request.number, before + sampling.finished(new))
    values = described(writer, [rows[request.number] for request in wanted], sampling, by, leads())
    if stream and by is not None:
        show_ranked(values)
    return {"prompt": prompt, **values, **told(checkpoint)}
