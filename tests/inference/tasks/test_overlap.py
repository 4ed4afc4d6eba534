import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.samples.mixture import Mixture, PreparedPart
from inference.ranks import Loading
from inference.tasks import overlap
from inference.tasks.find import Asked
from inference.tasks.harness import evaluate
from inference.tasks.overlap import apart, clean_scores, example_text, shared, show, training_texts
from support.errors import UserError
from support.json_object import JsonObject
from tests.commands import documented
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
    assert shared(examples, iter(training)) == [1, 2, 0, 1, 0, 0]


def test_nothing_is_shared_with_nothing() -> None:
    assert shared([text(*range(20))], []) == [0]
    assert shared([], [text(*range(20))]) == []


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


def sample(number: int, acc: float, doc: str = "", through: str = "none") -> JsonObject:
    """What lm-eval logs of an example, as far as it is read."""
    scores = {"metrics": ["acc", "most"], "acc": acc, "most": acc}
    return {"doc_id": number, "doc": {"text": doc}, "filter": through, **scores}


AGGREGATION = {"acc": lambda items: sum(items) / len(items), "most": max}


def test_scores_of_clean_examples_stand_apart() -> None:
    samples = [sample(2, 1.0), sample(0, 0.0), sample(1, 0.5), sample(0, 1.0, through="strict")]
    strict = {"acc,strict": 1.0, "most,strict": 1.0}  # what an answer went through first, as lm-eval names scores
    assert clean_scores(samples, AGGREGATION, {1}) == {"acc": 0.5, "most": 1.0, **strict}
    assert clean_scores(samples, AGGREGATION, {0, 2}) == {"acc": 0.5, "most": 0.5} | dict.fromkeys(strict)


def test_each_task_s_examples_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    long, other = text(*range(13)), text(*range(20, 33))
    tasks = {name: task(None, "x") for name in ("one", "two")}
    for each in tasks.values():
        each.doc_to_text = lambda doc: doc["text"]
        each.aggregation = lambda: AGGREGATION
    samples = {
        "one": [sample(4, 1.0, long), sample(7, 0.0, other), sample(9, 0.5, "short")],
        "two": [sample(4, 0.25, long), sample(4, 0.25, long, "strict")],
    }
    found = apart(tasks, samples, [f"before {long} behind"])
    assert found == {
        "one": {"examples": 3, "shared": 1, "too_short": 1, "scores": {"acc": 0.25, "most": 0.5}},
        "two": {
            "examples": 1,
            "shared": 1,
            "too_short": 0,
            "scores": dict.fromkeys(("acc", "most", "acc,strict", "most,strict")),
        },
    }
    show(found)
    assert capsys.readouterr().out.splitlines() == [
        "one: 1 of 3 examples share n-grams with the training data; 1 are too short to look for; the others: "
        "acc 0.2500, most 0.5000",
        "two: 1 of 1 examples share n-grams with the training data; the others: none",
    ]


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
    with pytest.raises(UserError, match=r"does not say what it was trained on: .*leave out --overlap"):
        training_texts(run)


def test_scores_come_with_what_is_shared(run: Path, home: Path) -> None:
    asked = Asked(("made_choice", "made_writing"), folder=home / "tasks", overlap=True)
    with pytest.raises(UserError, match="does not say what it was trained on"):
        evaluate(run, asked, Loading())
    assert not (run / "evaluations").exists()
    long = "more and more the mat, the rat sat on the cat and more the cat sat on"
    _, folder = prepared([f"so {long} now", "the cat sat on the mat"], run)
    (run / "data.json").write_text(json.dumps(Mixture([PreparedPart("texts", folder, 1)]).described))
    values = evaluate(run, asked, Loading())
    assert values["overlap"].keys() == values["tasks"].keys()
    for name, each in values["overlap"].items():  # of five examples only one is long enough to be found
        assert (each["examples"], each["shared"]) == (5, 1), name
        assert each["scores"].keys() == values["tasks"][name]["scores"].keys()
    alone = evaluate(run, replace(asked, overlap=False), Loading())
    assert "overlap" not in alone and alone["tasks"] == values["tasks"]
    documented.check("evaluate --tasks", values, alone)
