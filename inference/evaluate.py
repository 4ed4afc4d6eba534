"""Loss, perplexity and bits per byte of a run on any text."""

import itertools
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data.corpus.sources import SPLITS
from inference.export import load_model, load_tokeniser
from run.checkpoints import choose
from run.directory import read_data, read_recipe
from run.report import bits_per_byte, perplexity
from support.errors import UserError
from support.json_object import JsonObject

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

    from data.tokens.shards import Shards
    from model.gpt import GPT

BATCH_TOKENS = 16_384  # tokens evaluated at once: large enough to keep a GPU busy, small enough for a laptop
BATCH_DOCUMENTS = 64  # encoded together: text of at most 4 MiB each


def evaluate(run: Path, data: str, which: str | None = None) -> JsonObject:
    """Loss of a run on `data`: "validation" (the run's own), a prepared split or shard by its path, or any corpus.

    An end-of-document token stands in front, as in training, and long texts are cut into consecutive windows of the
    model's length, so that every token is predicted once. The tokens that close the documents are predicted like all
    others: their loss counts, and they have no bytes. `which` is a checkpoint, see `run/checkpoints.py`. Errors:
    `UserError` where the data cannot be read or is empty, or there is no such checkpoint.
    """
    import torch

    from data.tokens import tokenisers

    recipe = read_recipe(run)
    config = recipe.model
    if config.objective != "causal":
        raise UserError(
            f"{run} was trained with the {config.objective} objective: it has no loss on plain text; its "
            "validation loss stands in report.json"
        )
    texts = _texts(run, data)
    for text in texts:
        if not text.size:
            raise UserError(f"{text.name} holds no text; give another")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    checkpoint = choose(run, which)
    checkpoint.tell()
    model = load_model(run, checkpoint).to(device, _dtype(run))
    tokeniser = load_tokeniser(run)
    vocabulary = Vocabulary(tokenisers.entries(tokeniser), tokeniser.eos_token_id)
    losses = [mean_loss(model, text, vocabulary, recipe.data.separate_documents) for text in texts]
    total = sum(text.share for text in texts)
    loss = sum(text.share * each for text, each in zip(texts, losses, strict=True)) / total
    bytes_per_token = sum(text.share * text.size / text.num_tokens for text in texts) / total
    return {
        "run": str(run),
        **checkpoint.told,
        "data": data,
        "tokens": sum(text.num_tokens for text in texts),
        "bytes": sum(text.size for text in texts),
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": bits_per_byte(loss, bytes_per_token),
        "parts": [
            {"name": text.name, "share": text.share / total, "loss": each, "tokens": text.num_tokens}
            for text, each in zip(texts, losses, strict=True)
        ],
    }


def _dtype(run: Path) -> "torch.dtype":
    """The precision that a run was trained in; fp32 where this machine computes that one in software."""
    import torch

    from model.engine.config import parse, precision
    from model.engine.precision import DTYPES, software

    resolved = run / "ds_config.resolved.json"  # an import was never started and has none
    config = parse(resolved if resolved.exists() else run / "ds_config.json")
    if slow := software(config):
        print(f"evaluating in fp32: {slow}", file=sys.stderr)
        return torch.float32
    return DTYPES[precision(config)]


@dataclass(frozen=True)
class Text:
    """What a loss is measured on: tokens, size in bytes, share of the whole beside other texts.

    `read(start, stop)` gives the tokens from `start` to `stop`, at most to the end: they need not fit into memory.
    """

    name: str
    read: "Callable[[int, int], NDArray[np.generic]]"
    num_tokens: int
    size: int
    share: int = 1


class Vocabulary(NamedTuple):
    """What a loss needs to know of a tokeniser: ids are below `entries`; `end` closes each document."""

    entries: int
    end: int


