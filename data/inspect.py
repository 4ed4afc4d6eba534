"""What can be seen of prepared data: its size, its most frequent tokens, some documents, the first batch of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from support.errors import UserError
from support.json_object import JsonObject
from support.terminal import console

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


class Inspected(NamedTuple):
    """The data that is looked at, and what a run reads it with."""

    mixture: "Mixture"
    seq_length: int
    seed: int


def check_same_tokeniser(folders: list[Path]) -> None:
    """Errors: `UserError` where prepared folders have different tokenisers: one table cannot count both."""
    vocabularies = {(folder / "tokeniser" / "tokenizer.json").read_bytes() for folder in folders}
    if len(vocabularies) > 1:
        raise UserError(
            f"{', '.join(map(str, folders))} were made with different tokenisers; inspect them one at a time"
        )


def describe(data: Inspected, most: int) -> JsonObject:
    """All that `print_description` prints, as JSON. It holds about `most` documents, and `most` samples."""
    import numpy as np

    from data.tokens import tokenisers

    mixture = data.mixture
    tokeniser = tokenisers.load(str(mixture.parts[0].folder / "tokeniser"))
    stream = (mixture.tuning if mixture.tunes else mixture.training)(data.seq_length, data.seed)
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
        "batch": [
            _pieces(sample[:filled], end, tokeniser)
            for sample, filled in zip(stream.batch(0, most), stream.filled(0, most), strict=True)
        ],
    }


def _parts(data: Inspected) -> list[JsonObject]:
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


def _documents(shards: "Shards", tokeniser: "PreTrainedTokenizerFast", most: int) -> list[JsonObject]:
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


def print_description(values: JsonObject) -> None:
    """Print what `describe` found."""
    from rich.rule import Rule

    out, end = console(), values["tokeniser"]["end_of_document"]
    out.print(_parts_table(values["parts"]))
    out.print(_histogram(values["lengths"]))
    out.print(_frequent_table(values["frequent"], values["tokens_counted"]))
    out.print(f"{values['entries_not_seen']:,} of {values['tokeniser']['entries']:,} entries do not occur")
    for document in values["documents"]:
        out.print(Rule(f"document {document['index']} of {document['corpus']}, {document['tokens']:,} tokens"))
        out.print(document["text"], markup=False)  # a text may hold what rich takes for markup, such as [red]
    for number, sample in enumerate(values["batch"]):
        out.print(Rule(f"sample {number} of the first batch, {len(sample)} pieces"))
        for piece in sample:
            out.print(piece.removesuffix(end), markup=False)
            if piece.endswith(end):
                out.print(Rule(end, characters="·", style="bold red"))


def _parts_table(parts: list[JsonObject]) -> Any:
    from rich.table import Table

    table = Table(
        "part", "documents", "tokens", "MB", "bytes a token", "of all tokens", "weight", title="What there is"
    )
    for part in parts:
        table.add_row(
            part["corpus"],
            f"{part['documents']:,}",
            f"{part['tokens']:,}",
            f"{part['bytes'] / 1e6:,.2f}",
            f"{part['bytes_per_token']:.2f}",
            f"{part['share_of_tokens']:.2%}",
            f"{part['weight']:.2%}",
        )
    return table


def _frequent_table(frequent: list[JsonObject], counted: int) -> Any:
    from rich.table import Table

    table = Table("frequent token", "text", f"of {counted:,}")
    for token in frequent:
        table.add_row(str(token["token"]), repr(token["text"]), f"{token['count'] / counted:.2%}")
    return table


def _histogram(lengths: list[dict[str, int]]) -> Any:
    """A table with a bar for each length that occurs, and for those between."""
    from rich.bar import Bar
    from rich.table import Table

    used = [place for place, bin in enumerate(lengths) if bin["documents"]]
    most = max(bin["documents"] for bin in lengths)
    table = Table("tokens in a document", "documents", "")
    for bin in lengths[used[0] : used[-1] + 1]:
        bar = Bar(most, 0, bin["documents"], width=40)
        table.add_row(f"{bin['from']:,} to {bin['below'] - 1:,}", f"{bin['documents']:,}", bar)
    return table
