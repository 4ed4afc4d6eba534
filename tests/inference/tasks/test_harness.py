"""What is wrong with tasks, a tokeniser or a disk is said in one line, before the work where that can be."""

import errno
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference.ranks import Loading
from inference.tasks import find as finding
from inference.tasks import harness
from inference.tasks.find import Asked, find
from recipes.registry import ROOT
from support import files
from support.errors import WRONG_INPUT, UserError
from support.files import NoRoomError
from tests.inference.tasks import made

CHOICE, WRITING = made.KINDS["made_choice"], made.KINDS["made_writing"]
GOOD = {"question": "the cat", "choices": ["a", "b"], "answer": 0}
LOST = {"question": "the cat", "choices": ["a", "b"]}
HUB = "  - {metric: rouge, aggregation: mean, higher_is_better: true}\n"
OWN = "process_results: !function code.results\nmetric_list:\n  - {metric: mine, higher_is_better: true}\n"
UNAGGREGATED = CHOICE.split("metric_list")[0] + OWN


def refused(asked: Asked, words: str, run: Callable[[Asked], object] = find) -> None:
    with pytest.raises(UserError, match=words) as caught:
        run(asked)
    assert "\n" not in str(caught.value) and caught.value.status == WRONG_INPUT


@pytest.mark.parametrize(("text", "rows", "words"), [
    (CHOICE, [GOOD, LOST], r"rows.jsonl, line 2: no field 'answer', which the task needs; add it"),
    (CHOICE, [GOOD, {**GOOD, "answer": None}], r"rows.jsonl, line 2: no field 'answer'"),
    (CHOICE, [{**LOST, "anwser": 1}], r"line 1: no field 'answer', .* did you mean anwser"),
    (CHOICE, [], r"rows.jsonl holds no rows"),
    (CHOICE.replace("{{question}}", "{{question"), [GOOD], r"task bad: doc_to_text is no template"),
    (CHOICE + HUB, [GOOD], r"task bad: the metric rouge would come from the hub; use one of lm-eval's own"),
    (CHOICE.replace("aggregation: mean", "hf_evaluate: true"), [GOOD], r"the metric acc would come from the hub"),
    (UNAGGREGATED, [GOOD], r"task bad: the metric mine has no aggregation; say it beside the metric"),
    (CHOICE.replace("multiple_choice", "multiple"), [GOOD], r"task bad cannot be loaded: ValueError: .*output_type"),
    (CHOICE.replace("{{answer}}", "{{answer + 9}}"), [GOOD], r"task bad (cannot be loaded|fails on its first)"),
    ("doc_to_text: [", [GOOD], r"--task-folder: .*bad.yaml cannot be read: .*; mend it"),
])  # fmt: skip
def test_a_task_that_is_wrong_is_refused_before_the_work(
    text: str, rows: list[dict[str, object]], words: str, tmp_path: Path
) -> None:
    folder = made.folder(tmp_path / "folder", {"bad": text}, rows)
    (folder / "code.py").write_text("def results(doc, results):\n    return {'mine': 1}\n")
    refused(Asked(("bad",), folder=folder), words)


def test_rows_that_are_none(tmp_path: Path) -> None:
    folder = made.folder(tmp_path / "folder", {"bad": CHOICE}, [GOOD])
    for text, words in {"{": "line 2: not JSON", "[]": "line 2: no JSON object", "\udcff": "is not UTF-8"}.items():
        line = f"{json.dumps(GOOD)}\n{text}\n".encode(errors="surrogateescape")
        (folder / "rows.jsonl").write_bytes(line)
        refused(Asked(("bad",), folder=folder), rf"rows.jsonl,? {words}")
    (folder / "rows.jsonl").unlink()
    refused(Asked(("bad",), folder=folder), r"rows.jsonl does not exist")


def test_a_full_cache_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import arrow_writer

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = made.folder(tmp_path / "other", {"bad": CHOICE}, [GOOD, {**GOOD, "question": "another"}])
    monkeypatch.setattr(arrow_writer.ArrowWriter, "write_table", full)
    with pytest.raises(NoRoomError, match=r"task bad: no room left for its data in .*cache; free some"):
        find(Asked(("bad",), folder=folder))


