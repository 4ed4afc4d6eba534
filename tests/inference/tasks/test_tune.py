"""The tasks of the sets to learn from, in lm-eval itself, with a model whose answers are known."""

import json
import math
from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from data.taught.sets import FORM, SETS, rows_file
from inference.tasks.own import rows, verse
from support.errors import UserError
from tests.data.taught import tiny
from tests.inference.tasks.test_own import OWN, Known, scores


def given(folder: Path, name: str, *content: object) -> Path:
    """Make the rows of a set, in the cache `folder`."""
    path = folder / "taught" / f"{name}-{FORM}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_set_is_a_task_of_its_name() -> None:
    manager = TaskManager(include_path=str(OWN), include_defaults=False)
    assert {name for name in manager.all_subtasks if name.startswith("tune_")} == set(SETS)
    for name in SETS:
        entry = manager.task_index[name].cfg
        assert entry and entry["dataset_kwargs"]["rows"] == name
        for metric in entry["metric_list"]:  # lm-eval looks for both after all the work
            assert {"aggregation", "higher_is_better"} <= metric.keys()


def test_a_task_asks_the_held_out_rows_in_the_words_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.pypi_cached(tmp_path / "cache", monkeypatch)
    held_out = [row for row in map(json.loads, rows_file("tune_sentiment").open()) if row["split"] == "test"]
    first = held_out[0]["prompt"]
    model = Known({}, lambda prompt, choice: -1.0 if (choice == " positive") == (prompt == first) else -2.0)
    right = [row["gold"] == (row["prompt"] == first) for row in held_out]
    assert scores(model, "tune_sentiment") == {"tune_sentiment": {"acc": sum(right) / len(right)}}
    assert True in right and False in right
    assert model.candidates == [(row["prompt"], choice) for row in held_out for choice in (" negative", " positive")]


def test_texts_answers_and_translations_are_compared(cache: Path) -> None:
    row = {"prompt": "Long text.\nIn one line:", "completion": " the cat sat", "split": "test"}
    given(cache, "tune_summary", row, {**row, "prompt": "seen", "split": "train"})
    given(cache, "tune_help_zh", {**row, "prompt": "English: a\nChinese:", "completion": " 编辑完证书之后"})
    given(cache, "tune_facts", {**row, "prompt": "The country of Y is", "completion": " Spain", "answers": ["Spain"]})
    model = Known(
        {
            "Long text.\nIn one line:": " the cat ran off",
            "English: a\nChinese:": " 编辑完证书之后",
            "The country of Y is": " Spain.",
        },
        lambda *_: 0.0,
    )
    found = scores(model, "tune_summary", "tune_help_zh", "tune_facts")
    assert found["tune_summary"]["rouge1"] == pytest.approx(2 * 2 / (4 + 3))
    assert found["tune_help_zh"] == pytest.approx({"bleu": 100, "chrf": 100})
    assert found["tune_facts"] == {"em": 1, "f1": 1, "begins": 1}
    assert model.prompts == ["Long text.\nIn one line:", "English: a\nChinese:", "The country of Y is"]


def test_of_a_conversation_the_last_answer_is_scored(cache: Path) -> None:
    turns = [("user", "Hi"), ("assistant", "Yes?"), ("user", "Who?"), ("assistant", "I am one")]
    given(cache, "tune_dialogue", {"messages": [{"role": a, "content": b} for a, b in turns], "split": "test"})
    model = Known({}, lambda *_: -6.0)
    assert scores(model, "tune_dialogue")["tune_dialogue"]["word_perplexity"] == pytest.approx(math.exp(6 / 3))
    assert model.candidates == [("User: Hi\nAssistant: Yes?\nUser: Who?\nAssistant:", " I am one")]


