import json
import re
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from data.corpus import corpora
from data.corpus.document import Problems
from data.corpus.examples import AUTO, Form
from data.corpus.fetch import debian_index
from data.corpus.named import CORPORA
from data.taught import npm, sets
from data.taught.bigbench import instructions, relation
from data.taught.debian import blocks, unwrapped
from data.taught.pypi import dialogue
from data.taught.rows import part
from data.taught.sets import SETS, rows_file
from recipes.registry import ROOT
from support.files import NoRoomError
from tests.data.corpus.tiny_bigbench import FILES, archive, cached, examples
from tests.data.taught import tiny


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in rows_file(name).read_text().splitlines()]


def test_clear_reviews_are_rows_and_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.pypi_cached(tmp_path / "cache", monkeypatch)
    found = {row["prompt"]: row for row in rows("tune_sentiment")}
    assert len(found) == 42  # a rating of 0.49 is not clear
    fine = found["Review: A fine film.\nSentiment:"]
    assert (fine["completion"], fine["choices"], fine["gold"]) == (" positive", [" negative", " positive"], 1)
    assert found["Review: It bores.\nSentiment:"]["completion"] == " negative"
    told = capsys.readouterr().err
    pair = {row["prompt"]: row for row in rows("tune_preference")}["Review: It bores.\nSentiment:"]
    assert (pair["chosen"], pair["rejected"], pair["gold"]) == (" negative", " positive", 0)
    assert "tune_preference: pairs of answers" in capsys.readouterr().err
    assert "tune_sentiment: sentences of film reviews" in told and "; licence: MIT (the archive)" in told
    (piece,) = corpora.pieces("tune_sentiment")
    assert piece.identity()[0] == str(rows_file("tune_sentiment"))
    texts = {each.text: each for each in piece.documents(Problems())}  # where no model is tuned it is read as texts
    read = texts["Review: A fine film.\nSentiment: positive"]
    assert (read.split, read.parts) == (fine["split"], ())
    (piece,) = corpora.pieces("tune_sentiment", Form(AUTO, 100))
    assert all(len(each.parts) == 2 for each in piece.documents(Problems()))
    assert capsys.readouterr().err == ""  # made once


def test_reviews_to_be_written_are_held_out_as_those_to_be_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.pypi_cached(tmp_path / "cache", monkeypatch)
    found = {f"Review:{row['completion']}\nSentiment:": row for row in rows("tune_control")}
    judged = {row["prompt"]: row for row in rows("tune_sentiment")}
    assert {text: row["split"] for text, row in found.items()} == {text: row["split"] for text, row in judged.items()}
    fine = found["Review: A fine film.\nSentiment:"]
    assert (fine["prompt"], fine["gold"]) == ("[sentiment=positive] Review:", 1)
    assert fine["choices"] == ["[sentiment=negative] Review:", "[sentiment=positive] Review:"]
    assert all(row["gold"] == judged[text]["gold"] for text, row in found.items())


def test_conversations_end_with_the_assistant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.pypi_cached(tmp_path / "cache", monkeypatch)
    made = list(dialogue())
    assert [row.content["messages"] for row in made] == [
        [{"role": "user", "content": "Are you sapient?"}, {"role": "assistant", "content": "No."}],
        [{"role": "user", "content": "are you sapient?"}, {"role": "assistant", "content": "Do you think I am?"}],
        *([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}] for _ in range(2)),
    ]
    assert made[0].group == made[1].group and part(made).left_out == {"equal to another": 1}


def test_an_archive_without_its_file_is_named_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.pypi_cached(tmp_path / "cache", monkeypatch)
    path = tiny.pack(tmp_path / "cache" / "vaderSentiment-3.3.2.tar.gz", {"else": b""})
    monkeypatch.setattr(sets.pypi, "VADER_SHA256", sets.pypi.fetch_sdist.__globals__["file_sha256"](path))
    with pytest.raises(ValueError, match=r"vaderSentiment-3.3.2.tar.gz holds no additional_resources/.*; remove it"):
        rows_file("tune_sentiment")
    assert [path.suffix for path in (tmp_path / "cache" / "taught").iterdir()] == [".lock"]


def test_poems_are_lines_behind_author_and_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.npm_index(tmp_path / "cache", monkeypatch)
    found = {row["prompt"]: row["completion"] for row in rows("tune_verse")}
    assert len(found) == 41  # those of the Song are others
    assert found["作者：李白\n題：靜夜思\n詩："] == "床前看月光，\n疑是地上霜。\n舉頭望山月，\n低頭思故鄉。"
    assert npm.dictionary() == [("月", "月", "yue4", ["moon"]), ("光", "光", "guang1", ["light", "(a ray)"])]


