"""A scorer of the user's own: what it gets, what it decides, and what it may do wrong in one line."""

from pathlib import Path

import pytest

from inference import generate
from inference.ranking import known
from inference.sampling import Sampling
from inference.scorer import scorer_of
from support import json_lines
from tests.inference.test_prompts import given, write

__all__ = ["given"]  # a fixture


def test_a_scorer_ranks_what_stands_behind_the_prompt(run: Path, tmp_path: Path) -> None:
    (tmp_path / "lengths.py").write_text("SIGN = -1\n")
    (tmp_path / "mine.py").write_text(
        "from lengths import SIGN\n"
        "def short(prompt, text):\n"
        "    assert prompt == 'the cat' and not text.startswith(prompt)\n"
        "    return SIGN * len(text)\n"
    )
    how = Sampling(samples=5, max_new_tokens=40, tidy=("spaces",))  # longer than the context: nothing is read again
    values = generate.generate(run, "the cat", how, by=f"{tmp_path}/mine.py:short")
    assert values["scores"] == [-len(text.removeprefix("the cat")) for text in values["samples"]]
    assert values["scores"] == sorted(values["scores"], reverse=True) and len(set(values["scores"])) > 1


def test_a_module_ranks_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_scores.py").write_text("import numpy as np\ndef one(prompt, text):\n    return np.float32(1.5)\n")
    monkeypatch.chdir(tmp_path)
    assert scorer_of("some_scores:one")("a", "b") == 1.5


def test_rows_of_another_scorer_are_not_mixed(given: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "mine.py", tmp_path / "out.jsonl"
    file.write_text("def short(prompt, text):\n    return -len(text)\n")
    write(given, out, by=f"{file}:short")
    assert len(json_lines.read(out)) == 5 and write(given, out, by=f"{file}:short")["written"] == 0
    file.write_text("def short(prompt, text):\n    return len(text)\n")
    scorer_of.cache_clear()
    with pytest.raises(ValueError, match="holds something else than rows of these prompts and settings"):
        write(given, out, by=f"{file}:short")


WRONG = [
    ("likelihod", "--rank-by likelihod is no way to rank; did you mean likelihood?, or write FILE.py:function"),
    ("gone.py:f", "--rank-by gone.py:f: there is no file gone.py; write FILE.py:function or module:function"),
    ("no_such_module:f", "--rank-by no_such_module:f: No module named 'no_such_module'; install it"),
    ("mine.py:scor", "--rank-by mine.py:scor: mine.py has no function scor; did you mean score?"),
    ("mine.py:NUMBER", "--rank-by mine.py:NUMBER: mine.py has no function NUMBER"),
    ("broken.py:f", "--rank-by broken.py:f: broken.py cannot be loaded: SyntaxError: "),
    ("raises.py:f", "--rank-by raises.py:f: raises.py cannot be loaded: KeyError: 'a' (raises.py, line 2); mend it"),
    ("leaves.py:f", "--rank-by leaves.py:f: leaves.py cannot be loaded: SystemExit: 3 (leaves.py, line 1); mend it"),
    (":f", "--rank-by ':f' is no way to rank; write FILE.py:function or module:function"),
]


@pytest.mark.parametrize(("name", "words"), WRONG)
def test_a_scorer_that_cannot_be_had_is_one_line(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"mine": "NUMBER = 1\ndef score(prompt, text): ...", "broken": "def f(:", "raises": "\n{}['a']"}
    for module, content in {**files, "leaves": "raise SystemExit(3)"}.items():
        (tmp_path / f"{module}.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="--rank-by") as caught:
        known(name)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("body", "words"), [
    ("return {}['a']", "raised KeyError: 'a' (mine.py, line 2); mend it"),
    ("raise ValueError('one\\n\\ntwo')", "raised ValueError: one (mine.py, line 2); mend it"),
    ("return float('nan')", "returned nan for ' text', no finite number; mend it"),
    ("return None", "returned None for ' text', no finite number"),
    ("return '1.5'", "returned '1.5' for ' text', no finite number"),
    ("return [1]", "returned [1] for ' text', no finite number"),
    ("exit(1)", "raised SystemExit: 1"),
])  # fmt: skip
def test_what_a_scorer_does_wrong_is_one_line(body: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"def f(prompt, text):\n    {body}\n")
    scorer = scorer_of(f"{tmp_path}/mine.py:f")
    with pytest.raises(ValueError, match="--rank-by") as caught:
        scorer("prompt", " text")
    assert words in str(caught.value) and "\n" not in str(caught.value)
