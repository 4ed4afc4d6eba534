"""Local files as pieces, each read in one go by one process, and the documents of a piece.

A piece is a file, or a range of bytes of a large plain one: JSON lines and plain text are cut where a line ends. What
the pieces are depends on the files alone, so that any number of processes reads the same documents in the same order.
"""

import errno
import glob
import io
import json
import os
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, TypeGuard

SPLITS = ("train", "validation", "test")
PACKED = (".gz", ".zst")
UNPACKED_RATIO = 4  # text expands about so much; it only serves to guess how much there is to do
JSON_LINES = (".jsonl", ".json", ".ndjson")
TABLES = (".parquet", ".arrow")
ABOUT_ARROW = ("dataset_info.json", "dataset_dict.json", "state.json")
TEXT_BYTES = 1 << 22  # a plain text file is cut into documents of about this (up to twice), so that memory stays flat
ROWS = 128  # of a table read together
PIECES, LEAST_BYTES, MOST_BYTES = 64, 1 << 21, 1 << 32  # of a corpus, and of a piece

KIND = {"json": "not JSON", "field": "no text", "utf-8": "not UTF-8", "empty": "empty file", "file": "unreadable file"}


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
        """Skip what the message is about. Errors: `ValueError` with the message where nothing is to be skipped."""
        if not self.skip:
            raise ValueError(message)
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
        """Its documents, in order. Errors: `ValueError` that names the file, the place and the field."""


@dataclass(frozen=True)
class FilePiece:
    """The bytes from `start` to `stop` of a file of `size` bytes, last changed at `mtime_ns`."""

    path: Path
    field: str
    start: int
    stop: int
    size: int
    mtime_ns: int

    @property
    def num_bytes(self) -> int:
        return (self.stop - self.start) * (UNPACKED_RATIO if _kind(self.path)[1] else 1)

    def identity(self) -> list[object]:
        return [str(self.path.resolve()), self.field, self.start, self.stop, self.size, self.mtime_ns]

    def documents(self, problems: Problems) -> Iterator[Document]:
        self._check_unchanged("since it was listed")
        if not self.size:
            problems.report(KIND["empty"], f"corpus file {self.path} is empty; remove it or give another path")
            return
        kind = _kind(self.path)[0]
        read = {".parquet": _read_table, ".arrow": _read_table}.get(kind, _read_text)
        read = _read_json_lines if kind in JSON_LINES else read
        try:
            yield from read(self, problems)
        except (OSError, EOFError, zlib.error) as error:
            self._check_unchanged("while it was read")
            if of_the_machine(error):
                raise ValueError(
                    f"corpus file {self.path} cannot be read: {error.strerror}; its content may be good, so it is not "
                    "skipped: mend that and run the same command again"
                ) from None
            reason = f"corpus file {self.path} cannot be read: {error}; check that it is whole"
            problems.report(KIND["file"], reason)
        except ValueError as error:
            self._check_unchanged("while it was read")  # the likelier cause of a line that ends too soon
            if not type(error).__module__.startswith("pyarrow"):
                raise
            reason = str(error).splitlines()[0]
            problems.report(KIND["file"], f"corpus file {self.path} cannot be read: {reason}; check that it is whole")
        self._check_unchanged("while it was read")

    def _check_unchanged(self, when: str) -> None:
        now = self.path.stat()
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            raise ValueError(
                f"corpus file {self.path} changed {when}: it had {self.size:,} bytes and has {now.st_size:,}; wait "
                "until it is written, then run the same command again"
            )


def of_the_machine(error: BaseException) -> TypeGuard[OSError]:
    """Whether the system refused (a full disk, a lost mount, too many open files), and not the content of a file.

    Libraries give no number to what is wrong in a file; a place that a broken table names outside of it is `EINVAL`.
    """
    return isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)


def local_files(corpus: str) -> list[Path]:
    """The files behind a path, a directory or a glob, sorted; empty where it names none.

    Names that begin with a dot or an underscore are left out where a directory or a wildcard stands for them. Links to
    directories are followed. Errors: `ValueError` where nothing is left, and for a link to nowhere.
    """
    path = Path(corpus).expanduser()
    if path.is_dir():
        files = sorted(_files_below(path))
        if not files:
            raise ValueError(f"corpus {corpus} is a directory without files; put text, JSON lines or Parquet into it")
        return files
    if path.is_file():
        return [path]
    files = sorted(file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file())
    named = next((i for i, part in enumerate(path.parts) if glob.has_magic(part)), 0)
    fixed, pattern = Path(*path.parts[:named]), Path(*path.parts[named:])
    kept = [file for file in files if _hidden(pattern) or not _hidden(file.relative_to(fixed))]
    if files and not kept:
        raise ValueError(f"corpus {corpus} matches only {files[0]} and the like, which are hidden; rename them")
    return kept


