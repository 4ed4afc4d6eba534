"""Look at prepared data: `stagecraft inspect tiny`, or a run's directory, or prepared folders."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from support.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerFast

    from data.samples.mixture import Mixture
    from data.tokens.shards import Shards

COUNTED_TOKENS = 100_000_000  # of each part at most, for the most frequent ones
COUNTED_BLOCKS = 64  # spread over the part
MOST_FREQUENT = 20  # tokens shown
SHOWN_CHARACTERS = 300  # of a document
SEQ_LENGTH, SEED = 256, 1234  # of the batch, where no recipe says


class Data(NamedTuple):
    """What is looked at, and how a run reads it."""

    mixture: "Mixture"
    seq_length: int
    seed: int


def _check_same_tokeniser(folders: list[Path]) -> None:
    vocabularies = {(folder / "tokeniser" / "tokenizer.json").read_bytes() for folder in folders}
    if len(vocabularies) > 1:
        raise UserError(
            f"{', '.join(map(str, folders))} were made with different tokenisers; inspect them one at a time"
        )


def describe(data: Data, most: int) -> dict[str, Any]:
    """All that `show` shows; `most` is of documents and of samples."""
    import numpy as np

    from data.tokens import tokenisers

    mixture = data.mixture
    tokeniser = tokenisers.load(str(mixture.parts[0].folder / "tokeniser"))
    stream = mixture.training(data.seq_length, data.seed)
    read = [part.shards for part in stream.streams]
    known = sorted(tokeniser.get_vocab().values())
    counts = np.sum([_token_counts(shards, mixture.entries) for shards in read], axis=0)
    lengths = np.sum([_length_counts(shards) for shards in read], axis=0)
    frequent = np.argsort(-counts, kind="stable")[:MOST_FREQUENT]
    end = mixture.end_of_document
    return {
        "tokeniser": {"entries": len(known), "end_of_document": tokeniser.convert_ids_to_tokens(end)},
        "parts": _parts(data),
        "lengths": [{"from": 2**bin, "below": 2 ** (bin + 1), "documents": int(n)} for bin, n in enumerate(lengths)],
        "tokens_counted": int(counts.sum()),
        "entries_not_seen": int((counts[known] == 0).sum()),
        "frequent": [{"token": int(t), "text": tokeniser.decode([t]), "count": int(counts[t])} for t in frequent],
        "documents": [
            {"corpus": part.corpus, **document}
            for part, shards in zip(mixture.parts, read, strict=True)
            for document in _documents(shards, tokeniser, -(-most // len(read)))
        ],
        "batch": [_pieces(sample, end, tokeniser) for sample in stream.batch(0, most)],
    }


def _parts(data: Data) -> list[dict[str, Any]]:
    manifests, parts = data.mixture.manifests, data.mixture.parts
    tokens = sum(manifest["train"]["tokens"] for manifest in manifests)
    shares = sum(part.share for part in parts)
    return [
        {
            "corpus": part.corpus,
            "folder": str(part.folder),
            "documents": manifest["train"]["documents"],
            "tokens": manifest["train"]["tokens"],
            "bytes": manifest["train"]["bytes"],
            "bytes_per_token": manifest["train"]["bytes"] / manifest["train"]["tokens"],
            "share_of_tokens": manifest["train"]["tokens"] / tokens,
            "weight": part.share / shares,
        }
        for part, manifest in zip(parts, manifests, strict=True)
    ]


def _token_counts(shards: "Shards", entries: int) -> "NDArray[np.int64]":
    """How often each entry of the vocabulary occurs, in blocks spread over a large part."""
    import numpy as np

    blocks = 1 if shards.num_tokens <= COUNTED_TOKENS else COUNTED_BLOCKS
    size = min(shards.num_tokens, COUNTED_TOKENS) // blocks
    counts = np.zeros(entries, np.int64)
    for start in np.linspace(0, shards.num_tokens - size, blocks).astype(int):
        counts += np.bincount(shards.read(start, start + size), minlength=entries)
    return counts


def _length_counts(shards: "Shards") -> "NDArray[np.int64]":
    """How many documents have from 2^n to 2^(n+1) - 1 tokens, for n from 0 to 31."""
    import numpy as np

    return np.histogram(shards.lengths, 2 ** np.arange(33))[0]


def _documents(shards: "Shards", tokeniser: "PreTrainedTokenizerFast", most: int) -> list[dict[str, Any]]:
    """The beginnings of documents spread evenly over a part."""
    import numpy as np

    lengths = shards.lengths
    found = []
    for index in map(int, np.unique(np.linspace(0, len(lengths) - 1, most).astype(int))):
        start, length = int(lengths[:index].sum(dtype=np.int64)), int(lengths[index])
        text = tokeniser.decode(shards.read(start, start + min(length, SHOWN_CHARACTERS)))
        found.append({"index": index, "tokens": length, "text": text[:SHOWN_CHARACTERS]})
    return found


def _pieces(sample: "NDArray[np.int64]", end: int, tokeniser: "PreTrainedTokenizerFast") -> list[str]:
    """The text of a sample, cut behind every end of a document."""
    import numpy as np

    return [tokeniser.decode(piece) for piece in np.split(sample, np.flatnonzero(sample == end) + 1) if len(piece)]


def show(values: dict[str, Any]) -> None:
    """Print what `describe` found."""
    from rich.console import Console
    from rich.rule import Rule
    from rich.table import Table

    terminal = Console().is_terminal
    console = Console(width=None if terminal else 140, highlight=False)
    end = values["tokeniser"]["end_of_document"]
    parts = Table(
        "part", "documents", "tokens", "MB", "bytes a token", "of all tokens", "weight", title="What there is"
    )
    for part in values["parts"]:
        parts.add_row(
            part["corpus"],
            f"{part['documents']:,}",
            f"{part['tokens']:,}",
            f"{part['bytes'] / 1e6:,.2f}",
            f"{part['bytes_per_token']:.2f}",
            f"{part['share_of_tokens']:.2%}",
            f"{part['weight']:.2%}",
        )
    console.print(parts)
    console.print(_histogram(values["lengths"]))
    frequent = Table("frequent token", "text", f"of {values['tokens_counted']:,}")
    for token in values["frequent"]:
        share = token["count"] / values["tokens_counted"]
        frequent.add_row(str(token["token"]), repr(token["text"]), f"{share:.2%}")
    console.print(frequent)
    console.print(f"{values['entries_not_seen']:,} of {values['tokeniser']['entries']:,} entries do not occur")
    for document in values["documents"]:
        console.print(Rule(f"document {document['index']} of {document['corpus']}, {document['tokens']:,} tokens"))
        console.print(document["text"], markup=False)
    for number, sample in enumerate(values["batch"]):
        console.print(Rule(f"sample {number} of the first batch, {len(sample)} pieces"))
        for piece in sample:
            text, ended = piece.removesuffix(end), piece.endswith(end)
            console.print(text, markup=False)
            if ended:
                console.print(Rule(end, characters="·", style="bold red"))


def _histogram(lengths: list[dict[str, int]]) -> Any:
    from rich.bar import Bar
    from rich.table import Table

    used = [place for place, bin in enumerate(lengths) if bin["documents"]]
    most = max(bin["documents"] for bin in lengths)
    table = Table("tokens in a document", "documents", "")
    for bin in lengths[used[0] : used[-1] + 1]:
        bar = Bar(most, 0, bin["documents"], width=40)
        table.add_row(f"{bin['from']:,} to {bin['below'] - 1:,}", f"{bin['documents']:,}", bar)
    return table