def test_a_path_that_is_no_run_is_said_to_be_none(tmp_path: Path, home: Path) -> None:
    asked = Asked(("made_choice",), folder=home / "tasks")
    refused(asked, r"none is not a run directory", lambda asked: harness.evaluate(tmp_path / "none", asked, Loading()))


def test_a_field_that_a_template_asks_about_may_lack(tmp_path: Path) -> None:
    asks = "{{question}}{% if hint %} ({{hint}}){% endif %}{{' ' ~ more if more else ''}} {{end|default('x')}}"
    text = CHOICE.replace("{{question}}", asks)
    row = {**GOOD, "hint": "x", "more": "y"}
    folder = made.folder(tmp_path / "folder", {"asks": text}, [row, GOOD])
    assert set(find(Asked(("asks",), folder=folder)).tasks) == {"asks"}
    made.folder(folder, {"asks": text}, [row, {**row, "question": None}])
    refused(Asked(("asks",), folder=folder), "line 2: no field 'question'")


@pytest.mark.parametrize(("wrong", "words"), [
    ({"choices": "abc"}, "task bad, document 1: the task's own code fails: ValueError: malformed node"),
    ({"choices": []}, "task bad, document 1: the task's own code fails: ValueError: not enough values to unpack"),
])  # fmt: skip
def test_a_later_row_on_which_a_task_fails_is_named(
    wrong: dict[str, object], words: str, home: Path, tmp_path: Path
) -> None:
    rows = [{**GOOD, "choices": "['a', 'b']"}, {**GOOD, "choices": str(wrong["choices"])}]
    folder = made.folder(tmp_path / "folder", {"bad": CHOICE}, rows)
    refused(Asked(("bad",), folder=folder), words, lambda asked: harness.evaluate(home / "run", asked, Loading()))
    assert not (home / "run" / harness.FOLDER).exists()


def test_a_task_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    asked: list[bool] = []

    def counted(include_path: object, include_defaults: bool) -> TaskManager:
        asked.append(include_defaults)
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr("lm_eval.tasks.TaskManager", counted)
    folder = made.folder(tmp_path / "folder")
    assert set(find(Asked(("made_choice", "made_rolling"), folder=folder)).tasks) == {"made_choice", "made_rolling"}
    assert asked == [False]  # lm-eval's own are looked through only where they are asked for
    refused(Asked(("made_choise",), folder=folder), r"there is no task made_choise; did you mean made_choice")
    assert asked[1:] == [False, True]
    refused(Asked(("a",), folder=tmp_path / "none"), r"--task-folder .*none is no directory")
    (tmp_path / "empty").mkdir()
    refused(Asked(("a",), folder=tmp_path / "empty"), r"holds no \*.yaml")


def test_the_hub_without_a_network(tmp_path: Path) -> None:
    folder = made.folder(tmp_path / "folder", {"far": CHOICE}, [GOOD])
    text = (folder / "far.yaml").read_text().replace("dataset_path: json", "dataset_path: nobody/nothing_such")
    (folder / "far.yaml").write_text(text)
    refused(Asked(("far",), folder=folder), r"task far: its data \(nobody/nothing_such\) cannot be read: .* network")


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    refused(Asked(("x",)), r"tasks need the package lm-eval; install it with pip install lm_eval==0.4.13")
    pinned = finding.PIP.removeprefix("pip install ")
    assert f'tasks = ["{pinned}"]' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(("text", "words"), [
    (CHOICE.replace("{{choices}}", "{{[question * 9, 'x']}}"),
     r"task odd, document 0: candidate '.*' has \d+ tokens, more than the model's context of 16; make it shorter"),
    (WRITING.replace("max_gen_toks: 9", "max_gen_toks: 16"), r"task odd: .*16 new tokens leave no room .*1 to 15"),
    (WRITING.replace("max_gen_toks: 9", "typical_p: 0.9"), r"generation_kwargs has typical_p, which is not known here"),
    (WRITING.replace("max_gen_toks: 9", "do_sample: true, temperature: 0.5, top_p: 2, max_gen_toks: 3"),
     r"task odd: generation_kwargs: top-p must be"),
])  # fmt: skip
def test_what_the_model_cannot_do_is_refused(text: str, words: str, home: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{**GOOD, "question": "the cat sat on the mat, the rat"}]
    folder = made.folder(tmp_path / "folder", {"odd": text}, rows)
    refused(Asked(("odd",), folder=folder), words, lambda asked: harness.evaluate(home / "run", asked, Loading()))
    assert not (home / "run" / harness.FOLDER).exists()
    from inference.generate import load
    from inference.tasks.model import Checked

    def checked(asked: Asked) -> None:
        harness.check(Checked(load(home / "run")[0]), find(asked))

    refused(Asked(("odd",), folder=folder), words, checked)  # as a run that trains does at its start