def test_a_package_of_npm_that_is_another_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.npm_index(tmp_path / "cache", monkeypatch)
    monkeypatch.setattr(npm, "POETRY_INTEGRITY", "sha512-other")
    with pytest.raises(ValueError, match=r"chinese-poetry@2.0.1 has sha512-.*, not sha512-other: not the file"):
        rows_file("tune_verse")
    assert not list((tmp_path / "cache").glob("*.tgz"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "tune_verse",
            r"could not download chinese-poetry@2.0.1: there is no npm here; install npm, check the network",
        ),
        ("tune_summary", r"could not fetch Debian's lists: there is no apt-get here; it takes Debian's apt-get"),
    ],
)
def test_without_the_client_one_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=words):
        rows_file(name)
    assert [path.suffix for path in (tmp_path / "taught").iterdir()] == [".lock"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.program(
        tmp_path / "cache", monkeypatch, "npm", 'echo "npm error code ENOSPC" >&2; echo "npm error x" >&2; exit 1'
    )
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(NoRoomError, match=r"no room left in .*cache for chinese-poetry@2.0.1; free some, or set"):
        rows_file("tune_verse")
    tiny.program(tmp_path / "cache", monkeypatch, "npm", 'echo "npm error code E404" >&2; echo "npm error" >&2; exit 1')
    with pytest.raises(ValueError, match=r"chinese-poetry@2.0.1: npm error code E404; install npm, check the network"):
        rows_file("tune_verse")
    tiny.pypi_cached(tmp_path / "cache", monkeypatch)
    monkeypatch.setattr(sets, "whole_file", Mock(side_effect=OSError(ENOSPC, "full")))
    with pytest.raises(NoRoomError, match=r"no room left to write .*tune_sentiment-2.jsonl: .*; free some and run"):
        rows_file("tune_sentiment")


def test_a_list_of_debian_is_read() -> None:
    text = "Package: a\nDescription-en: Short: one\n Long\n .\n  * b\n\n\nPackage: c\nTag: x,\n y\n"
    assert list(blocks(text)) == [
        {"Package": "a", "Description-en": "Short: one\nLong\n.\n * b"},
        {"Package": "c", "Tag": "x,\ny"},
    ]
    assert unwrapped("One\nline.\n.\nTwo:\n * b\n * c\nand on.") == "One line.\nTwo:\n* b\n* c and on."


def test_descriptions_are_summarised_and_translated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.apt(tmp_path / "cache", monkeypatch)
    summaries = {row["completion"]: row for row in rows("tune_summary")}
    assert len(summaries) == 43 and " Small" not in summaries
    begin = "The first line of a description that is long enough, and ends. tool 0\nIt has:\n* a list tool 0 and so on."
    assert summaries[" Short of tool"]["prompt"].startswith(begin)
    assert summaries[" Short of tool"]["prompt"].endswith(" more\nIn one line:")
    of_tool = {summaries[f" Short of {name}"]["split"] for name in ("tool", "tool-data", "libtool")}
    assert len(of_tool) == 1  # one source
    german = rows("tune_packages_de")
    assert len(german) == 30
    assert all(
        row["completion"].startswith(" Deutsch: Short of ") and row["prompt"].endswith("\nGerman:") for row in german
    )
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["taught"]


def test_a_source_is_told_by_its_other_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.apt(tmp_path / "cache", monkeypatch)
    (row,) = sets.debian.sources()
    assert row.content["completion"] == " Short of tool" and row.group == "tool"
    assert (
        row.content["prompt"].startswith("libtool: The first") and "\n\ntool-data: The first" in row.content["prompt"]
    )
    with pytest.raises(ValueError, match=r"tune_sources: .* gave .* rows; what was fetched is another"):
        rows_file("tune_sources")  # one row is no task


@pytest.mark.parametrize(("name", "word"), [("tune_help_de", "auf"), ("tune_help_zh", "打开")])
def test_help_pages_are_paired_by_file_and_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, word: str
) -> None:
    tiny.apt(tmp_path / "cache", monkeypatch)
    made = list(SETS[name].rows())
    language = {"auf": "German", "打开": "Chinese"}[word]
    assert len(made) == 41  # one of each page, and once the pair that is on every page
    pairs = {(row.content["prompt"], row.content["completion"]) for row in made}
    assert (f"English: To open& close file 31 of 1.\n{language}:", f" To {word}& close file 31 of 1.") in pairs
    assert (f"English: Every page\n{language}:", f" {word}") in pairs
    assert {row.group for row in made} == {f"text/{number}.html" for number in range(40)}


