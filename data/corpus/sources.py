"""Local files as pieces, and the documents of a piece. One process reads a piece from beginning to end.

A piece is a file, or a range of bytes of a large one that is not packed: JSON lines and plain text are cut where a line
ends. What the pieces are depends on the files alone, so any number of processes reads the same documents in the same
order.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from data.corpus import tables
from data.corpus.document import KIND, MISSING, SKIP, SPLIT_FIELD, fault, of_the_machine, split_said, value
from data.corpus.document import SPLITS as SPLITS
from data.corpus.document import Document as Document
from data.corpus.document import Piece as Piece
from data.corpus.document import Problems as Problems
from data.corpus.document import read_pieces as read_pieces
from data.corpus.examples import Form
from data.corpus.files import FORMS, PLAIN, form, kind, open_bytes
from data.corpus.files import local_files as local_files
from support.errors import UserError

UNPACKED_RATIO = 4  # unpacked text is about so much larger; only a guess, to say how much there is to do
TEXT_BYTES = 1 << 22  # a long plain text becomes documents of this or up to twice as much, so that memory stays flat
WRITTEN_OUT = (b"[", b"{", b"\xef\xbb\xbf[", b"\xef\xbb\xbf{")  # a first line that shows that a file is not JSON lines
PIECES, LEAST_BYTES, MOST_BYTES = 64, 1 << 21, 1 << 32  # about so many pieces a corpus, and the sizes of a piece


@dataclass(frozen=True)
class FilePiece:
    """The bytes from `start` to `stop` of a file. `size`, `mtime_ns` and `split` are the file's.

    With a `form` its rows are examples to tune on, and the field of a text is not asked for.
    """

    path: Path
    field: str
    start: int
    stop: int
    size: int
    mtime_ns: int
    split: str = ""
    form: Form | None = None

    @property
    def num_bytes(self) -> int:
        return (self.stop - self.start) * (UNPACKED_RATIO if kind(self.path)[1] else 1)

    def identity(self) -> list[object]:
        own = [str(self.path.resolve()), self.field, self.start, self.stop, self.size, self.mtime_ns, self.split]
        return [*own, self.form.identity()] if self.form else own

    def documents(self, problems: Problems) -> Iterator[Document]:
        self._check_unchanged("since it was listed")
        if not self.size:
            problems.report(KIND["empty"], f"corpus file {self.path} is empty; remove it or give another path")
            return
        read = {"lines": _read_json_lines, "table": _read_table, "text": _read_text}.get(form(self.path), _refuse)
        if self.form and read is _read_text:
            read = _no_rows
        try:
            yield from read(self, problems)
        except (OSError, EOFError, zlib.error) as error:
            self._check_unchanged("while it was read")
            if of_the_machine(error):
                raise UserError(
                    f"corpus file {self.path} cannot be read: {error.strerror}; its content may be good, so it is not "
                    "skipped: mend that and run the same command again"
                ) from None
            reason = f"corpus file {self.path} cannot be read: {error}; check that it is whole"
            problems.report(KIND["file"], reason)
        except ValueError as error:
            self._check_unchanged("while it was read")  # a file that is still being written is the likelier cause
            if not type(error).__module__.startswith("pyarrow"):
                raise
            reason = str(error).splitlines()[0]
            problems.report(KIND["file"], f"corpus file {self.path} cannot be read: {reason}; check that it is whole")
        self._check_unchanged("while it was read")

    def _check_unchanged(self, when: str) -> None:
        now = self.path.stat()
        if (now.st_size, now.st_mtime_ns) != (self.size, self.mtime_ns):
            raise UserError(
                f"corpus file {self.path} changed {when}: it had {self.size:,} bytes and has {now.st_size:,}; wait "
                "until it is written, then run the same command again"
            )


def piece_bytes(total: int) -> int:
    """How many bytes of a corpus of `total` bytes make a piece: many processes get some, and shards are not too many.

    It is a power of two, so that a corpus that grows a little is cut as before.
    """
    return max(LEAST_BYTES, min(MOST_BYTES, 1 << max(total // PIECES, 1).bit_length()))


def file_pieces(files: Mapping[Path, str], text_field: str, rows: Form | None = None) -> list[FilePiece]:
    """Files, each with its split, as pieces. A large file that can be cut makes several, every other file makes one.

    `rows` says how rows become examples, where they are to tune on. Files that cannot be read come first, so that they
    are told before any work is done.
    """
    stats = {path: path.stat() for path in sorted(files, key=lambda path: bool(form(path)))}
    most = piece_bytes(sum(stat.st_size for stat in stats.values()))
    pieces = []
    for path, stat in stats.items():
        steps = {"lines": most, "text": TEXT_BYTES}
        step = max(stat.st_size, 1) if kind(path)[1] else steps.get(form(path), max(stat.st_size, 1))
        for start in range(0, max(stat.st_size, 1), step):
            stop = min(start + step, stat.st_size)
            facts = (stat.st_size, stat.st_mtime_ns, files[path])
            pieces.append(FilePiece(path, text_field, start, stop, *facts, rows))
    return pieces


def _refuse(piece: FilePiece, problems: Problems) -> Iterator[Document]:
    suffix, path = kind(piece.path)[0], piece.path
    what = f"is of a form ({suffix}) that is not read; convert it to JSON lines or text"
    if not suffix:
        what = (
            f"does not say what is packed in it; name it {path.stem}.jsonl{path.suffix} or {path.stem}.txt{path.suffix}"
        )
    known = " ".join([*FORMS["lines"], *FORMS["table"], PLAIN])
    problems.report(
        KIND["form"], f"corpus file {path} {what}, {SKIP} (read are {known}, source code, each also .gz, .zst)"
    )
    yield from ()


def _no_rows(piece: FilePiece, problems: Problems) -> Iterator[Document]:
    known = " ".join([*FORMS["lines"], *FORMS["table"]])
    what = f"is a text, and a template is filled from rows; give JSON lines or a table ({known}), {SKIP}"
    problems.report(KIND["form"], f"corpus file {piece.path} {what}")
    yield from ()


# --- JSON lines and text ---------------------------------------------------------------------------------------------


def _lines(piece: FilePiece, stream: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in a piece, each with the position of its first byte."""
    position = piece.start
    if position:
        stream.seek(position - 1)
        position += len(stream.readline()) - 1
    if kind(piece.path)[1]:
        for line in stream:
            yield position, line
            position += len(line)
        return
    while position < piece.stop and (line := stream.readline()):
        yield position, line
        position += len(line)


