import errno
import gzip
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

from data.corpus import hub
from data.corpus.corpora import documents
from data.corpus.hub import Hub, hub_pieces
from data.corpus.named import CORPORA
from data.corpus.sources import Problems, read_pieces


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local copy of the hub's data set some/set, with two files to train on."""
    monkeypatch.setenv("STAGECRAFT_HUB", str(tmp_path))
    folder = tmp_path / "some" / "set"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"text": ["one", " "]}), folder / "train-00000-of-00002.parquet")
    pq.write_table(pa.table({"text": ["two"]}), folder / "train-00001-of-00002.parquet")
    pq.write_table(pa.table({"text": ["held"]}), folder / "validation-00000-of-00001.parquet")
    return folder


def test_a_data_set_is_streamed_by_split_and_file(copy: Path) -> None:
    pieces = hub_pieces(Hub("some/set"))
    assert [(piece.split, piece.index, piece.count) for piece in pieces] == [
        ("train", 0, 2), ("train", 1, 2), ("validation", 0, 1),
    ]  # fmt: skip
    assert [[document.text for document in read_pieces([piece])] for piece in pieces] == [["one"], ["two"], ["held"]]
    assert [(d.text, d.split) for d in documents("some/set@main")] == [
        ("one", "train"), ("two", "train"), ("held", "validation"),
    ]  # fmt: skip


def test_a_data_set_with_one_split_leaves_the_split_open(copy: Path) -> None:
    (copy / "validation-00000-of-00001.parquet").unlink()
    assert {document.split for document in documents("some/set")} == {""}
    for number in (0, 1):
        rows = pa.table({"text": ["one", "two"], "split": ["dev", None]})
        pq.write_table(rows, copy / f"train-{number:05d}-of-00002.parquet")
    assert [document.split for document in documents("some/set")] == ["validation", ""] * 2


def test_a_data_set_s_names_of_splits_are_understood(copy: Path) -> None:
    """The copy says by its README what a loading script or a card says on the hub."""
    pq.write_table(pa.table({"text": ["last"]}), copy / "c.parquet")
    files = {"training": "train-*", "dev": "validation-*", "extra": "c.parquet", "eval": "c.*"}
    listed = "".join(f"  - split: {split}\n    path: {path}\n" for split, path in files.items())
    (copy / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{listed}---\n")
    assert [(d.name, d.text, d.split) for d in documents("some/set")] == [
        ("training/0:0", "one", "train"), ("training/1:0", "two", "train"), ("dev/0:0", "held", "validation"),
        ("eval/0:0", "last", "test"),
    ]  # fmt: skip


def test_a_data_set_without_text_lists_its_fields(copy: Path) -> None:
    pq.write_table(pa.table({"body": ["one"]}), copy / "train-00000-of-00002.parquet")
    for name in ("train-00001-of-00002", "validation-00000-of-00001"):
        (copy / f"{name}.parquet").unlink()
    with pytest.raises(ValueError, match=r'train file 0 row 0 has no field "text" \(it has body\)'):
        list(documents("some/set"))
    problems = Problems(skip=True)
    assert [document.text for document in documents("some/set", problems)] == []
    assert problems.counts == {"no text": 1}
    assert [document.text for document in documents("some/set::body")] == ["one"]


def test_a_data_set_without_training_data_says_what_it_has(copy: Path) -> None:
    for path in copy.glob("train*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"data set some/set has no train split \(it has validation\)"):
        documents("some/set")


def test_a_hub_id_out_of_reach_is_one_line() -> None:
    with pytest.raises(ValueError, match="data set some-body/some-thing@v2 cannot be read from the hub") as caught:
        documents("some-body/some-thing@v2")
    assert "\n" not in str(caught.value)


def test_a_part_of_a_data_set_is_taken_by_a_field_s_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_HUB", str(tmp_path))
    arxiv = CORPORA["arxiv"].hub
    assert arxiv and arxiv.where == ("meta.pile_set_name", "ArXiv")
    folder = tmp_path / arxiv.name
    folder.mkdir(parents=True)
    rows = [("one", "ArXiv"), ("two", "Github"), ("three", "ArXiv")]
    lines = [json.dumps({"text": text, "meta": {"pile_set_name": part}}) for text, part in rows]
    (folder / "train.jsonl").write_text("\n".join(lines))
    assert [document.text for document in documents("arxiv")] == ["one", "three"]


def test_a_network_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise httpx.ConnectError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", unreachable)
    with pytest.raises(ValueError, match="some/set cannot be read from the hub: Name or service not known; check"):
        hub_pieces(Hub("some/set"))


def not_utf_8() -> pa.Table:
    raw = pa.array([b"two", b"caf\xe9", b"three"])
    return pa.table({"text": pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())})


def test_a_file_that_cannot_be_read_is_named_and_its_rest_skipped(copy: Path) -> None:
    pq.write_table(not_utf_8(), copy / "train-00001-of-00002.parquet")
    words = "data set some/set train file 1 cannot be read from row 1 on: 'utf-8' codec can't decode .*--on-error skip"
    with pytest.raises(ValueError, match=words) as caught:
        list(documents("some/set"))
    assert "network" not in str(caught.value)
    problems = Problems(skip=True)
    assert [document.text for document in documents("some/set", problems)] == ["one", "two", "held"]
    assert problems.counts == {"unreadable file": 1}


def test_a_packed_file_that_lacks_its_end_is_skipped_from_there(copy: Path) -> None:
    for path in copy.iterdir():
        path.unlink()
    line = (json.dumps({"text": os.urandom(999).hex()}) + "\n").encode()
    (copy / "train.jsonl.gz").write_bytes(gzip.compress(line * 8000)[:-9])
    problems = Problems(skip=True)
    assert list(documents("some/set", problems))
    assert problems.counts == {"unreadable file": 1}


def test_a_copy_with_a_broken_first_file_says_where_it_lies(copy: Path) -> None:
    (copy / "train-00000-of-00002.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=rf"some/set cannot be read from {copy}: .*; check the files there") as caught:
        documents("some/set")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Server Disconnected"),
        OSError(errno.EMFILE, "Too many open files"),
        httpx.ReadTimeout("timed out"),
        RuntimeError("the client has been closed"),
    ],
)
def test_what_the_network_refuses_is_never_skipped(
    error: Exception, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Rows:
        def __iter__(self) -> Iterator[dict[str, str]]:
            yield {"text": "one"}
            raise error

    pieces = hub_pieces(Hub("some/set"))
    monkeypatch.setattr(hub, "_load", lambda *_: Rows())
    problems = Problems(skip=True)
    with pytest.raises(ValueError, match=f"data set some/set cannot be read from .*{re.escape(str(error))}"):
        list(read_pieces(pieces[-1:], problems))
    assert not problems.counts


def test_a_data_set_of_packed_lines_is_read_as_the_pile_is(copy: Path) -> None:
    for path in copy.iterdir():
        path.unlink()
    with pa.output_stream(str(copy / "train.jsonl.zst"), compression="zstd") as stream:
        stream.write(b'{"text": "one"}\n{"text": "two"}\n')
    assert [document.text for document in documents("some/set")] == ["one", "two"]
