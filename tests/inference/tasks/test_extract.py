"""Extraction in lm-eval itself, with a model whose best sentence is known."""

from pathlib import Path

import pytest

from inference.ranks import Loading
from inference.tasks import harness
from inference.tasks.find import Asked
from inference.tasks.own.extract import beginning
from inference.tasks.own.rows import extracted
from support.errors import UserError
from tests.inference.tasks.test_own import Known, scores
from tests.inference.tasks.test_tune import given

ROW = {
    "prompt": "A cat sat here today. The dog ran  off again.\nIt rained.\nIn one line:",
    "completion": " The dog ran home",
    "split": "test",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_sentence_that_the_text_makes_likelier_by_most_is_the_summary(cache: Path) -> None:
    given(cache, "tune_summary", ROW, {**ROW, "split": "train"})
    odds = {" A cat sat": (-2.0, -10.0), " The dog ran": (-5.0, -20.0), " It rained.": (-1.0, -1.5)}
    model = Known({}, lambda before, words: odds[words][before == "In one line:"])
    found = scores(model, "extract_summary")["extract_summary"]  # the gains are 8, 15 and 0.5
    assert found == pytest.approx({"rouge1": 2 * 3 / (5 + 4), "rouge2": 2 * 2 / (4 + 3), "rougeL": 2 * 3 / (5 + 4)})
    assert model.candidates == [(before, words) for before in (ROW["prompt"], "In one line:") for words in odds]


def test_the_first_of_equal_sentences_is_taken(cache: Path) -> None:
    given(cache, "tune_summary", {**ROW, "completion": " A cat sat here today."})
    assert scores(Known({}, lambda *_: -1.0), "extract_summary")["extract_summary"]["rougeL"] == 1


def test_a_sentence_is_known_by_its_first_words_as_they_stand() -> None:
    assert [beginning(text) for text in ("The dog ran  off", "The  dog ran", "Two words", "One")] == [
        "The dog ran", "The  dog ran", "Two words", "One"
    ]  # fmt: skip


def test_the_first_sentences_of_a_long_text_are_ranked(cache: Path) -> None:
    text = " ".join(f"Number {n} is here." for n in range(60))
    given(cache, "tune_xsum", {**ROW, "prompt": f"{text}\nIn one sentence:", "answers": ["a", "b"]})
    (row,) = extracted("tune_xsum", ["prompt", "completion", "answers"])["test"]
    assert (len(row["sentences"]), row["sentences"][49]) == (50, "Number 49 is here.")
    assert (row["question"], row["answers"]) == ("In one sentence:", ["a", "b"])


def test_a_run_extracts(cache: Path, run: Path) -> None:
    given(cache, "tune_summary", ROW, ROW)
    values = harness.evaluate(run, Asked(("extract_summary",), limit=1), Loading())
    task = values["tasks"]["extract_summary"]
    possible = [pytest.approx(rouge) for rouge in (0, 2 * 3 / (5 + 4))]  # a cat, or rain; the dog
    assert task["samples"] == 1 and task["scores"]["rouge1"] in possible


@pytest.mark.parametrize("text", ["", " \n"])
def test_a_row_without_a_sentence_is_one_line(cache: Path, text: str) -> None:
    path = given(cache, "tune_summary", ROW, {**ROW, "prompt": f"{text}In one line:"})
    with pytest.raises(
        UserError, match=f'{path}: there is no sentence above "In one line:" in a row; mend it, or remo'
    ):
        scores(Known({}, lambda *_: -1.0), "extract_summary")
