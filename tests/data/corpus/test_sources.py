import errno
import gzip
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpus import sources
from data.corpus.corpora import documents
from data.corpus.sources import Problems, file_pieces, piece_bytes, read_pieces

TEXTS = ["First, a text.\nOf two lines.", "Second: ünïcödé, 漢字.", "Third."]


def corrupt_parquet() -> bytes:
    """A table whose footer is good and whose only page is not."""
    with pa.BufferOutputStream() as sink:
        pq.write_table(pa.table({"text": ["some text" * 50]}), sink, compression="zstd")
        raw = bytearray(sink.getvalue().to_pybytes())
    raw[30:60] = bytes(30)
    return bytes(raw)


CORRUPT = corrupt_parquet()


def json_lines() -> str:
    return "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(TEXTS))


def write_zst(path: Path, content: str) -> None:
    """In two frames, as parallel compressors write."""
    half = len(content) // 2
    parts = []
    for text in (content[:half], content[half:]):
        with pa.BufferOutputStream() as sink:
            with pa.CompressedOutputStream(sink, "zstd") as stream:
                stream.write(text.encode())
            parts.append(sink.getvalue().to_pybytes())
    path.write_bytes(b"".join(parts))


def write_gz(path: Path, content: str) -> None:
    half = len(content) // 2
    path.write_bytes(gzip.compress(content[:half].encode()) + gzip.compress(content[half:].encode()))


def write_parquet(path: Path, content: str) -> None:
    pq.write_table(pa.table({"text": TEXTS}), path)


def write_parquet_gz(path: Path, content: str) -> None:
    write_parquet(path, content)
    path.write_bytes(gzip.compress(path.read_bytes()))


def write_arrow(path: Path, content: str) -> None:
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


def write_arrow_stream(path: Path, content: str) -> None:
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=1)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", Path.write_text),
        ("a.jsonl.gz", write_gz),
        ("a.jsonl.zst", write_zst),
        ("a.parquet", write_parquet),
        ("a.parquet.gz", write_parquet_gz),
        ("a.arrow", write_arrow),
        ("b.arrow", write_arrow_stream),
    ],
)
def test_every_form_gives_the_same_documents(name: str, write: Callable[[Path, str], None], tmp_path: Path) -> None:
    write(tmp_path / name, json_lines())
    assert [document.text for document in documents(str(tmp_path / name))] == TEXTS


@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "txt.zst"])
def test_a_text_file_is_a_document(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    {"txt": Path.write_text, "txt.gz": write_gz, "txt.zst": write_zst}[suffix](path, TEXTS[0])
    assert [document.text for document in documents(str(path))] == [TEXTS[0]]


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_large_text_file_is_several_documents_cut_between_lines(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "TEXT_BYTES", 100)
    text = "".join(f"Line {i} of a text.\n" for i in range(40))
    raw = text.encode()
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    found = [document.text for document in documents(str(path))]
    assert "".join(found) == text and len(found) > 5
    assert all(part.endswith("\n") and len(part) < 130 for part in found)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    "text", ["of words " * 200, "漢字かな" * 200, "é" * 77 + "\n" + "x " * 400 + "\nend\n", "x" * 50 + "é" * 100]
)
def test_a_text_file_without_line_ends_is_several_documents(
    text: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "TEXT_BYTES", 100)
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
    found = [document.text for document in documents(str(path))]
    assert "".join(found) == text
    assert len(found) > 1 and all(len(part.encode()) <= 200 for part in found)
    if " " in text:
        assert all(part[-1] in " \n" for part in found)


