"""Documents, which every source yields, and the checks and words that all readers share for input that is bad."""

import errno
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

from support.errors import UserError

SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {  # those of the datasets library
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
NAMED = {word: split for split, words in SPLIT_WORDS.items() for word in words}
SPLIT_FIELD = "split"  # the field in which a record may name its split
KIND = {  # of problems, as manifests and reports count them
    "json": "not JSON",
    "field": "no text",
    "split": "unknown split",
    "utf-8": "not UTF-8",
    "nul": "NUL character",
    "empty": "empty file",
    "form": "unknown form",
    "file": "unreadable file",
    "answer": "no answer",
    "pair": "no pair",
    "messages": "no conversation",
    "long": "longer than the context",
}
MISSING = object()  # stands for a field that a record lacks; None would not do, since null is a value
JSON_TYPES = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
SKIP = "or go on with --on-error skip"


@dataclass(frozen=True)
class Document:
    """One text. `split` is "train", "validation" or "test", or "" where the source does not say.

    An example to tune on has `parts`: its text in pieces, each with whether it is learned. With `special` the names of
    special tokens in it are these tokens, as a chat template writes them. Of a pair `parts` are the chosen side, and
    `against` the rejected one. `where` says where it was read.
    """

    name: str
    text: str
    split: str = ""
    parts: tuple[tuple[str, bool], ...] = ()
    special: bool = False
    against: tuple[tuple[str, bool], ...] = ()
    where: Callable[[], str] | None = field(default=None, compare=False, repr=False)

    @property
    def answer_bytes(self) -> int:
        """Bytes of UTF-8 that are learned of an example."""
        return sum(utf8_bytes(text) for text, learned in (*self.parts, *self.against) if learned)


@dataclass
class Problems:
    """What happens to input that cannot be read: the first is an error, or with `skip` all is counted by kind.

    `left_out` counts what can be read and is longer than a model can.
    """

    skip: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)
    left_out: int = 0

    def report(self, kind: str, message: str) -> None:
        """Count what the message is about. Errors: `UserError` with the message, unless `skip` is set."""
        if not self.skip:
            raise UserError(message)
        self.counts[kind] += 1
        self.first.setdefault(kind, message)


class Piece(Protocol):
    """A range of a corpus that one process reads from beginning to end. It is pickled to get there."""

    @property
    def num_bytes(self) -> int:
        """About how much text it holds."""

    def identity(self) -> list[object]:
        """All that its documents depend on, as JSON."""

    def documents(self, problems: Problems) -> Iterator[Document]:
        """Its documents, in order. Errors: `UserError` that names the file, the place and the field."""


def utf8_bytes(text: str) -> int:
    """How many bytes a text has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def read_pieces(pieces: Sequence[Piece], problems: Problems | None = None) -> Iterator[Document]:
    """All documents of the pieces, in order."""
    for piece in pieces:
        yield from piece.documents(problems or Problems())


def split_named(word: object) -> str:
    """The split that a word means, whatever its case: "val" means "validation". "" where it means none."""
    return NAMED.get(word.lower(), "") if isinstance(word, str) else ""


def farthest(*splits: str) -> str:
    """The split of a text of which several are said: the one farthest from training. "" says nothing.

    A text that is held out by mistake costs little; one that is trained on by mistake spoils an evaluation.
    """
    return max(splits, key=("", *SPLITS).index, default="")


def split_said(own: str, said: object) -> str:
    """The split of a text whose file belongs to the split `own`, and whose record says `said`: mostly nothing."""
    return farthest(own, split_named(said)) if said else own


def value(record: object, path: str, missing: object = None) -> Any:
    """The field of a record at a dotted path, or of a name with dots; `missing` where there is none."""
    if isinstance(record, dict) and path in record:
        return record[path]
    for key in path.split("."):
        if not isinstance(record, dict) or key not in record:
            return missing
        record = record[key]
    return record


def fault(text: object, said: object, name: str) -> tuple[str, str] | None:
    """What is wrong with the text of a record, or with the split that is `said` of it. None where all is well.

    Returns a key of `KIND`, and words that continue "line 3 …". `name` is the field of the text.
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
    """Whether UTF-8 can hold a text: JSON can write half a surrogate pair, and no encoding of Unicode can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def of_the_machine(error: BaseException) -> TypeGuard[OSError]:
    """Whether the system refused (a full disk, a lost mount, too many open files), or else a file holds what is wrong.

    Libraries give no error number where the content of a file is wrong. One exception is `EINVAL`: a broken table
    names a place outside of its file, and the system refuses to go there.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
