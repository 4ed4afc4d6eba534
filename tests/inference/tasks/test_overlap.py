import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.samples.mixture import Mixture, PreparedPart
from inference.tasks import overlap
from inference.tasks.overlap import clean_scores, example_text, shared, training_texts
from support.errors import UserError
from tests.inference.test_evaluate import prepared

WORDS = [f"word{number}" for number in range(40)]


def text(*numbers: int) -> str:
    return " ".join(WORDS[number] for number in numbers)


def test_an_example_with_thirteen_words_of_training_is_found() -> None:
    training = [text(*range(20)).upper() + "!", text(*range(5, 30)), text(30, 31)]
    examples = [
        text(39, *range(3, 16), 38),  # words 3 to 15, of the first document alone
        text(39, *range(6, 19)),  # of both
        text(39, *range(3, 15), 38),  # twelve words in a row are too few
        text(*range(4, 12)),  # eight words, all of the example
        text(*range(4, 11)),  # too short to look for
        text(*range(39, 20, -1)),  # the other way round
    ]
    found = shared(examples, iter(training))
    assert found.documents == (1, 2, 0, 1, 0, 0)
    assert found.clean == [False, False, True, False, True, True]
    assert found.too_short == 1


def test_nothing_is_shared_with_nothing() -> None:
    assert shared([text(*range(20))], []).documents == (0,)
    assert shared([], [text(*range(20))]).documents == ()


def task(text: Any, target: Any, choices: Any = None) -> Any:
    return SimpleNamespace(
        config=SimpleNamespace(doc_to_choice=choices),
        doc_to_text=lambda doc: text,
        doc_to_target=lambda doc: target,
        doc_to_choice=lambda doc: choices,
    )


@pytest.mark.parametrize(
    ("asked", "whole"),
    [
        (task("Q: who?", "Ann"), "Q: who? Ann"),
        (task("Q: who?", ["Ann", "Bob"]), "Q: who? Ann"),
        (task("Q: who?", 1, ["Ann", "Bob"]), "Q: who? Bob"),
        (task("Q: who?", [1, 0], ["Ann", "Bob"]), "Q: who? Bob"),
        (task(1, "fell.", ["as Ann", "as Bob"]), "as Bob fell."),
    ],
)
def test_an_example_is_its_question_and_its_answer(asked: Any, whole: str) -> None:
    assert example_text(asked, {}) == whole


def test_scores_of_clean_examples_stand_apart() -> None:
    samples = [
        {"doc_id": number, "metrics": ["acc", "most"], "acc": acc, "most": acc}
        for number, acc in ((2, 1.0), (0, 0.0), (1, 0.5))
    ]
    aggregation = {"acc": lambda items: sum(items) / len(items), "most": max}
    assert clean_scores(samples, aggregation, [True, False, True]) == {"acc": 0.5, "most": 1.0}
    assert clean_scores(samples, aggregation, [False] * 3) == {"acc": None, "most": None}


def test_a_run_s_training_texts_are_read_from_its_tokens(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{number} " + "the cat sat on the mat, " * (number % 7) for number in range(90)]
    _, folder = prepared(texts, run)
    (run / "data.json").write_text(json.dumps(Mixture([PreparedPart("texts", folder, 1)] * 2).described))
    found = list(training_texts(run))
    assert found == texts[:-1]  # the last one is held out; each comes once, though the part is named twice
    for tokens in (1, 50):  # a document or some at a time
        monkeypatch.setattr(overlap, "BATCH_TOKENS", tokens)
        assert list(training_texts(run)) == found


def test_a_run_without_its_data_is_one_line(run: Path) -> None:
    with pytest.raises(UserError, match=r"data.json is missing"):
        list(training_texts(run))