def _read_table(piece: FilePiece, problems: Problems) -> Iterator[Document]:
    if piece.form:
        return tables.read_rows(piece.path, piece.form, piece.split, problems)
    return tables.read(piece.path, piece.field, piece.split, problems)


def _read_json_lines(piece: FilePiece, problems: Problems) -> Iterator[Document]:
    path, name = piece.path, piece.path.name

    def problem(what_kind: str, position: int, what: str) -> None:
        problems.report(KIND[what_kind], f"{_line(path, position)} {what}")

    with open_bytes(path) as stream:
        for position, raw in _lines(piece, stream):
            if raw.isspace():
                continue
            if _is_utf16(raw, position):
                problems.report(KIND["utf-8"], _utf16(path))
                return
            if not position and raw.strip() in WRITTEN_OUT:
                problem("json", position, f"is JSON over several lines; {_pack(raw)}")
                return
            try:
                record = json.loads(raw.decode().removeprefix("\ufeff"))  # given bytes, it would guess their encoding
            except UnicodeDecodeError as error:
                problem("utf-8", position, f"is not UTF-8 at byte {error.start}; {_convert(path)}")
                continue
            except (ValueError, RecursionError) as error:
                deep = isinstance(error, RecursionError)
                # A ValueError without `msg` is not json's own: Python makes no integer of over 4,300 digits.
                reason = getattr(error, "msg", "nested too deeply" if deep else "a number of too many digits")
                problem("json", position, f"is not JSON ({reason}); mend the line, or go on with --on-error skip")
                continue
            if isinstance(record, list) and not position:
                problem("json", position, f"is one JSON array, not JSON lines; {_pack(raw)}")
                continue
            if piece.form:
                where = partial(_line, path, position)
                yield from piece.form.document(f"{name}@{position}", record, piece.split, problems, where)
                continue
            text, said = value(record, piece.field, MISSING), value(record, SPLIT_FIELD)
            wrong = fault(text, said, piece.field)
            if text is MISSING:
                problem("field", position, f'has no field "{piece.field}" ({_fields(record)}); {_rename(piece)}')
            elif wrong:
                problem(wrong[0], position, wrong[1])
            elif not text.isspace() and text:
                yield Document(f"{name}@{position}", text, split_said(piece.split, said))