def _files_below(root: Path) -> Iterator[Path]:
    """Each directory once, by whichever name of it is first, so that links which lead back do no harm."""

    def refuse(error: OSError) -> None:
        raise error

    seen = set()
    for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
        stat = Path(folder).stat()
        if (stat.st_dev, stat.st_ino) in seen:
            below.clear()
            continue
        seen.add((stat.st_dev, stat.st_ino))
        below[:] = sorted(name for name in below if not _hidden(Path(name)))
        for file in (Path(folder, name) for name in names if not _hidden(Path(name))):
            if file.is_file():
                yield file
            elif file.is_symlink() and not file.exists():
                raise ValueError(f"corpus {root} holds a link to nowhere, {file}; mend it or remove it")


def _hidden(path: Path) -> bool:
    """Names that begin with a dot or an underscore are not data, as Hadoop, Spark and Arrow have it.

    Neither is what the datasets library writes beside its Arrow files.
    """
    return path.name in ABOUT_ARROW or any(part.startswith((".", "_")) for part in path.parts)


def piece_bytes(total: int) -> int:
    """How much of a corpus of `total` bytes makes a piece: enough pieces for many processes, few enough files.

    A power of two, so that a corpus that grows a little is cut as before.
    """
    return max(LEAST_BYTES, min(MOST_BYTES, 1 << max(total // PIECES, 1).bit_length()))


def file_pieces(files: list[Path], text_field: str) -> list[FilePiece]:
    """The files as pieces, those that can be cut in several. Files that cannot be cut are one each."""
    stats = [path.stat() for path in files]
    most = piece_bytes(sum(stat.st_size for stat in stats))
    pieces = []
    for path, stat in zip(files, stats, strict=True):
        kind, packed = _kind(path)
        whole = packed or kind in TABLES
        step = max(stat.st_size, 1) if whole else most if kind in JSON_LINES else TEXT_BYTES
        for start in range(0, max(stat.st_size, 1), step):
            stop = min(start + step, stat.st_size)
            pieces.append(FilePiece(path, text_field, start, stop, stat.st_size, stat.st_mtime_ns))
    return pieces


def _kind(path: Path) -> tuple[str, bool]:
    """The suffix that says what a file holds, and whether it is packed."""
    packed = path.suffix.lower() in PACKED
    return Path(path.stem if packed else path.name).suffix.lower(), packed


@contextmanager
def open_bytes(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes, unpacking `.gz` and `.zst`."""
    if path.suffix.lower() in PACKED:
        import pyarrow as pa

        kind = {".gz": "gzip", ".zst": "zstd"}[path.suffix.lower()]
        with pa.input_stream(str(path), compression=kind) as stream:
            yield io.BufferedReader(stream, 1 << 20)
    else:
        with open(path, "rb") as plain:
            yield plain


# --- JSON lines and text ---------------------------------------------------------------------------------------------


def _lines(piece: FilePiece, stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in a piece, each with the position of its first byte."""
    position = piece.start
    if position:
        stream.seek(position - 1)
        position += len(stream.readline()) - 1
    if _kind(piece.path)[1]:
        for line in stream:
            yield position, line
            position += len(line)
        return
    while position < piece.stop and (line := stream.readline()):
        yield position, line
        position += len(line)


def _read_json_lines(piece: FilePiece, problems: Problems) -> Iterator[Document]:
    path, name = piece.path, piece.path.name

    def problem(kind: str, position: int, what: str) -> None:
        problems.report(KIND[kind], f"corpus file {path} line {_line_number(path, position)} {what}")

    with open_bytes(path) as stream:
        for position, raw in _lines(piece, stream):
            if raw.isspace():
                continue
            if _is_utf16(raw, position):
                problems.report(KIND["utf-8"], _utf16(path))
                return
            try:
                record = json.loads(raw.decode().removeprefix("\ufeff"))  # given bytes, it would guess their encoding
            except UnicodeDecodeError as error:
                problem("utf-8", position, f"is not UTF-8 at byte {error.start}; {_convert(path)}")
                continue
            except (ValueError, RecursionError) as error:
                deep = isinstance(error, RecursionError)
                # A ValueError that is none of json's own: Python makes no integer of over 4,300 digits.
                reason = getattr(error, "msg", "nested too deeply" if deep else "a number of too many digits")
                problem("json", position, f"is not JSON ({reason}); mend the line, or go on with --on-error skip")
                continue
            if isinstance(record, list) and not position:
                hint = f"is one JSON array, not JSON lines; convert it: jq -c '.[]' {name} > {path.stem}.jsonl"
                problem("json", position, hint)
                continue
            text = value(record, piece.field)
            if not isinstance(text, str):
                problem("field", position, f'has no string field "{piece.field}" ({_fields(record)}); {_rename(piece)}')
            elif not text.isascii() and not _is_unicode(text):
                problem("utf-8", position, f'has half a surrogate pair in field "{piece.field}"; mend the line')
            elif not text.isspace() and text:
                yield Document(f"{name}@{position}", text, _own_split(record))


def _own_split(record: dict[str, Any]) -> str:
    """The split that a record names itself, as cleaned corpora do."""
    split = record.get("split")
    return split if split in SPLITS else ""


def value(record: object, path: str) -> object:
    """The field of a record at a dotted path; None where there is none."""
    for key in path.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _fields(record: object) -> str:
    return f"it has {', '.join(map(str, record)) or 'none'}" if isinstance(record, dict) else "it is no object"


def _rename(piece: FilePiece) -> str:
    return f"name the field as {piece.path.name}::FIELD"


def _convert(path: Path) -> str:
    return f"convert the file, for example with iconv -f latin1 -t utf-8 {path.name}"


def _is_utf16(raw: bytes, position: int) -> bool:
    """Whether a file begins with UTF-16's mark; `raw` are its bytes at `position`."""
    return not position and raw[:2] in (b"\xff\xfe", b"\xfe\xff")


def _utf16(path: Path) -> str:
    return f"corpus file {path} is UTF-16; convert it with iconv -f utf-16 -t utf-8 {path.name}"


def _is_unicode(text: str) -> bool:
    """JSON can say half a surrogate pair, which no encoding of Unicode can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _line_number(path: Path, position: int) -> int:
    """Counted only for a message: the number of the line that begins at a position of the unpacked file."""
    number, left = 1, position
    with open_bytes(path) as stream:
        while left and (block := stream.read(min(left, 1 << 20))):
            number, left = number + block.count(b"\n"), left - len(block)
    return number


def _read_text(piece: FilePiece, problems: Problems) -> Iterator[Document]:
    """One document a piece; of a packed file, one for every `TEXT_BYTES`, cut where a line ends."""
    with open_bytes(piece.path) as stream:
        if _kind(piece.path)[1]:
            begin = 0
            for raw in _parts(stream):
                yield from _text(piece, raw, begin, problems)
                begin += len(raw)
        else:
            begin, end = (_cut_at(stream, position, piece.size) for position in (piece.start, piece.stop))
            stream.seek(begin)
            yield from _text(piece, stream.read(end - begin), begin, problems)


def _parts(stream: IO[bytes]) -> Iterator[bytes]:
    beyond = b""
    while held := beyond + stream.read(TEXT_BYTES - len(beyond)):
        more, beyond = _to_cut(stream, held[-1:])
        yield held + more


def _cut_at(stream: IO[bytes], position: int, size: int) -> int:
    """Where a file of `size` bytes is cut that is to be cut at `position`: there or up to `TEXT_BYTES` later."""
    if position in (0, size):
        return position
    stream.seek(position - 1)
    return position + len(_to_cut(stream, stream.read(1))[0])


def _to_cut(stream: IO[bytes], before: bytes) -> tuple[bytes, bytes]:
    """What follows the byte `before` up to a cut, and what was read beyond it.

    A cut is where a line ends; where none does for `TEXT_BYTES`, after a space; where there is none, between two
    characters. So a document is at most twice as long, whatever a file holds.
    """
    line = b"" if before == b"\n" else stream.readline(TEXT_BYTES)
    if line.endswith(b"\n") or len(line) < TEXT_BYTES:
        return line, b""
    inside_a_character = range(0x80, 0xC0)  # the bytes of UTF-8 after the first
    cut = line.find(b" ") + 1 or next((i for i, byte in enumerate(line[:4]) if byte not in inside_a_character), 0)
    return line[:cut], line[cut:]


def _text(piece: FilePiece, raw: bytes, position: int, problems: Problems) -> Iterator[Document]:
    path = piece.path
    if _is_utf16(raw, position):
        problems.report(KIND["utf-8"], _utf16(path))
        return
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        at = position + error.start
        line = _line_number(path, at)
        problems.report(
            KIND["utf-8"], f"corpus file {path} line {line} is not UTF-8 at byte {at} of the file; {_convert(path)}"
        )
        return
    if not position:
        text = text.removeprefix("\ufeff")
    if text and not text.isspace():
        yield Document(path.name if piece.size <= TEXT_BYTES else f"{path.name}@{position}", text)


# --- Tables ----------------------------------------------------------------------------------------------------------


def _read_table(piece: FilePiece, problems: Problems) -> Iterator[Document]:
    path, row = piece.path, 0
    with _unpacked(path) as plain, _batches(plain, piece) as batches:
        if isinstance(batches, str):
            problems.report(*_table_problem(path, batches, piece))
            return
        for texts in batches:
            for text in _values(texts):
                row += 1
                if isinstance(text, UnicodeDecodeError):
                    problems.report(
                        KIND["utf-8"],
                        f'corpus file {path} row {row} is not UTF-8 at byte {text.start} of column "{piece.field}"; '
                        "mend the row, or go on with --on-error skip",
                    )
                elif not isinstance(text, str):
                    kind = "null" if text is None else type(text).__name__
                    problems.report(
                        KIND["field"],
                        f'corpus file {path} row {row} has {kind} in column "{piece.field}", not a text; mend the row, '
                        "or go on with --on-error skip",
                    )
                elif text and not text.isspace():
                    yield Document(f"{path.name}:{row}", text)


def _values(column: Any) -> Iterator[object]:
    """The values of a column; in the place of one that is not UTF-8 the error, for Arrow does not check what it reads.

    Row by row only where there is such a one: that is slower.
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


def _table_problem(path: Path, names: str, piece: FilePiece) -> tuple[str, str]:
    return KIND["field"], (
        f'corpus file {path} has no column "{piece.field}" (it has {names}); name the column as {path.name}::COLUMN'
    )


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A table is read from several places, so a packed one is unpacked beside the system's temporary files."""
    if path.suffix.lower() not in PACKED:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder, "table")
        try:
            with open_bytes(path) as stream, open(plain, "wb") as unpacked:
                shutil.copyfileobj(stream, unpacked, 1 << 20)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise ValueError(
                f"no room left in {tempfile.gettempdir()} to unpack corpus file {path}: {error.strerror}; free some, "
                "or name another folder in $TMPDIR, and run the same command again"
            ) from None
        yield plain


@contextmanager
def _batches(plain: Path, piece: FilePiece) -> Iterator[Any]:
    """The text column in batches; where there is none, the names of the columns that there are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet = _kind(piece.path)[0] == ".parquet"
    try:
        table = pq.ParquetFile(plain) if parquet else _open_arrow(plain)
    except pa.ArrowInvalid as error:
        name = "a Parquet" if parquet else "an Arrow"
        raise OSError(f"it is not {name} file ({str(error).splitlines()[0]})") from None
    schema = table.schema_arrow if parquet else table.schema
    if piece.field not in schema.names:
        yield ", ".join(schema.names)
    elif parquet:
        yield (batch.column(0) for batch in table.iter_batches(ROWS, columns=[piece.field], use_threads=False))
    else:
        stream = isinstance(table, pa.RecordBatchReader)
        batches = table if stream else map(table.get_batch, range(table.num_record_batches))
        columns = (batch.column(piece.field) for batch in batches)
        yield (column.slice(first, ROWS) for column in columns for first in range(0, len(column), ROWS))


def _open_arrow(path: Path) -> Any:
    """Arrow's file format, or the streaming one, which the datasets library keeps its cache in."""
    import pyarrow as pa

    source = pa.OSFile(str(path))  # not mapped: a mapped file that shrinks kills its reader
    try:
        return pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        return pa.ipc.open_stream(source)


def read_pieces(pieces: Sequence[Piece], problems: Problems | None = None) -> Iterator[Document]:
    """All documents of the pieces, in order."""
    for piece in pieces:
        yield from piece.documents(problems or Problems())
