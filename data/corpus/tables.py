"""Texts out of Parquet and Arrow tables, some rows at a time."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

from data.corpus.document import KIND, SKIP, SPLIT_FIELD, Document, Problems, fault, split_said
from data.corpus.examples import Form
from data.corpus.files import PACKED, kind, open_bytes
from support.files import NO_ROOM, NoRoomError

ROWS = 128  # of a table are read together


def read(path: Path, column: str, split: str, problems: Problems) -> Iterator[Document]:
    """The documents of a table. Its column "split", if it has one, says the split of each row."""
    row = 0
    with _unpacked(path) as plain, _batches(plain, kind(path)[0], column) as batches:
        if isinstance(batches, str):
            what = f'has no column "{column}" (it has {batches}); name the column as {path.name}::COLUMN'
            problems.report(KIND["field"], f"corpus file {path} {what}")
            return
        for texts, splits in batches:
            for text, said in zip(
                _values(texts), _values(splits) if splits is not None else repeat(None), strict=False
            ):
                row += 1
                wrong = _fault(text, said, column)
                if wrong:
                    problems.report(KIND[wrong[0]], f"corpus file {path} row {row} {wrong[1]}")
                elif text and not text.isspace():
                    yield Document(f"{path.name}:{row}", text, split_said(split, said))


def read_rows(path: Path, form: Form, split: str, problems: Problems) -> Iterator[Document]:
    """The examples of a table, of rows with all of its columns."""
    number = 0
    with _unpacked(path) as plain:
        for batch in _read(*_opened(plain, kind(path)[0])):
            try:
                rows = batch.to_pylist()
            except UnicodeDecodeError:
                where = f"in rows {number + 1} to {number + len(batch)}"
                raise OSError(f"it is not UTF-8 {where}") from None
            for row in rows:
                number += 1
                where = f"corpus file {path} row {number}"
                yield from form.document(f"{path.name}:{number}", row, split, problems, partial(str, where))


def _fault(text: Any, said: object, column: str) -> tuple[str, str] | None:
    if isinstance(text, UnicodeDecodeError):
        return "utf-8", f'is not UTF-8 at byte {text.start} of column "{column}"; mend the row, {SKIP}'
    return fault(text, said, column)


def _values(column: Any) -> Iterator[Any]:
    """The values of a column. Arrow does not check that texts are UTF-8: the error stands in the place of a bad one.

    A column is read row by row only where it has a bad text, because that is slower.
    """
    try:
        yield from column.to_pylist()
    except UnicodeDecodeError:
        yield from map(_value_or_error, column)


def _value_or_error(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A file that holds the table unpacked: a table cannot be read from front to back, as a stream of bytes can."""
    if path.suffix.lower() not in PACKED:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "table")
        try:
            with open_bytes(path) as stream, open(plain, "wb") as unpacked:
                shutil.copyfileobj(stream, unpacked, 1 << 20)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise NoRoomError(
                f"no room left in {tempfile.gettempdir()} to unpack corpus file {path}: {error.strerror}; free some, "
                "or name another folder in $TMPDIR, and run the same command again"
            ) from None
        yield plain


@contextmanager
def _batches(plain: Path, suffix: str, column: str) -> Iterator[Any]:
    """The columns of texts and of splits, in batches; a table without splits has None for that column.

    Where the table has no column of texts, a string: the names of the columns that it has.
    """
    table, known = _opened(plain, suffix)
    if column not in known:
        yield ", ".join(known)
        return
    names = [name for name in known if name in (column, SPLIT_FIELD)]
    split = SPLIT_FIELD if SPLIT_FIELD in names else None
    batches = _read(table, names)
    yield ((batch.column(column), batch.column(split) if split else None) for batch in batches)


def _opened(plain: Path, suffix: str) -> tuple[Any, list[str]]:
    """A table, and the names of its columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet = suffix == ".parquet"
    try:
        table = pq.ParquetFile(plain) if parquet else _open_arrow(plain)
    except pa.ArrowInvalid as error:
        name = "a Parquet" if parquet else "an Arrow"
        raise OSError(f"it is not {name} file ({str(error).splitlines()[0]})") from None
    return table, (table.schema_arrow if parquet else table.schema).names


def _read(table: Any, names: list[str]) -> Iterator[Any]:
    """These columns of a table, in batches of `ROWS`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if twice := next((name for name in names if names.count(name) > 1), None):
        raise OSError(f'it has several columns of the name "{twice}"')
    if isinstance(table, pq.ParquetFile):
        yield from table.iter_batches(ROWS, columns=names, use_threads=False)
        return
    stream = isinstance(table, pa.RecordBatchReader)
    large = table if stream else map(table.get_batch, range(table.num_record_batches))
    yield from (batch.slice(first, ROWS).select(names) for batch in large for first in range(0, len(batch), ROWS))


def _open_arrow(path: Path) -> Any:
    """Open Arrow's file format, or its streaming format, in which the datasets library keeps its cache."""
    import pyarrow as pa

    source = pa.OSFile(str(path))  # not mapped: a mapped file that shrinks kills its reader
    try:
        return pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source)