def mean_loss(model: "GPT", text: Text, vocabulary: Vocabulary, separate: bool) -> float:
    """Mean loss in nats over every token of a text. An end-of-document token stands in front of the first.

    With `separate` the documents of the text do not see each other. Reads about `BATCH_TOKENS` at a time. Errors:
    `UserError` for a token that the tokeniser does not have.
    """
    import numpy as np
    import torch

    from data.samples.objectives import documents
    from data.samples.sampling import windows
    from model.loss import token_losses

    length, device = model.config.seq_length, next(model.parameters()).device
    total = torch.zeros(2, dtype=torch.float64, device=device)
    step = max(1, BATCH_TOKENS // length) * length
    last = vocabulary.end
    for first in range(0, text.num_tokens, step):
        tokens = np.insert(text.read(first, first + step), 0, last)
        last = int(tokens[-1])
        if int(tokens.max()) >= vocabulary.entries:
            raise UserError(
                f"{text.name} holds token {tokens.max()} but the run's tokeniser has {vocabulary.entries}: another "
                "tokeniser made it"
            )
        samples, mask = (torch.from_numpy(array) for array in windows(tokens, length))
        shown = samples[:, :-1]
        apart = torch.from_numpy(documents(shown.numpy(), vocabulary.end)).to(device) if separate else None
        with torch.no_grad():
            logits = model(shown.to(device), None, apart)
            losses = token_losses(logits, samples[:, 1:].to(device), vocabulary.entries)
        counted = mask.to(device)
        total += torch.stack(((losses.double() * counted).sum(), counted.sum()))
    return float(total[0] / total[1])


def _texts(run: Path, data: str) -> list[Text]:
    """What to evaluate: each part of the run's own validation set, or one text."""
    from data.samples import mixture
    from data.tokens import prepare

    if data != "validation":
        return [text_of(run, data)]
    opened = mixture.reopened(read_data(run))
    return [
        _of_shards(part.corpus, prepare.shards(part.folder, "validation"), manifest["validation"]["bytes"], part.share)
        for part, manifest in zip(opened.parts, opened.manifests, strict=True)
    ]


def _of_shards(name: str, shards: "Shards", size: int, share: int = 1) -> Text:
    return Text(name, shards.read, shards.num_tokens, size, share)


def text_of(run: Path, data: str) -> Text:
    """A split of a prepared folder, a shard, or any corpus that can be read.

    A corpus is encoded with the run's tokeniser as preparing does: the name of a special token is plain text.
    Errors: `UserError` for a prepared folder without a split, and for tokens of a folder with another tokeniser.
    """
    from data.tokens import prepare
    from data.tokens.shards import Shards

    folder, split = Path(data).parent, Path(data).name
    if split in SPLITS and (folder / "manifest.json").exists():
        facts = prepare.check(folder)[split]
        if not facts["tokens"]:
            raise UserError(f"{folder} holds no {split} documents; give another split")
        _check_tokeniser(run, folder)
        return _of_shards(data, prepare.shards(folder, split), facts["bytes"])
    if Path(data, "manifest.json").exists() and Path(data, "tokeniser").is_dir():
        raise UserError(f"{data} is a prepared folder; give one of its splits, such as {Path(data, 'test')}")
    if data and Path(data).is_dir():
        data = str(Path(data).resolve())
    prefix = Path(data).with_suffix("") if data.endswith((".bin", ".idx")) else Path(data)
    if Path(f"{prefix}.idx").exists():
        shards = Shards([prefix])
        _check_tokeniser(run, folder)
        return _of_shards(data, shards, _decoded_bytes(shards, load_tokeniser(run)))
    tokens, size = _encoded(run, data)
    return Text(data, lambda start, stop: tokens[start:stop], len(tokens), size)


def _check_tokeniser(run: Path, folder: Path) -> None:
    """Check that the tokens of a prepared folder mean to a run what they mean there: ids alone do not tell."""
    from data.tokens import tokenisers

    home = folder / "tokeniser"
    if home.is_dir() and tokenisers.load(str(home)).get_vocab() != load_tokeniser(run).get_vocab():
        raise UserError(f"{folder} was made with another tokeniser than {run}; give the text, or prepare it again")


def _decoded_bytes(shards: "Shards", tokeniser: "PreTrainedTokenizerFast") -> int:
    """Size of the text of shards in UTF-8; decoded some documents at a time."""
    import numpy as np

    ends = np.cumsum(shards.lengths, dtype=np.int64)
    reached = np.searchsorted(ends, np.arange(BATCH_TOKENS, ends[-1] + BATCH_TOKENS, BATCH_TOKENS))
    cuts = np.unique(ends[np.minimum(reached, len(ends) - 1)]).tolist()
    parts = (shards.read(start, stop).tolist() for start, stop in itertools.pairwise([0, *cuts]))
    return sum(len(tokeniser.decode(part, skip_special_tokens=True).encode()) for part in parts)


def _encoded(run: Path, data: str) -> "tuple[NDArray[np.generic], int]":
    """The tokens of a corpus, every document closed by its end-of-document token, and the size of its text."""
    import numpy as np

    from data.corpus import corpora
    from data.tokens.encode import Judge

    end, judge = load_tokeniser(run).eos_token_id, Judge(run / "tokeniser")  # in this order: only the first says why
    documents, parts, size = corpora.documents(data), [], 0
    while texts := [document.text for document in itertools.islice(documents, BATCH_DOCUMENTS)]:
        tokens, lengths = judge(texts)
        parts.append(np.insert(tokens, np.cumsum(lengths), end))
        size += sum(len(text.encode()) for text in texts)
    if not parts:
        raise UserError(f"{data} holds no text; give another file")
    return np.concatenate(parts), size


def show(values: JsonObject) -> None:
    """Print what `evaluate` found."""
    print(
        f"{values['data']}: loss {values['loss']:.4f}, perplexity {values['perplexity']:.2f}, "
        f"{values['bits_per_byte']:.4f} bits a byte over {values['tokens']:,} tokens"
    )
    for part in values["parts"] if len(values["parts"]) > 1 else ():
        print(f"  {part['share']:7.3%} {part['name']}: loss {part['loss']:.4f} over {part['tokens']:,} tokens")