def test_a_field_of_another_name_and_a_split_of_its_own(tmp_path: Path) -> None:
    rows = [{"body": {"en": "one"}, "split": "Valid"}, {"body": {"en": "two"}, "split": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = list(documents(f"{tmp_path}/a.jsonl::body.en"))
    assert [(document.text, document.split) for document in found] == [("one", "validation"), ("two", "")]
    (tmp_path / "b.jsonl").write_text(json.dumps({"body.en": "three"}))
    assert [document.text for document in documents(f"{tmp_path}/b.jsonl::body.en")] == ["three"]
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "a.parquet")
    assert [document.text for document in documents(f"{tmp_path}/a.parquet::body")] == TEXTS


@pytest.mark.parametrize("step", [1, 7, 40, 41, 42, 1000])
def test_lines_fall_to_the_piece_they_begin_in(step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "piece_bytes", lambda total: step)
    texts = ["x" * (i * 5 % 31) + "." for i in range(50)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts)[:-1])
    pieces = file_pieces({tmp_path / "a.jsonl": ""}, "text")
    assert len(pieces) == -(-(tmp_path / "a.jsonl").stat().st_size // step)
    assert [document.text for document in read_pieces(pieces)] == texts


def test_the_size_of_pieces_follows_the_corpus_in_steps() -> None:
    mib = 1 << 20
    assert [piece_bytes(size * mib) for size in (0, 16, 250, 1000, 1030, 10**6)] == [
        size * mib for size in (2, 2, 4, 16, 32, 4096)
    ]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"caf\xe9", r"a\.txt line 1 is not UTF-8 at byte 3 of the file; convert the file, for example"),
        ("a.txt", b"one\ntwo\ncaf\xe9", r"a\.txt line 3 is not UTF-8 at byte 11"),
        ("a.txt", "Köln".encode("utf-16"), "is UTF-16; convert it with iconv -f utf-16"),
        ("a.txt", b"\xef\xbb\xbfcaf\xe9", r"a\.txt line 1 is not UTF-8 at byte 6 of the file"),
        ("a.jsonl", '{"text": "Köln"}\n'.encode("utf-16"), "is UTF-16; convert it with iconv -f utf-16"),
        ("a.jsonl", '{"text": "Köln"}\n'.encode("utf-16-be")[:-2], "line 1 is not UTF-8 at byte 23"),
        ("a.jsonl", '{"text": "Rome"}\n'.encode("utf-16-le")[:-2], "line 1 is not JSON"),
        ("a.jsonl", '{"text": "Rome"}'.encode("utf-32-le"), "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "\xed\xa0\xbd"}', "line 1 is not UTF-8 at byte 10"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\xff\n', "line 2 is not UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "caf\xe9"}\n', "line 2 is not UTF-8 at byte 13"),
        ("a.jsonl", b'{"body": "x", "id": 1}\n', 'line 1 has no field "text" \\(it has body, id\\); name'),
        (
            "a.jsonl",
            b'{"text": null}\n',
            'line 1 has null in "text", not a text; mend it, or go on with --on-error skip',
        ),
        ("a.jsonl", b'{"text": 3.5}\n', 'line 1 has a number in "text"'),
        ("a.jsonl", b'{"text": ["x"]}\n', 'line 1 has a list in "text"'),
        ("a.jsonl", b'{"text": {"en": "x"}}\n', 'line 1 has an object in "text"'),
        ("a.jsonl", b'{"text": true}\n', 'line 1 has true or false in "text"'),
        ("a.jsonl", b'{"text": "x\\u0000y"}\n', 'line 1 has a NUL character in "text"'),
        (
            "a.jsonl",
            b'{"text": "x", "split": "extra"}\n',
            'line 1 has "extra" in "split", none of train, training, val',
        ),
        ("a.jsonl", b'{"text": "x", "split": 2}\n', 'line 1 has 2 in "split", none of train'),
        ("a.jsonl", b"3\n", 'line 1 has no field "text" \\(it is no object\\)'),
        ("a.json", b'[{"text": "x"}]\n', r"line 1 is one JSON array, not JSON lines; write .* with jq -c '\.\[\]'"),
        ("a.json", b'[\n{"text": "x"},\n{"text": "y"}\n]\n', r"line 1 is JSON over several lines; .* jq -c '\.\[\]'"),
        ("a.json", b'\xef\xbb\xbf{\r\n "text": "x"\r\n}\r\n', r"line 1 is JSON over several lines; .* jq -c '\.'"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON .nested too deeply"),
        ("a.jsonl", b'{"text": "x", "id": ' + b"9" * 5000 + b"}", "line 1 is not JSON .a number of too many digits"),
        ("a.jsonl", b'{"text": "\\ud83d"}', 'line 1 has half a surrogate pair in "text"'),
        ("a.parquet", b"PAR1 not really", "not a Parquet file"),
        ("a.parquet", CORRUPT, "cannot be read: .*; check that it is whole"),
        ("a.arrow", b"ARROW1 not really", "not an Arrow file"),
        ("a", b"one\ntwo\0", r"/a has a NUL at byte 7, so it is no text; give another, or go on with --on-error skip"),
        ("a.txt", "Köln".encode("utf-16-le"), "has a NUL at byte 1"),
        ("a.tar", b"x", r"is of a form \(\.tar\) that is not read; convert it to JSON lines or text, or .*skip"),
        ("a.warc.wet", b"x", r"is of a form \(\.wet\) that is not read"),
        ("a.warc.wet.gz", gzip.compress(b"x", mtime=0), r"is of a form \(\.wet\) that is not read"),
        ("a.csv", b"text\nx\n", r"is of a form \(\.csv\) that is not read"),
        ("a.jsonl.xz", b"x", r"is of a form \(\.xz\) that is not read"),
        (
            "a.gz",
            gzip.compress(b'{"text": "x"}', mtime=0),
            r"does not say what is packed in it; name it a\.jsonl\.gz or a\.txt\.gz",
        ),
        ("a.txt.gz", b"not packed", "cannot be read"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-9], "cannot be read"),
        ("a.jsonl.zst", b"not packed", "cannot be read"),
    ],
)
def test_bad_files_say_file_and_place(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        list(documents(str(path)))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    problems = Problems(skip=True)
    assert len(list(documents(str(path), problems))) <= 1
    assert sum(problems.counts.values()) == 1 and str(path) in next(iter(problems.first.values()))


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_what_the_machine_refuses_is_never_skipped(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose content is good must not be lost for a fault that passes."""

    def refuse(path: Path) -> None:
        raise OSError(code, os.strerror(code))

    path = tmp_path / "a.jsonl"
    path.write_text(json_lines())
    monkeypatch.setattr(sources, "open_bytes", refuse)
    problems = Problems(skip=True)
    with pytest.raises(ValueError, match=rf"a\.jsonl cannot be read: {os.strerror(code)}; .* not skipped"):
        list(documents(str(path), problems))
    assert not problems.counts


def test_no_room_to_unpack_a_table_is_never_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet_gz(tmp_path / "a.parquet.gz", "")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    full, problems = OSError(errno.ENOSPC, "No space left on device"), Problems(skip=True)

    def refuse(*_: object) -> None:
        raise full

    monkeypatch.setattr("shutil.copyfileobj", refuse)
    with pytest.raises(ValueError, match=r"no room left in .* to unpack corpus file .*/a\.parquet\.gz: .*TMPDIR"):
        list(documents(str(tmp_path / "a.parquet.gz"), problems))
    assert not problems.counts


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_the_mark_of_utf_8_is_no_text(name: str, tmp_path: Path) -> None:
    text = "Köln" if name == "a.txt" else '{"text": "Köln"}\n'
    (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
    assert [document.text for document in documents(str(tmp_path / name))] == ["Köln"]


def test_a_packed_file_that_lacks_its_end_is_noticed(tmp_path: Path) -> None:
    write_zst(tmp_path / "a.jsonl.zst", json_lines() * 1000)
    whole = (tmp_path / "a.jsonl.zst").read_bytes()
    (tmp_path / "a.jsonl.zst").write_bytes(whole[:-20])
    with pytest.raises(ValueError, match=r"a\.jsonl\.zst"):
        list(documents(str(tmp_path / "a.jsonl.zst")))


@pytest.mark.parametrize("name", ["text", "split"])
def test_a_table_with_two_columns_of_a_name_is_refused(name: str, tmp_path: Path) -> None:
    columns = [pa.array(["x"]), pa.array(["train"]), pa.array(["test"])]
    pq.write_table(pa.Table.from_arrays(columns, ["text", "split", name]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=f'a.parquet cannot be read: it has several columns of the name "{name}"'):
        list(documents(str(tmp_path / "a.parquet")))


def test_a_parquet_without_the_column_lists_its_own(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r'no column "text" \(it has body\); name the column as a.parquet::COLUMN'):
        list(documents(str(tmp_path / "a.parquet")))
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match='row 1 has a number in "text", not a text'):
        list(documents(str(tmp_path / "a.parquet")))


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_row_that_is_not_utf_8_is_named_and_skipped_alone(suffix: str, tmp_path: Path) -> None:
    raw = pa.array([b"one"] * 200 + [b"caf\xe9 noir"] + [b"two"] * 200)
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())})
    path = tmp_path / f"a.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(ValueError, match=rf'a\.{suffix} row 201 is not UTF-8 at byte 3 of column "text"; mend the row'):
        list(documents(str(path)))
    problems = Problems(skip=True)
    found = list(documents(str(path), problems))
    assert [document.text for document in found] == ["one"] * 200 + ["two"] * 200
    assert found[-1].name.endswith(":401") and problems.counts == {"not UTF-8": 1}


def test_what_is_skipped_is_counted_by_kind(tmp_path: Path) -> None:
    lines = [b'{"text": "one"}', b"{", b'{"text": "two"}', b"{}", b"nonsense", b'{"text": "caf\xe9"}', b'{"text": "3"}']
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    problems = Problems(skip=True)
    assert [document.text for document in documents(str(tmp_path / "a.jsonl"), problems)] == ["one", "two", "3"]
    assert problems.counts == {"not JSON": 2, "no text": 1, "not UTF-8": 1}
    assert "line 2 is not JSON" in problems.first["not JSON"]


@pytest.mark.parametrize(("size", "words"), [(40, "changed while it was read"), (200, "changed since it was listed")])
def test_a_file_that_changes_while_it_is_read_is_noticed(size: int, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "some words"}\n' * 80_000)
    (piece,) = file_pieces({path: ""}, "text")
    reader = piece.documents(Problems())
    if size == 40:
        next(reader)
    with open(path, "r+b") as stream:
        stream.truncate(1_500_010)
    with pytest.raises(ValueError, match=words):
        list(reader)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_column_says_the_split_of_a_row(suffix: str, tmp_path: Path) -> None:
    said = ["dev", "train", "TEST", None]
    table = pa.table({"split": said, "body": ["a", "b", "c", "d"]})
    path = tmp_path / f"a.{suffix}"

    def write(table: pa.Table) -> None:
        if suffix == "parquet":
            pq.write_table(table, path)
        else:
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)

    write(table)
    found = [(document.text, document.split) for document in documents(f"{path}::body")]
    assert found == [("a", "validation"), ("b", "train"), ("c", "test"), ("d", "")]
    (piece,) = file_pieces({path: "validation"}, "body")  # what a row says does not bring it nearer to training
    assert [document.split for document in piece.documents(Problems())] == [
        "validation",
        "validation",
        "test",
        "validation",
    ]
    write(pa.table({"split": ["dev", "extra"], "text": ["a\0b", "c"]}))
    with pytest.raises(ValueError, match=r'row 1 has a NUL character in "text"'):
        list(documents(str(path)))
    problems = Problems(skip=True)
    assert not list(documents(str(path), problems))
    assert problems.counts == {"NUL character": 1, "unknown split": 1}
    assert 'row 2 has "extra" in "split", none of train' in problems.first["unknown split"]


def test_what_is_not_read_is_told_before_what_is(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.py", "c.pdf"):
        (tmp_path / name).write_text('{"text": "x"}')
    with pytest.raises(ValueError, match=r"c\.pdf is of a form \(\.pdf\)"):
        next(documents(str(tmp_path)))
    problems = Problems(skip=True)
    assert [document.text for document in documents(str(tmp_path), problems)] == ["x", '{"text": "x"}']
    assert problems.counts == {"unknown form": 1}
