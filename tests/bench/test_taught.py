"""The baselines of the sets of rows, on cases that are computed by hand."""

from pathlib import Path

import pytest

from bench import taught
from data.taught import words
from inference.tasks.own.rows import sentences
from tests.inference.tasks.test_tune import given


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path / "cache"))
    for each in (taught.rows, taught.say_in_chinese):
        each.cache_clear()
    return tmp_path / "cache"


def test_sentences_end_at_marks_and_lines() -> None:
    assert sentences("One v. two. Three!\n* four\n\nFive?") == ["One v. two.", "Three!", "* four", "Five?"]


def test_the_first_sentence_is_scored(cache: Path) -> None:
    row = {"prompt": "The cat sat. It ran.\nIn one line:", "completion": " the cat ran off", "split": "test"}
    given(cache, "tune_summary", row, {**row, "prompt": "the cat ran off\nx:", "split": "train"})
    found = list(taught.summaries("tune_summary"))
    assert found[0] == ("tune_summary", "first sentence", {"rougeL": pytest.approx(2 * 2 / (3 + 4))})
    assert found[1][1].startswith("TextRank")


def test_the_sentence_most_like_the_question_answers() -> None:
    assert taught.most_like("Ann won the cup. Bob lost it. It rained.", "Who lost the cup?") == "Ann won the cup."
    assert taught.most_like("Ann won the cup. Bob lost it. It rained.", "Who lost it?") == "Bob lost it."


def test_the_most_frequent_answer_of_a_relation(cache: Path) -> None:
    facts = [
        ("A", "Spain", "train"),
        ("B", "Spain", "train"),
        ("C", "France", "train"),
        ("D", "Spain", "test"),
        ("E", "Italy", "test"),
    ]
    given(
        cache,
        "tune_facts",
        *({"prompt": f"The country of {x} is", "completion": f" {y}", "answers": [y], "split": z} for x, y, z in facts),
    )
    assert next(taught.facts())[2] == {"em": 0.5, "f1": 0.5, "begins": 0.5}


def test_word_by_word_takes_the_meaning_that_is_read_most(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        ("刷", ["to select"]),
        ("选择", ["to select; to pick"]),
        ("细胞", ["cell (biology)"]),
        ("单元格", ["cell"]),
    ]
    monkeypatch.setattr(words, "dictionary", lambda: [("", word, "", means) for word, means in entries])
    row = {"prompt": "English: Select the cells, please.\nChinese:", "completion": " 选择单元格。", "split": "train"}
    given(cache, "tune_help_zh", row)
    assert taught.word_by_word(row) == "选择单元格， please。"
    assert taught.english(row) == "Select the cells, please."


def test_chance_is_one_of_the_choices(cache: Path) -> None:
    rows = [{"choices": ["a"] * number, "split": split} for number, split in ((2, "test"), (4, "test"), (9, "train"))]
    given(cache, "tune_qasc", *rows)
    assert next(taught.chance("tune_qasc"))[2] == {"acc": 0.375}


def test_a_set_without_a_baseline_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["taught", "tune_dialogue"])
    with pytest.raises(SystemExit) as caught:
        taught.main()
    assert caught.value.code == 2
    assert "tune_dialogue has no baseline; give some of tune_sentiment" in capsys.readouterr().err
