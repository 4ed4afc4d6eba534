"""The texts that a loss is measured on, in tokens of the model's own tokeniser."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.corpus.sources import SPLITS
from inference.export import load_tokeniser
from run import record
from run.directory import read_data
from support.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from data.tokens.shards import Shards

DECODED_TOKENS = 16_384  # decoded at once, to measure a text
BATCH_DOCUMENTS = 64  # encoded together: text of at most 4 MiB each

Encode = Callable[[Sequence[str]], tuple[NDArray[np.integer], NDArray[np.integer]]]


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


@dataclass(frozen=True)
class Words:
    """The tokeniser of a run or a folder, `path`. `encode` gives the ids of texts, all in a row, and how many each has:
    the name of a special token is plain text."""

    path: Path
    tokeniser: "PreTrainedTokenizerFast"
    encode: Encode


def is_folder(path: Path) -> bool:
    """Whether a path is a folder of Hugging Face's form, and no run."""
    return (path / "config.json").exists()


def are_rows(data: str) -> bool:
    """Whether a run that was tuned reads examples there: not where a text is named, or a field that has texts."""
    from data.corpus.files import form

    return "::" not in data and not (Path(data).is_file() and form(Path(data)) == "text")


def words_of(path: Path) -> Words:
    """The tokeniser of a run or a folder. Errors: `UserError` where it is missing, or not the one of the training."""
    from data.tokens import tokenisers
    from data.tokens.encode import Judge

    if is_folder(path):
        from inference.foreign import refuse_other_kinds

        refuse_other_kinds(path)  # their tokenisers may lack what a causal model's has
        tokeniser = tokenisers.load(str(path))
        return Words(path, tokeniser, lambda texts: _encoded_by(tokeniser, texts))
    tokeniser = load_tokeniser(path)
    # What trained the run is written down, but for an import, which was never trained.
    parts = record.read_object(path / "data.json").get("parts") or [{}]
    found = {"vocab_size": tokenisers.entries(tokeniser), "end_of_document": tokeniser.eos_token_id}
    if any(parts[0].get(key, value) != value for key, value in found.items()):
        raise UserError(f"{path / 'tokeniser'} is not the one that the run was trained with; restore that")
    return Words(path, tokeniser, Judge(path / "tokeniser"))


def _encoded_by(
    tokeniser: "PreTrainedTokenizerFast", texts: Sequence[str]
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """What `Judge` does, by a tokeniser whose files may be of any form."""
    found = tokeniser(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    lengths = np.fromiter(map(len, found), np.int64, len(found))
    return np.fromiter(itertools.chain.from_iterable(found), np.int64, lengths.sum()), lengths


def texts_of(words: Words, data: str) -> list[Text]:
    """What to measure: each part of a run's own validation set, or one text. Errors: `UserError` for an empty one."""
    found = _validation(words) if data == "validation" else [text_of(words, data)]
    for text in found:
        if not text.size:
            raise UserError(f"{text.name} holds no text; give another")
    return found


def _validation(words: Words) -> list[Text]:
    from data.samples import mixture
    from data.tokens import prepare

    if is_folder(words.path):
        raise UserError(
            f"{words.path} is no run and has no validation data of its own; give --data a text, a corpus, or a "
            "prepared folder's FOLDER/test"
        )
    opened = mixture.reopened(read_data(words.path))
    return [
        _of_shards(part.corpus, prepare.shards(part.folder, "validation"), manifest["validation"]["bytes"], part.share)
        for part, manifest in zip(opened.parts, opened.manifests, strict=True)
    ]


def _of_shards(name: str, shards: "Shards", size: int, share: int = 1) -> Text:
    return Text(name, shards.read, shards.num_tokens, size, share)


def text_of(words: Words, data: str) -> Text:
    """A split of a prepared folder, a shard, or any corpus that can be read.

    A corpus is encoded as preparing does. Errors: `UserError` for a prepared folder without a split, and for tokens of
    a folder with another tokeniser.
    """
    from data.tokens import prepare
    from data.tokens.shards import Shards

    folder, split = Path(data).parent, Path(data).name
    if split in SPLITS and (folder / "manifest.json").exists():
        facts = prepare.check(folder)[split]
        if not facts["tokens"]:
            raise UserError(f"{folder} holds no {split} documents; give another split")
        check_tokeniser(words, folder)
        return _of_shards(data, prepare.shards(folder, split), facts["bytes"])
    if Path(data, "manifest.json").exists() and Path(data, "tokeniser").is_dir():
        raise UserError(f"{data} is a prepared folder; give one of its splits, such as {Path(data, 'test')}")
    if data and Path(data).is_dir():
        data = str(Path(data).resolve())
    prefix = Path(data).with_suffix("") if data.endswith((".bin", ".idx")) else Path(data)
    if Path(f"{prefix}.idx").exists():
        shards = Shards([prefix])
        check_tokeniser(words, folder)
        return _of_shards(data, shards, _decoded_bytes(shards, words.tokeniser))
    tokens, size = _encoded(words, data)
    return Text(data, lambda start, stop: tokens[start:stop], len(tokens), size)


def check_tokeniser(words: Words, folder: Path) -> None:
    """Check that the tokens of a prepared folder mean to a model what they mean there: ids alone do not tell."""
    from data.tokens import tokenisers

    home = folder / "tokeniser"
    if home.is_dir() and tokenisers.load(str(home)).get_vocab() != words.tokeniser.get_vocab():
        raise UserError(
            f"{folder} was made with another tokeniser than {words.path}; give the text, or prepare it again"
        )


def _decoded_bytes(shards: "Shards", tokeniser: "PreTrainedTokenizerFast") -> int:
    """Size of the text of shards in UTF-8; decoded some documents at a time."""
    ends = np.cumsum(shards.lengths, dtype=np.int64)
    reached = np.searchsorted(ends, np.arange(DECODED_TOKENS, ends[-1] + DECODED_TOKENS, DECODED_TOKENS))
    cuts = np.unique(ends[np.minimum(reached, len(ends) - 1)]).tolist()
    parts = (shards.read(start, stop).tolist() for start, stop in itertools.pairwise([0, *cuts]))
    return sum(len(tokeniser.decode(part, skip_special_tokens=True).encode()) for part in parts)


def _encoded(words: Words, data: str) -> tuple[NDArray[np.generic], int]:
    """The tokens of a corpus, every document closed by its end-of-document token, and the size of its text."""
    from data.corpus import corpora

    documents, parts, size = corpora.documents(data), [], 0
    while texts := [document.text for document in itertools.islice(documents, BATCH_DOCUMENTS)]:
        tokens, lengths = words.encode(texts)
        parts.append(np.insert(tokens, np.cumsum(lengths), words.tokeniser.eos_token_id))
        size += sum(len(text.encode()) for text in texts)
    if not parts:
        raise UserError(f"{data} holds no text; give another file")
    return np.concatenate(parts), size
