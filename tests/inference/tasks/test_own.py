"""Our own tasks in lm-eval itself, with a model whose answers are known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from data.corpus.bigbench import SOURCES, rows_file
from data.taught.sets import SETS
from inference.ranks import Loading
from inference.tasks import harness
from inference.tasks.find import Asked, find
from inference.tasks.model import TaskModel
from inference.tasks.own import rows
from recipes.registry import ROOT
from support.errors import UserError
from tests.data.corpus.tiny_bigbench import cached

OWN = ROOT / "inference" / "tasks" / "own"


class Known(LM):
    """It writes `texts[prompt]`, and finds a candidate as likely as `likely` says of the prompt and the candidate."""

    def __init__(self, texts: dict[str, str], likely: Callable[[str, str], float]) -> None:
        super().__init__()
        self.texts, self.likely = texts, likely
        self.prompts: list[str] = []
        self.candidates: list[tuple[str, str]] = []

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self.candidates += [request.args for request in requests]
        return [(self.likely(*request.args), self.likely(*request.args) > -1) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise AssertionError("no task asks for it")

    def generate_until(self, requests: list[Instance]) -> list[str]:
        self.prompts += [request.args[0] for request in requests]
        return [self.texts.get(request.args[0], " nothing") for request in requests]


def scores(model: Known, *names: str) -> dict[str, dict[str, float]]:
    """The scores of tasks, by task and metric."""
    loaded: Any = TaskManager(include_path=str(OWN), include_defaults=False).load(list(names))
    found = evaluate(model, loaded, bootstrap_iters=0, log_samples=False)
    return {
        task: {key.split(",")[0]: value for key, value in values.items() if "," in key and "stderr" not in key}
        for task, values in found["results"].items()
    }


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached(tmp_path / "cache", monkeypatch)


def test_there_is_a_task_for_each_source_and_each_metric_is_whole(package: None) -> None:
    manager = TaskManager(include_path=str(OWN), include_defaults=False)
    extracted = {f"extract_{name}" for name in ("summary", "sources", "xsum", "wikilingua")}
    assert set(manager.all_subtasks) == {*SOURCES, *SETS, *extracted, "lambada_usual", "lambada_strict"}
    for task in manager.load(["bb"])["tasks"].values():  # lm-eval looks for both after all the work
        assert task.aggregation().keys() == task.higher_is_better().keys() == {*task._metric_fn_list}
        assert all(task.higher_is_better().values())


def test_answers_are_written_and_compared(package: None) -> None:
    squad = "Title: Bowls\nBackground: Denver won.\nQ: {}\nA:"
    story = "Tom has a cat.\n\n"
    model = Known(
        {
            squad.format("Who won?"): " the Broncos!",
            squad.format("Where?"): " Paris in France",
            squad.format("Who of nyt?"): " Ann",
            f"{story}Q: Who?\nA:": " Tom",
            f"{story}Q: Who?\nA: Tom\n\nQ: A dog?\nA:": " cat",
            "The genre of X is": " parody, mostly",
            "The country of Y is": " Spain",
        },
        lambda *_: 0.0,
    )
    found = scores(model, "bb_squad", "bb_squad_nyt", "bb_squad_wiki", "bb_coqa", "bb_wikidata")
    assert found == {
        "bb_squad": {"em": 0.5, "f1": 0.75},
        "bb_squad_nyt": {"em": 1, "f1": 1},
        "bb_squad_wiki": {"em": 0, "f1": 0},
        "bb_coqa": {"em": pytest.approx((1 + 2 / 3) / 2), "f1": pytest.approx((1 + 2 / 3) / 2)},
        "bb_wikidata": {"em": 0.5, "f1": pytest.approx((2 / 3 + 1) / 2), "begins": 1},
    }
    assert set(model.texts) - {squad.format("Who of nyt?")} < set(model.prompts)


def test_the_likeliest_choice_counts(package: None) -> None:
    right = {("cold?", " Yes"), ("hot?", " Yes"), ("Why ?", " For fun ."), ("warms?", " sun."), ("cools?", " ice.")}

    def likely(prompt: str, choice: str) -> float:
        return -1.0 if any(prompt.endswith(f"{end}\nA:") and choice == one for end, one in right) else -10.0

    model = Known({}, likely)
    found = scores(model, "bb_strategyqa", "bb_cosmosqa", "bb_qasc")
    assert found["bb_strategyqa"] == {"acc": 0.5, "acc_norm": 0.5}  # the second answer is No
    assert found["bb_cosmosqa"] == {"acc": 1, "acc_norm": 1}
    assert found["bb_qasc"] == {"acc": 1, "acc_norm": 1}
    assert ("Q: Is it cold?\nA:", " Yes") in model.candidates
    assert ("I ran .\nQ: Why ?\nA:", " Never .") in model.candidates
    assert ("ice cools.\nQ: What cools?\nA:", " fire.") in model.candidates


def test_of_equal_choices_the_right_one_has_no_advantage(package: None) -> None:
    found = scores(Known({}, lambda *_: -1.0), "bb_qasc", "bb_winogrande")  # the first of equals is taken
    assert [values["acc"] for values in found.values()] == [0.5, 0.5]


def test_winogrande_scores_the_rest_of_the_sentence(package: None) -> None:
    model = Known({}, lambda context, rest: -1.0 if context.endswith("holes") else -2.0)
    assert scores(model, "bb_winogrande") == {"bb_winogrande": {"acc": 0.5}}
    assert model.candidates[:2] == [
        ("Rats fled holes for fields as the holes", " were full."),
        ("Rats fled holes for fields as the hut", " were full."),
    ]


def test_texts_are_compared_with_their_references(package: None) -> None:
    triples = "The following is a list of triples representing some knowledge: (A | is | B)\nFormulate a {}:"
    model = Known(
        {
            "summarize: A long article.\nIt goes on.\none-sentence summary:": " the cat ran off",
            triples.format("sentence using the knowledge from the triples"): " It is B, and A is it.",
            triples.format("Russian sentence using the knowledge from the triples"): " Это Б.",
        },
        lambda *_: 0.0,
    )
    found = scores(model, "bb_xsum", "bb_webnlg", "bb_webnlg_ru", "bb_wikilingua", "bb_wikilingua_18")
    assert found["bb_xsum"]["rouge1"] == pytest.approx(2 * 2 / (4 + 3))
    assert found["bb_webnlg"] == pytest.approx({"rouge1": 1, "rouge2": 1, "rougeL": 1, "bleu": 100, "chrf": 100})
    assert found["bb_webnlg_ru"].keys() == {"bleu", "chrf"} and found["bb_webnlg_ru"]["chrf"] == pytest.approx(100)
    assert found["bb_wikilingua"]["rougeL"] == found["bb_wikilingua_18"]["rougeL"] == 0


# --- LAMBADA ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "lambada.jsonl"
    lines = ["he had a dog .\nit was her dog", "they met in  1984"]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    monkeypatch.setenv(rows.LAMBADA, str(path))
    return path


def test_lambada_s_two_rules_are_said_apart(texts: Path) -> None:
    starts = ["he had a dog .\nit was her", "they met in"]
    model = Known({starts[0]: " dogs", starts[1]: " 1984."}, lambda _, word: -0.5 if word == " dog" else -1.5)
    found = scores(model, "lambada_usual", "lambada_strict")
    assert model.candidates == [(starts[0], " dog"), (starts[1], " 1984")]
    assert model.prompts == starts
    assert found == {  # "dogs" has the tokens of "dog", but is another word
        "lambada_usual": {"acc": 0.5, "perplexity": pytest.approx(2.718281828)},
        "lambada_strict": {"acc": 0.5},
    }


def test_lambada_may_be_a_folder(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rows.LAMBADA, str(texts.parent))
    assert len(rows.lambada()["test"]) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"text": "fine text"}\n{"txt": "a b"}\n', r'lambada.jsonl line 2 has no field "text"'),
        ('{"text": "word"}\n', r"lambada.jsonl.*'word' has no word before its last one"),
    ],
)
def test_a_wrong_text_of_lambada_is_named(texts: Path, content: str, words: str) -> None:
    texts.write_text(content)
    with pytest.raises(UserError, match=words):
        rows.lambada()


def test_lambada_without_a_place_says_how_to_give_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(rows.LAMBADA, raising=False)
    with pytest.raises(UserError, match=r"set STAGECRAFT_LAMBADA to its JSON lines .* or ask for .* lambada_openai"):
        rows.lambada()


# --- Bad rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "wrong", "words"),
    [
        ("bb_squad", {"question": ...}, 'line 2 has no field "question"'),
        ("bb_squad", {"question": 7}, 'line 2 has no text in field "question"'),
        ("bb_squad", {"answers": []}, 'line 2 has no list of texts in field "answers"'),
        ("bb_squad", {"answers": "Paris"}, 'line 2 has no list of texts in field "answers"'),
        ("bb_qasc", {"gold": 4}, 'line 2 has no number of a choice in field "gold"'),
        ("bb_qasc", {"gold": ...}, 'line 2 has no field "gold"'),
    ],
)
def test_a_row_without_a_field_is_named(package: None, task: str, wrong: dict[str, Any], words: str) -> None:
    path = rows_file(task)
    lines = path.read_text().splitlines()
    row = {name: value for name, value in (json.loads(lines[1]) | wrong).items() if value is not ...}
    path.write_text("\n".join([lines[0], json.dumps(row)]))
    with pytest.raises(UserError) as caught:
        TaskManager(include_path=str(OWN), include_defaults=False).load([task])
    assert str(caught.value).startswith(f"{path} {words}; mend it, or remove {path.parent}")


def test_what_is_wrong_reaches_the_user_as_it_is_said(package: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert "bb_qasc" in find(Asked(("bb_qasc",))).tasks
    assert "bb_qasc: QASC" in capsys.readouterr().err  # lm-eval is silenced, and licences are not
    path = rows_file("bb_qasc")
    path.write_text("{}")
    with pytest.raises(UserError) as caught:
        find(Asked(("bb_qasc",)))
    assert str(caught.value).startswith(f'{path} line 1 has no field "context"')


def test_a_task_that_needs_a_longer_context_is_refused_before_the_work(
    package: None, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TaskModel, "_scored", lambda *_: pytest.fail("it works already"))
    with pytest.raises(UserError, match=r"task bb_xsum: .* 64 new tokens leave no room .* context of 32"):
        harness.evaluate(run, Asked(("bb_qasc", "bb_xsum")), Loading())
    assert not (run / "evaluations").exists()


def test_a_line_that_is_no_object_is_named(package: None) -> None:
    path = rows_file("bb_xsum")
    path.write_text('{"input": "x", "answers": ["y"]}\n["z"]\n')
    with pytest.raises(UserError, match=r"bb_xsum.jsonl line 2 is no JSON object"):
        rows.load("bb_xsum", ["input", "answers"])
