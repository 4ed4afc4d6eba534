import json
import os
import sys
from pathlib import Path

import pytest

from data.corpus import bigbench
from data.corpus.bigbench import SOURCES, rows_file
from data.corpus.fetch import file_sha256
from support.errors import CRASHED, WRONG_INPUT, UserError
from tests.data.corpus.tiny_bigbench import FILES, archive, cached


def rows(task: str) -> list[object]:
    return [json.loads(line) for line in rows_file(task).read_text().splitlines()]


def test_the_package_is_fetched_by_pip_and_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = archive(tmp_path / "index")  # its setup.py would end whoever ran it
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.parent))
    with pytest.raises(ValueError, match="not the file that was meant"):
        rows_file("bb_squad")
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}  # nothing half-written
    monkeypatch.setattr(bigbench, "SHA256", file_sha256(index))
    assert len(rows("bb_squad")) == 2
    told = capsys.readouterr().err
    assert all(f"{name}: {source.what}; licence: {source.licence}\n" in told for name, source in SOURCES.items())
    index.unlink()
    assert len(rows("bb_coqa")) == 2 and capsys.readouterr().err == ""  # all of them were taken out at once


def test_without_the_package_one_line_says_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ValueError, match=r"has no bigbench-1.0.0.tar.gz; check the network, or put it at .*cache/big"):
        rows_file("bb_squad")


@pytest.mark.parametrize(("limit", "status", "words"), [
    ("ulimit -f 1", CRASHED, r"no room left in .*/cache for bigbench==1.0.0; free some"),
    ("PYTHONPATH=none", WRONG_INPUT, r"could not download bigbench==1.0.0: pip is not there, or not as it was"),
])  # fmt: skip
def test_a_full_disk_and_a_pip_that_is_not_there_are_one_line(
    limit: str, status: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = archive(tmp_path / "index", {**FILES, "large": os.urandom(2**20).hex()})
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index.parent))
    (tmp_path / "none" / "pip").mkdir(parents=True)
    (tmp_path / "none" / "pip" / "__init__.py").write_text("")
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ncd "$PWD" && {limit.replace("none", str(tmp_path / "none"))} && '
        f'export PYTHONPATH && exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match=words) as caught:
        rows_file("bb_squad")
    assert caught.value.status == status and "\n" not in str(caught.value)
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".lock"}


def test_a_package_without_a_task_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path))
    files = {name: content for name, content in FILES.items() if "coqa" not in name}
    monkeypatch.setattr(bigbench, "SHA256", file_sha256(archive(tmp_path, files)))
    with pytest.raises(ValueError, match=r"tar.gz holds no bigbench-1.0.0/.*/coqa.test.json; remove it"):
        rows_file("bb_squad")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_rows_are_what_the_files_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path, monkeypatch)
    assert rows("bb_squad")[1] == {
        "title": "Bowls", "context": "Denver won.", "question": "Where?", "answers": ["Paris", "France now"]
    }  # fmt: skip
    assert rows("bb_coqa") == [
        {"context": "Tom has a cat.", "before": "", "question": "Who?", "answers": ["Tom", "Tom does", "Tom"]},
        {
            "context": "Tom has a cat.",
            "before": "Q: Who?\nA: Tom\n\n",
            "question": "A dog?",
            "answers": ["no", "No.", "a cat"],
        },
    ]
    assert rows("bb_wikidata")[1] == {"input": "The country of Y is", "answers": ["Spain"]}
    assert rows("bb_strategyqa")[1] == {"question": "Is it hot?", "choices": ["Yes", "No"], "gold": 1}
    assert rows("bb_cosmosqa") == [  # a wrong answer counts once, and the right one is none
        {"context": "I ran .", "question": "Why ?", "choices": ["For fun .", "No .", "Never ."], "gold": 0}
    ]
    assert rows("bb_qasc")[1] == {  # the right one moves: of equal likelihoods the first would win
        "context": "ice cools.", "question": "What cools?", "choices": ["sun.", "ice.", "fire.", "oil."], "gold": 1
    }  # fmt: skip


def test_a_pair_of_winogrande_makes_two_rows_and_broken_pairs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(tmp_path, monkeypatch)
    fled = "Rats fled holes for fields as the "
    assert rows("bb_winogrande") == [
        {"choices": [f"{fled}holes", f"{fled}hut"], "rest": " were full.", "gold": 0},
        {"choices": ["Rats stay as the holes", "Rats stay as the hut"], "rest": " is dry.", "gold": 1},
    ]


def test_every_task_says_its_licence() -> None:
    assert len(SOURCES) == 16
    assert all(source.licence and source.what for source in SOURCES.values())
