"""Data sets of the Hugging Face hub, streamed by split and revision; each of their files is a piece.

Where `$STAGECRAFT_HUB/<owner>/<name>` is a folder, it is read instead of the hub: a copy for machines without a
network.
"""

import gzip
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from data.corpus.document import (
    KIND,
    MISSING,
    SPLIT_FIELD,
    SPLITS,
    Document,
    Problems,
    fault,
    of_the_machine,
    split_named,
    split_said,
    value,
)
from data.corpus.examples import Form
from support.errors import UserError
from support.json_object import JsonObject

if TYPE_CHECKING:
    from datasets import IterableDataset

FILE_BYTES = 1 << 28  # of a file, as a guess, where a data set does not say how much it holds


@dataclass(frozen=True)
class Hub:
    """A data set of the hub. `where` is a field and a value, if only the rows that have that value are meant."""

    name: str
    subset: str = ""
    revision: str = "main"
    field: str = "text"
    where: tuple[str, str] | None = None

    def __str__(self) -> str:
        subset = f":{self.subset}" if self.subset else ""
        return self.name + subset + (f"@{self.revision}" if self.revision != "main" else "")


@dataclass(frozen=True)
class HubPiece:
    """File `index` of `count` of one split, by the name that the data set gives it.

    `own` is whether the data set has splits of its own.
    """

    hub: Hub
    split: str
    index: int
    count: int
    num_bytes: int
    own: bool
    form: Form | None = None

    def identity(self) -> list[object]:
        hub = self.hub
        read: list[object] = [
            hub.name,
            hub.subset,
            hub.revision,
            hub.field,
            hub.where,
            self.split,
            self.index,
            self.count,
            self.own,
        ]
        return [*read, self.form.identity()] if self.form else read

    def documents(self, problems: Problems) -> Iterator[Document]:
        hub = self.hub
        own = split_named(self.split) if self.own else ""
        for number, row in enumerate(self._rows(problems)):
            if hub.where and value(row, hub.where[0]) != hub.where[1]:
                continue
            place = f"data set {hub} {self.split} file {self.index} row {number}"
            if self.form:
                yield from self.form.document(
                    f"{self.split}/{self.index}:{number}", row, own, problems, partial(str, place)
                )
                continue
            text, said = value(row, hub.field, MISSING), row.get(SPLIT_FIELD)
            wrong = fault(text, said, hub.field)
            if text is MISSING:
                wrong = "field", f'has no field "{hub.field}" (it has {", ".join(row)})'
            if wrong:
                problems.report(KIND[wrong[0]], f"{place} {wrong[1]}")
            elif text and not text.isspace():
                yield Document(f"{self.split}/{self.index}:{number}", text, split_said(own, said))

    def _rows(self, problems: Problems) -> Iterator[JsonObject]:
        """The rows of the file. A place that cannot be read ends them, because the libraries do not go on after it."""
        rows = _load(self.hub, self.split)
        if self.count > 1:
            rows = rows.shard(num_shards=self.count, index=self.index)
        number = 0
        try:
            for row in rows:
                yield row
                number += 1
        except _failures() as error:
            if not _of_content(error):
                raise _no_data(self.hub, error) from None
            problems.report(
                KIND["file"],
                f"data set {self.hub} {self.split} file {self.index} cannot be read from row {number} on: "
                f"{_reason(error)}; take another revision, or leave out the rest of the file with --on-error skip",
            )


def hub_pieces(hub: Hub, form: Form | None = None) -> list[HubPiece]:
    """The files of a data set, one split after the other, at the commit that its revision means now.

    Errors: `UserError` where the hub is out of reach, or the data set has no train split.
    """
    hub = _pinned(hub)
    splits = _splits(hub)
    own = len(set(map(split_named, splits))) > 1
    pieces = []
    for split in splits:
        rows = _load(hub, split)
        count = int(rows.num_shards)
        told = (rows.info.splits or {}).get(split)
        size = told.num_bytes // count if told and told.num_bytes else FILE_BYTES
        pieces += [HubPiece(hub, split, index, count, size, own, form) for index in range(count)]
    return pieces


def _pinned(hub: Hub) -> Hub:
    """The data set at a commit instead of a branch or tag, which may move on: all processes read the same."""
    if Path(_source(hub)).is_dir():
        return hub
    from huggingface_hub import HfApi

    try:
        commit = HfApi().dataset_info(hub.name, revision=hub.revision).sha
    except _failures() as error:
        raise _no_data(hub, error) from None
    return replace(hub, revision=commit or hub.revision)


def _source(hub: Hub) -> str:
    root = os.environ.get("STAGECRAFT_HUB")
    local = Path(root, hub.name) if root else None
    return str(local) if local and local.is_dir() else hub.name


def _splits(hub: Hub) -> list[str]:
    """The names that the data set has for train, validation and test, in this order. Other splits are left out."""
    from datasets import get_dataset_split_names

    try:
        found = get_dataset_split_names(_source(hub), hub.subset or None, revision=hub.revision)
    except _failures() as error:
        raise _no_data(hub, error) from None
    known = sorted(filter(split_named, found), key=lambda split: SPLITS.index(split_named(split)))
    if not known or split_named(known[0]) != "train":
        raise UserError(
            f"data set {hub} has no train split (it has {', '.join(found)}); give another subset as name:subset"
        )
    return known


def _load(hub: Hub, split: str) -> "IterableDataset":
    from datasets import load_dataset

    try:
        return load_dataset(_source(hub), hub.subset or None, split=split, revision=hub.revision, streaming=True)
    except _failures() as error:
        raise _no_data(hub, error) from None


def _failures() -> tuple[type[Exception], ...]:
    """What the hub's libraries raise where a name, the network or a file is wrong. The card of a data set is YAML."""
    import yaml
    from datasets.exceptions import DatasetsError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the very module that huggingface_hub uses

    return (DatasetsError, httpx.HTTPError, yaml.YAMLError, OSError, ValueError, RuntimeError, EOFError, zlib.error)


def _of_content(error: Exception) -> bool:
    """Whether a file holds what is wrong. Else it is the network or the machine, and another try may do."""
    from datasets.exceptions import DatasetsError

    # Arrow raises plain OSErrors for bad content; errors of the network are classes of their own.
    if isinstance(error, OSError):
        return type(error) in (OSError, gzip.BadGzipFile) and not of_the_machine(error)
    return isinstance(error, (DatasetsError, ValueError, EOFError, zlib.error))


def _no_data(hub: Hub, error: Exception) -> UserError:
    source = _source(hub)
    if source != hub.name:
        return UserError(
            f"data set {hub} cannot be read from {source}: {_reason(error)}; check the files there, and the subset"
        )
    return UserError(
        f"data set {hub} cannot be read from the hub: {_reason(error)}; check the name and the network, or give a "
        "local path"
    )


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
