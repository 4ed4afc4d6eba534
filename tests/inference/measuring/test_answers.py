"""The loss of answers: of a run's own data and of rows, packed and apart, as each example alone has it."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.corpus.examples import Form
from data.samples.mixture import Mixture, PreparedPart
from data.tokens import prepare
from data.tokens.beside import Beside
from data.tokens.shards import WEIGHTS
from inference.evaluate import evaluate, show
from model.gpt import GPT
from model.loss import token_losses
from recipes.settings import override
from run.directory import read_recipe
from support.errors import UserError
from tests.data.corpus.test_examples import write
from tests.inference.conftest import ROOM, write_untrained

SHAPE = ("hidden_size=32", "seq_length=24", "init_method_std=0.2")
ROWS = [
    {
        "text": "the cat sat " * (n % 3),
        "label": "on the mat" if n % 2 else "rat",
        "split": ("train", "validation")[n % 2],
    }
    for n in range(20)
]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GPT]:
    """A run that says that it was tuned on rows, with random weights; and the rows' file beside it."""
    home = tmp_path_factory.mktemp("answers")
    model = write_untrained(home / "run", *SHAPE)
    rows, words = write(home / "rows.jsonl", *ROWS), str(home / "run" / "tokeniser")
    folder = prepare.prepare(str(rows), words, ROOM, home / "data", form=Form("{text}:{label}", 25))
    recipe = override(read_recipe(home / "run"), [f"data.corpus={rows}", f"data.tokeniser={words}"])
    data = dataclasses.replace(recipe.data, template="{text}:{label}")
    (home / "run" / "recipe.json").write_text(json.dumps(dataclasses.asdict(dataclasses.replace(recipe, data=data))))
    described = Mixture([PreparedPart(str(rows), folder, 1)]).described
    (home / "run" / "data.json").write_text(json.dumps(described))
    return home, model


def by_hand(model: GPT, folder: Path, split: str) -> tuple[float, int]:
    """Each example alone."""
    shards = prepare.shards(folder, split)
    ends = np.cumsum(shards.lengths).tolist()
    weights = Beside(shards, WEIGHTS, np.uint8)
    total = count = 0.0
    entries = prepare.manifest(folder)["vocab_size"]
    for start, stop in zip([0, *ends], ends, strict=False):
        tokens = torch.from_numpy(shards.read(start, stop).astype(np.int64))[None]
        counted = torch.from_numpy(weights.read(start, stop).astype(np.float64))[None, 1:]
        with torch.no_grad():
            total += float((token_losses(model(tokens[:, :-1]), tokens[:, 1:], entries) * counted).sum())
        count += float(counted.sum())
    return total / count, int(count)


def test_the_loss_is_that_of_each_answer_alone(
    tuned: tuple[Path, GPT], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, model = tuned
    (folder,) = (path.parent for path in (home / "data").glob("*/manifest.json"))
    loss, count = by_hand(model, folder, "validation")
    found = evaluate(home / "run", "validation")
    assert math.isclose(found["loss"], loss, rel_tol=1e-6) and found["tokens"] == count
    assert found["objective"] == "answers" and found["bytes"] == 10 * len("on the mat")
    assert found["bits_per_byte"] == pytest.approx(loss * count / (10 * len("on the mat")) / math.log(2))
    show(found)
    assert capsys.readouterr().out.endswith(f"over {count} answer tokens\n")
    rows = write(tmp_path / "more.jsonl", *(row for row in ROWS if row["split"] == "validation"))
    assert evaluate(home / "run", str(rows))["loss"] == pytest.approx(loss, rel=1e-6)  # by its template, unpacked
    assert evaluate(home / "run", f"{folder}/train")["tokens"] == by_hand(model, folder, "train")[1]


def test_texts_are_texts_to_a_run_that_was_tuned_too(tuned: tuple[Path, GPT], tmp_path: Path) -> None:
    home, _ = tuned
    (tmp_path / "plain.txt").write_text("the cat sat on the mat")
    rows = write(tmp_path / "rows.jsonl", {"text": "the cat sat on the mat"})
    found = [evaluate(home / "run", str(data)) for data in (tmp_path / "plain.txt", f"{rows}::text")]
    assert found[0]["objective"] == "causal" and found[0]["loss"] == found[1]["loss"]


def test_a_row_that_is_no_example_is_one_line(tuned: tuple[Path, GPT], tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", ROWS[0], {"text": "x"})
    with pytest.raises(UserError, match=r'rows.jsonl line 2 has no field "label" \(it has text\); mend it'):
        evaluate(tuned[0] / "run", str(rows))
    with pytest.raises(UserError, match=r"line 1 makes \d+ tokens, and a context of 24 takes 25"):
        evaluate(tuned[0] / "run", str(write(tmp_path / "long.jsonl", {"text": "x " * 50, "label": "y"})))


def test_rows_that_are_left_out_are_counted(
    tuned: tuple[Path, GPT], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, long = tmp_path / "run", {"text": "x " * 50, "label": "y"}
    shutil.copytree(tuned[0] / "run", run)
    recipe = (run / "recipe.json").read_text()
    (run / "recipe.json").write_text(recipe.replace('"skip_longer": false', '"skip_longer": true'))
    found = evaluate(run, str(write(tmp_path / "rows.jsonl", long, *ROWS, long)))
    assert found["left_out"] == 2
    assert found["loss"] == evaluate(run, str(write(tmp_path / "fit.jsonl", *ROWS)))["loss"]
    show(found)
    assert "\nleft out 2 examples that are longer than the context of 24 tokens\n" in capsys.readouterr().out
    pairs = {"data": "x", "objective": "pairs", "likelier": 0.5, "pairs": 2, "parts": [], "context": 24, "left_out": 2}
    show(pairs)
    told = "of 2 pairs\nleft out 2 examples that are longer than the context of 24 tokens\n"
    assert capsys.readouterr().out.endswith(told)
    with pytest.raises(UserError, match=r"long.jsonl holds no examples that fit into the context: 1 are longer; give"):
        evaluate(run, str(write(tmp_path / "long.jsonl", long)))
