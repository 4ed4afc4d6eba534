"""Corpora by name, by path or by hub id, all as pieces that hold documents.

`documents("shakespeare")`, `documents("my/notes.jsonl.zst")` and `documents("allenai/c4:en@main")` all yield
`Document`s: a text and, where the source says so, its split. `NAME::FIELD` names the field or column that holds the
text, where that is not "text".
"""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.corpus.document import Document, Piece, Problems, read_pieces
from data.corpus.examples import Form
from data.corpus.fetch import file_sha256
from data.corpus.files import local_files
from data.corpus.hub import Hub, HubPiece, hub_pieces
from data.corpus.named import CORPORA, JoinedPiece
from data.corpus.sources import FilePiece, file_pieces
from support.errors import UserError
from support.json_object import JsonObject


def documents(corpus: str, problems: Problems | None = None) -> Iterator[Document]:
    """Stream the documents of a corpus, as `pieces` finds it."""
    return read_pieces(pieces(corpus), problems)


def pieces(corpus: str, form: Form | None = None) -> list[Piece]:
    """The pieces of a named corpus, a local path, directory or glob, or a data set of the Hugging Face hub.

    With a `form` their rows are read as examples to tune on. Errors: `UserError` where nothing of that name exists.
    """
    if corpus in CORPORA:
        return CORPORA[corpus].pieces(form)
    name, _, text_field = corpus.partition("::")
    if form and text_field:
        raise UserError(f"corpus {corpus}: data.template names the fields of a row; leave ::{text_field} out")
    files = local_files(name)
    if files:
        return [*file_pieces(files, text_field or "text", form)]
    hub = hub_of(corpus)
    if hub:
        return [*hub_pieces(hub, form)]
    raise UserError(
        f"corpus {corpus!r} does not exist: give one of {', '.join(CORPORA)}, a path to text, JSON lines, Parquet or "
        "Arrow, or a Hugging Face data set id such as allenai/c4:en"
    )


def hub_of(corpus: str) -> Hub | None:
    """The data set of the hub that a name or an id stands for. None where it is a local path, or neither."""
    if corpus in CORPORA:
        return CORPORA[corpus].hub
    name, _, text_field = corpus.partition("::")
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::([\w.-]+))?(?:@([\w./-]+))?", name)
    if not found or Path(name.split("/")[0]).exists():
        return None
    return Hub(found[1], found[2] or "", found[3] or "main", text_field or "text")


def state(corpus: str) -> JsonObject:
    """What identifies a corpus, found without asking the hub: what fixes a named one, and the state of local files.

    The state of a file is its path, size and time of change. `hub_copy` are those of a local copy of a data set.
    """
    named, hub = corpus in CORPORA, hub_of(corpus)
    root = os.environ.get("STAGECRAFT_HUB")
    copy = [path for path in Path(root, hub.name).rglob("*") if path.is_file()] if hub and root else []
    files = {} if named else local_files(corpus.partition("::")[0])
    return {
        "fixed_by": CORPORA[corpus].fixed_by if named else "",
        "files": [[*stat, split] for stat, split in zip(_stats(files), files.values(), strict=True)],
        "hub_copy": _stats(sorted(copy)),
    }


def _stats(files: Iterable[Path]) -> list[list[Any]]:
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def versions(corpus: str, pieces: Iterable[Piece]) -> list[str]:
    """Which version of a corpus was read, where its name leaves it open: commits of the hub, hashes of files."""
    single = [one for piece in pieces for one in (piece.pieces if isinstance(piece, JoinedPiece) else (piece,))]
    fetched = {piece.path for piece in single if isinstance(piece, FilePiece) and corpus in CORPORA}
    commits = {f"{piece.hub.name}@{piece.hub.revision}" for piece in single if isinstance(piece, HubPiece)}
    return sorted(commits | {f"{path.name} sha256 {file_sha256(path)}" for path in fetched})