def test_a_list_that_does_not_come_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.apt(tmp_path / "cache", monkeypatch, missing="de")
    with pytest.raises(ValueError, match=r"Debian's lists: no \['de'\] came; it takes"), debian_index("en", "de"):
        pass
    tiny.program(tmp_path / "cache", monkeypatch, "apt-get", 'echo "W: x" >&2; echo "E: No network" >&2; exit 100')
    with pytest.raises(ValueError, match=r"Debian's lists: E: No network; it takes Debian's apt-get"), debian_index():
        pass


def test_tasks_of_bigbench_are_asked_as_they_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path, monkeypatch)
    made = {name: [row.content for row in SETS[name].rows()] for name in SETS if SETS[name].fixed_by.startswith("bigb")
            and name not in ("tune_story", "tune_instructions")}  # fmt: skip
    assert made["tune_read"][1] == {
        "prompt": "Title: Bowls\nBackground: Denver won.\nQ: Where?\nA:",
        "completion": " Paris",
        "answers": ["Paris", "France now"],
    }
    assert made["tune_facts"][1] == {"prompt": "The country of Y is", "completion": " Spain", "answers": ["Spain"]}
    assert made["tune_qasc"][1]["completion"] == " ice." and made["tune_qasc"][1]["gold"] == 1
    assert made["tune_winogrande"][1] == {
        "prompt": "Rats stay as the _ is dry.\nThe blank is:",
        "completion": " hut",
        "choices": [" holes", " hut"],
        "gold": 1,
    }
    assert [turn["content"] for turn in made["tune_coqa"][0]["messages"]] == [
        "Tom has a cat.\n\nWho?", "Tom", "A dog?", "no"
    ]  # fmt: skip
    assert made["tune_xsum"][0]["prompt"] == "A long article.\nIt goes on.\nIn one sentence:"


def test_a_fact_is_a_relation_and_a_subject() -> None:
    assert relation("The country of The Bank of X is") == ("The country", "The Bank of X")
    assert relation("Igbo is indigenous to") == ("is indigenous to", "Igbo")


def test_tasks_with_instructions_are_held_out_by_what_they_were_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: content for name, content in FILES.items() if "natural_instructions" not in name}
    given = ("Background Paragraph: heat melts ice", [" It melts. ", "No."])
    empty = ("Background Paragraph: none", [" "])
    for name in ("001_quoref_a", "059_ropes_story_generation", "043_essential_terms_x", "033_winogrande_b"):
        task = examples(given, *[empty] * ("quoref" in name))
        files[f"natural_instructions/subtask{name}/task.json"] = {**task, "task_prefix": "Definition:  do it."}
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path))
    monkeypatch.setattr("data.corpus.bigbench.SHA256", tiny.file_sha256(archive(tmp_path, files)))
    made = list(instructions())
    assert {row.content["task"][7:14]: row.split for row in made} == {
        "001_quo": "train", "059_rop": "test", "043_ess": "validation", "033_win": "test"
    }  # fmt: skip
    assert made[0].content["prompt"] == "Definition: do it.\n\nBackground Paragraph: heat melts ice\nAnswer:"
    assert (made[0].content["completion"], made[0].content["answers"]) == (" It melts.", ["It melts.", "No."])
    assert not part(made).left_out  # other tasks on a text are other tasks
    assert len(made) == 4  # an empty answer is none
    (story,) = sets.bigbench.story()
    assert story.content == {"prompt": "heat melts ice\nA story of it:", "completion": " It melts."}


def test_each_set_says_what_it_is() -> None:
    assert all(each.what and each.licence and each.fixed_by for each in SETS.values())
    assert set(SETS) <= set(CORPORA)
    state = corpora.state("tune_read")  # by which prepared data are found: not those of rows of an earlier form
    assert state["fixed_by"].endswith(f"; form {sets.FORM} of the rows") and not state["files"]
    assert replace(SETS["tune_read"], what="") != SETS["tune_read"]


def test_the_docs_name_the_files_of_today() -> None:
    text = "\n".join(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))
    found = re.findall(r"taught/(tune_\w+)-(\d+)\.jsonl", text)
    assert found and all(name in SETS and int(form) == sets.FORM for name, form in found)