def _line(path: Path, position: int) -> str:
    return f"corpus file {path} line {_line_number(path, position)}"


def _fields(record: object) -> str:
    return f"it has {', '.join(map(str, record)) or 'none'}" if isinstance(record, dict) else "it is no object"


def _rename(piece: FilePiece) -> str:
    return f"name the field as {piece.path.name}::FIELD"


def _pack(raw: bytes) -> str:
    array = raw.strip().endswith((b"[", b"]"))
    return f"write each record on a line of its own, for example with jq -c '{'.[]' if array else '.'}'"


def _convert(path: Path) -> str:
    return f"convert the file, for example with iconv -f latin1 -t utf-8 {path.name}"


def _is_utf16(raw: bytes, position: int) -> bool:
    """Whether a file begins with UTF-16's mark; `raw` are its bytes at `position`."""
    return not position and raw[:2] in (b"\xff\xfe", b"\xfe\xff")


def _utf16(path: Path) -> str:
    return f"corpus file {path} is UTF-16; convert it with iconv -f utf-16 -t utf-8 {path.name}"


def _line_number(path: Path, position: int) -> int:
    """The number of the line that begins at a position of the unpacked file.

    It is counted when a message needs it: a piece does not know how many lines are before it.
    """
    number, left = 1, position
    with open_bytes(path) as stream:
        while left and (block := stream.read(min(left, 1 << 20))):
            number, left = number + block.count(b"\n"), left - len(block)
    return number


def _read_text(piece: FilePiece, problems: Problems) -> Iterator[Document]:
    """A piece is one document. A packed file is one piece, and makes a document of every `TEXT_BYTES`."""
    with open_bytes(piece.path) as stream:
        if kind(piece.path)[1]:
            begin = 0
            for raw in _texts(stream):
                yield from _text(piece, raw, begin, problems)
                begin += len(raw)
        else:
            begin, end = (_cut_at(stream, position, piece.size) for position in (piece.start, piece.stop))
            stream.seek(begin)
            yield from _text(piece, stream.read(end - begin), begin, problems)


def _texts(stream: IO[bytes]) -> Iterator[bytes]:
    """What a stream holds, in texts of `TEXT_BYTES` or a little more, cut where a line ends."""
    beyond = b""
    while held := beyond + stream.read(TEXT_BYTES - len(beyond)):
        more, beyond = _to_cut(stream, held[-1:])
        yield held + more


def _cut_at(stream: IO[bytes], position: int, size: int) -> int:
    """Where to cut a file of `size` bytes that should be cut at `position`: there, or up to `TEXT_BYTES` later."""
    if position in (0, size):
        return position
    stream.seek(position - 1)
    return position + len(_to_cut(stream, stream.read(1))[0])


def _to_cut(stream: IO[bytes], before: bytes) -> tuple[bytes, bytes]:
    """Read from behind the byte `before` to the next good place for a cut. Returns that, and what was read beyond it.

    A good place is where a line ends. If no line ends for `TEXT_BYTES`, it is after a space, and if there is no space,
    between two characters. So a document is at most twice as long as `TEXT_BYTES`, whatever a file holds.
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
    if b"\0" in raw:
        at = position + raw.index(b"\0")
        what = f"has a NUL at byte {at}, so it is no text; give another, {SKIP}"
        problems.report(KIND["nul"], f"corpus file {path} {what}")
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
        yield Document(path.name if piece.size <= TEXT_BYTES else f"{path.name}@{position}", text, piece.split)