def test_control_is_whether_a_text_is_likelier_behind_its_own_prefix(cache: Path) -> None:
    prefixes = ["[sentiment=negative] Review:", "[sentiment=positive] Review:"]
    texts = [(" It bores me", 0), (" A fine film", 1), (f" So it goes {'on ' * 9}and on", 1)]
    content = [
        {"prompt": "", "completion": text, "choices": prefixes, "gold": at, "split": "test"} for text, at in texts
    ]
    given(cache, "tune_control", *content)
    first = f" So it goes{' on' * 9}"  # twelve words
    odds = {" It bores me": (-3.0, -9.0), " A fine film": (-9.0, -6.0), first: (-4.0, -6.0)}
    model = Known({}, lambda prefix, text: odds[text][prefixes.index(prefix)])
    found = scores(model, "tune_control")["tune_control"]
    assert found == pytest.approx({"acc": 2 / 3, "word_perplexity": math.exp((3 + 6 + 6) / (3 + 3 + 12))})
    assert model.candidates == [(prefix, text) for text in odds for prefix in prefixes]


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("tune_sentiment", {"prompt": "a"}, 'line 2 has no field "completion"'),
        ("tune_sentiment", {"prompt": "a", "completion": " b", "choices": [" b"], "gold": 1}, "no number of a choice"),
        ("tune_summary", {"prompt": "a", "completion": " b"}, 'line 2 has no field "split"'),
        ("tune_dialogue", {"messages": [{"role": "user", "content": "a"}]}, 'ends with an answer in field "messages"'),
        ("tune_dialogue", {"messages": [{"role": "bot", "content": "a"}]}, 'no conversation .* in field "messages"'),
    ],
)
def test_a_wrong_row_is_named(cache: Path, name: str, row: dict[str, object], words: str) -> None:
    good = {
        "tune_dialogue": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    }.get(name, {"prompt": "a", "completion": " b", "choices": [" b"], "gold": 0})  # fmt: skip
    path = given(cache, name, {**good, "split": "train"}, row)
    fields = TaskManager(include_path=str(OWN), include_defaults=False).task_index[name].cfg
    assert fields
    with pytest.raises(UserError, match=rf"{path} line 2 has .*; mend it, or remove {path}, so") as caught:
        rows.taught(name, fields["dataset_kwargs"]["fields"])
    assert caught.match(words)


def test_the_form_of_verse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [("光", "guang1"), ("霜", "shuang1"), ("鄉", "xiang1"), ("月", "yue4"), ("雪", "xue3")]
    monkeypatch.setattr(verse, "dictionary", lambda: [(letter, letter, sound, []) for letter, sound in words])
    verse._rhymes_of_letters.cache_clear()
    poem = "床前看月光，\n疑是地上霜。\n舉頭望山月，\n低頭思故鄉。"
    assert verse.form({}, [poem]) == {"lines": 1, "rhyme": 1}
    assert verse.form({}, ["床前光，疑是霜。\n舉頭望山月，低頭思故雪。"]) == {"lines": 0.5, "rhyme": 0}
    assert verse.form({}, ["   "]) == {"lines": 0, "rhyme": 0}
    assert verse.rhymes(["一", "霜", "二", "鄉", "三", "雪", "四", "?"]) == [True, False, False]
    assert verse.rhymes(["一", "霜", "二", "霜", "三", "鄉", "四", "鄉"]) == [False, True, False]  # the same said again
    assert verse.rhymes(["一"]) == verse.rhymes([]) == []
    verse._rhymes_of_letters.cache_clear()


def test_sounds_rhyme_as_they_are_spoken_and_not_as_they_are_spelled() -> None:
    alike = ["liu2 lou2 you3 qiu1", "gui1 fei1 wei2", "cun1 men2", "ju1 nu:3 yu2", "jie2 yue4 lu:e4", "yuan2 an1 tian1"]
    found = [{verse.rhyme_of(sound) for sound in sounds.split()} for sounds in alike]
    assert all(len(ends) == 1 for ends in found) and len(set.union(*found)) == len(alike)
    other = {verse.rhyme_of(sound) for sound in ("shu1", "ju1", "ge1", "jie2", "men2", "yun2")}
    assert len(other) == 6
