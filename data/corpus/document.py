"""What every source yields, documents, and what it says where it cannot: the words and checks that readers share."""

import errno
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

from support.errors import UserError

SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {  # as the datasets library has them
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
NAMED = {word: split for split, words in SPLIT_WORDS.items() for word in words}
SPLIT_FIELD = "split"  # in which a record may name its split
KIND = {
    "json": "not JSON",
    "field": "no text",
    "split": "unknown split",
    "utf-8": "not UTF-8",
    "nul": "NUL character",
    "empty": "empty file",
    "form": "unknown form",
    "file": "unreadable file",
}
MISSING = object()  # in the place of a field that a record lacks; null is a value
JSON_TYPES = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
SKIP = "or go on with --on-error skip"


@dataclass(frozen=True)
class Document:
    """One text. `split` is "train", "validation", "test" or "" where the source does not say."""

    name: str
    text: str
    split: str = ""


@dataclass
class Problems:
    """What becomes of input that cannot be read: an error at the first, or skipped and counted by kind."""

    skip: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def report(self, kind: str, message: str) -> None:
        """Skip what the message is about. Errors: `UserError` with the message where nothing is to be skipped."""
        if not self.skip:
            raise UserError(message)
        self.counts[kind] += 1
        self.first.setdefault(kind, message)


class Piece(Protocol):
    """A part of a corpus that one process reads in one go; pickled, it goes to that process."""

    @property
    def num_bytes(self) -> int:
        """About how much text it holds."""

    def identity(self) -> list[object]:
        """What its documents depend on, as JSON."""

    def documents(self, problems: Problems) -> Iterator[Document]:
        """Its documents, in order. Errors: `UserError` that names the file, the place and the field."""


def read_pieces(pieces: Sequence[Piece], problems: Problems | None = None) -> Iterator[Document]:
    """All documents of the pieces, in order."""
    for piece in pieces:
        yield from piece.documents(problems or Problems())


def split_named(word: object) -> str:
    """The split that a word means, in capitals or not: "val" means "validation"; "" where it means none."""
    return NAMED.get(word.lower(), "") if isinstance(word, str) else ""


def farthest(*splits: str) -> str:
    """Of splits that are said of one text, the one that is farthest from training; "" says nothing."""
    return max(splits, key=("", *SPLITS).index, default="")


def split_said(own: str, said: object) -> str:
    """The split of a text whose file belongs to `own` and whose record says another or, as most do, none."""
    return farthest(own, split_named(said)) if said else own


def value(record: object, path: str, missing: object = None) -> Any:
    """The field of a record at a dotted path; `missing` where there is none."""
    for key in path.split("."):
        if not isinstance(record, dict) or key not in record:
            return missing
        record = record[key]
    return record


def fault(text: object, said: object, name: str) -> tuple[str, str] | None:
    """What is wrong with the text of a record, or with the split that is `said` of it; None where all is well.

    A key of `KIND`, and words that go on after "line 3 ". `name` is the field of the text.
    """
    if not isinstance(text, str):
        what = JSON_TYPES.get(type(text), "an object" if isinstance(text, dict) else type(text).__name__)
        return "field", f'has {what} in "{name}", not a text; mend it, {SKIP}'
    if "\0" in text:
        return "nul", f'has a NUL character in "{name}", so it is no text; mend it, {SKIP}'
    if not text.isascii() and not _is_unicode(text):
        return "utf-8", f'has half a surrogate pair in "{name}"; mend it, {SKIP}'
    if said not in (None, "") and not split_named(said):
        words = json.dumps(said, ensure_ascii=False, default=str)
        return "split", f'has {words} in "{SPLIT_FIELD}", none of {", ".join(NAMED)}; mend or rename that, {SKIP}'
    return None


def _is_unicode(text: str) -> bool:
    """JSON can say half a surrogate pair, which no encoding of Unicode can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def of_the_machine(error: BaseException) -> TypeGuard[OSError]:
    """Whether the system refused (a full disk, a lost mount, too many open files), and not the content of a file.

    Libraries give no number to what is wrong in a file; a place that a broken table names outside of it is `EINVAL`.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