def test_a_tokeniser_that_is_missing_or_another_one(home: Path, tmp_path: Path) -> None:
    from data.tokens import tokenisers

    asked, own = Asked(("made_choice",), folder=home / "tasks"), home / "run" / "tokeniser"

    def run(asked: Asked) -> object:
        return harness.evaluate(home / "run", asked, Loading())

    own.rename(tmp_path / "kept")
    try:
        refused(asked, r"run/tokeniser is missing; restore it", run)
        words = [" ".join(f"word{n}x{n * 7919 % 9973}" for n in range(3000))] * 3
        tokenisers.save(tokenisers.train_bpe(words, 900), own)
        refused(asked, r"run/tokeniser has \d+ entries for a model of 400: it is not the one that", run)
        (home / "run" / "data.json").write_text(json.dumps({"parts": [{"vocab_size": 281}]}))
        tokenisers.save(tokenisers.train_bpe(["abc"], 300), own)
        refused(asked, r"entries for a model of 281: it is not the one that", run)
    finally:
        shutil.rmtree(own, ignore_errors=True)
        (home / "run" / "data.json").unlink(missing_ok=True)
        (tmp_path / "kept").rename(own)


def test_the_examples_in_front_are_those_that_lm_eval_draws_each_time(home: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from inference.tasks.pretended import Pretended

    found = find(Asked(("made_choice",), 2, folder=home / "tasks"))
    (task,) = found.tasks.values()
    model = Pretended(task)
    manager = TaskManager(include_path=str(home / "tasks"), include_defaults=False)
    theirs = simple_evaluate(model, tasks=["made_choice"], num_fewshot=2, task_manager=manager, bootstrap_iters=0)
    wanted = {each["doc_id"]: [*each["arguments"]] for each in theirs["samples"]["made_choice"]}
    harness.check(model, found)  # type: ignore[arg-type]
    for kept in (False, False, True, True):
        if kept:
            harness.keep_requests(found)
        samples: dict[str, Any] = {}
        values = harness.scores(model, found, samples=samples)  # type: ignore[arg-type]
        asked = {each["doc_id"]: [*each["arguments"]] for each in samples["made_choice"]}
        assert asked == wanted and len({len(texts[0][0]) for texts in asked.values()}) > 1
        assert values["made_choice"]["scores"]["acc"] == theirs["results"]["made_choice"]["acc,none"]


def test_a_model_that_has_diverged_has_no_scores(home: Path) -> None:
    from inference.generate import load
    from inference.tasks.model import TaskModel

    writer = load(home / "run")[0]
    writer.stage.final_norm.weight.data.fill_(float("nan"))  # type: ignore[attr-defined]
    found = find(Asked(("made_choice",), folder=home / "tasks"))
    with pytest.raises(UserError, match=r"the model's scores are not finite: its training has diverged"):
        harness.scores(TaskModel(writer), found)


def test_a_full_disk_leaves_nothing_half_written(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(("made_choice",), limit=2, folder=home / "tasks")

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "sync", full)
        words = r"evaluations/tasks-00000007-.*.json cannot be written: No space left on device; free some"
        with pytest.raises(files.NoRoomError, match=words):  # its status says: try again
            harness.evaluate(home / "run", asked, Loading())
    assert list((home / "run" / harness.FOLDER).iterdir()) == []
    values = harness.evaluate(home / "run", asked, Loading())
    assert json.loads(Path(values["file"]).read_text()) == values and values["tasks"]["made_choice"]["samples"] == 2
    other = harness.evaluate(home / "run", asked, Loading())
    assert other["file"] != values["file"] and other["tasks"] == values["tasks"]
    assert harness.evaluate(home / "export", asked, Loading())["file"] is None
    assert sorted(path.name for path in (home / "export").iterdir()) and not (home / "export" / "evaluations").exists()
