"""What a teacher expects, beside the tokens that it was asked of."""

import dataclasses
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.samples.mixture import Mixture, reopened
from data.samples.taught import Taught
from data.tokens import prepare, tasks, tokenisers
from inference import teach
from inference.export import load_model
from inference.teach import Window, windows_of
from recipes.recipe import Recipe
from recipes.registry import load
from recipes.settings import override
from run.checkpoints import choose
from run.prepared import recipe_data
from support.errors import UserError
from tests.inference.conftest import WORDS
from training.source import Source

SEEN = 32  # tokens that the teacher sees


def silent(line: str) -> None:
    """Say nothing."""


@pytest.mark.parametrize("lengths", [[5], [32], [33], [100], [0, 3, 70, 1, 48]])
def test_every_token_is_new_once_and_has_enough_before_it(lengths: list[int]) -> None:
    begins = np.cumsum([0, *lengths])
    found: list[int] = []
    for window in windows_of(lengths, SEEN):
        news = range(window.last + (not window.opens) - window.new, window.last + (not window.opens))
        begin = max(each for each in begins if each <= news[0])
        assert window.last - window.first <= SEEN and news[-1] < min(each for each in [*begins, 999] if each > news[0])
        if not window.opens:
            assert window.first >= begin and news[0] - window.first >= SEEN // 2
        found += news
    assert found == list(range(sum(lengths)))
    assert list(windows_of([40], SEEN)) == [Window(0, 32, 32, opens=True), Window(15, 39, 8)]


def asked(run: Path, tmp_path: Path, *settings: str) -> Recipe:
    """A recipe on some text in the tokeniser of a run, which is its teacher."""
    texts = [WORDS * (number % 5 + 1) for number in range(60)]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    shape = ["model.num_layers=1", "model.hidden_size=8", "model.num_attention_heads=2", "model.seq_length=16"]
    told = [f"data.corpus={corpus}", f"data.tokeniser={run / 'tokeniser'}", f"teacher.model={run}", "teacher.top_k=5"]
    return override(load("tiny"), [*shape, *told, *settings])


def data_of(recipe: Recipe) -> Mixture:
    options = prepare.Options(workers=1, engine="tokenizers", shard_tokens=1000)
    return recipe_data(recipe, silent, options)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(tasks, "BATCH_DOCUMENTS", 16)  # so that there are several shards
    monkeypatch.setattr(teach, "SCORES", 4096 * SEEN * 4)  # four windows at once
    return tmp_path


def test_records_are_the_softened_odds_of_the_model(run: Path, here: Path) -> None:
    recipe = asked(run, here)
    mixture = teach.taught(recipe, data_of(recipe), silent)
    folder, (taught,) = mixture.parts[0].folder, mixture.taught
    shards = prepare.shards(folder, "train")
    assert taught and len(shards.shards) > 1 and len(taught.rows["train"].read()) == shards.num_tokens
    model, entries = load_model(run, choose(run)), tokenisers.entries(tokenisers.load(str(run / "tokeniser")))
    tokens = shards.shards[1].tokens.astype(np.int64)
    records = taught.rows["train"].parts[1]
    # The first token is predicted from the end of a document; the 40th, new in the second window, from 16 to 38.
    for at, inputs in ((0, [mixture.end_of_document]), (39, tokens[15:39].tolist())):
        with torch.no_grad():
            odds = (model(torch.tensor([inputs]))[0, -1, :entries] / 2).log_softmax(-1)
        values, ids = odds.topk(5)
        assert records["ids"][at].tolist() == ids.tolist()
        others = float((1 - values.exp().sum()).log())
        assert records["odds"][at].tolist() == pytest.approx([*values.tolist(), others], abs=5e-3)


def test_a_killed_reading_goes_on_and_leaves_the_same_bytes(
    run: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = asked(run, here)
    data = data_of(recipe)
    folder = data.parts[0].folder
    record, calls = teach._Lesson._records, 0

    def dies(self: Any, shard: Any, batch: list[Window]) -> Any:
        nonlocal calls
        calls += 1
        if calls == 12:  # within the second shard
            (part,) = folder.glob("*.partial")
            with open(part, "ab") as stream:
                stream.write(b"half a rec")
            raise KeyboardInterrupt
        return record(self, shard, batch)

    monkeypatch.setattr(teach._Lesson, "_records", dies)
    with pytest.raises(KeyboardInterrupt):
        teach.taught(recipe, data, silent)
    assert not list(folder.glob("teacher-*.json"))
    done, calls = calls - 1, 100
    teach.taught(recipe, data, silent)
    whole = {path.name: path.read_bytes() for path in sorted(folder.glob("*.teacher-*"))}
    after = calls - 100
    for path in folder.glob("*teacher-*"):
        path.unlink()
    calls = 100
    teach.taught(recipe, data, silent)
    assert after == calls - 100 - done and len(whole) > 1
    assert whole == {path.name: path.read_bytes() for path in sorted(folder.glob("*.teacher-*"))}
    calls = 100
    teach.taught(recipe, data, silent)
    assert calls == 100


@pytest.mark.parametrize("early", [True, False])
def test_a_teacher_with_another_vocabulary_is_refused(run: Path, here: Path, early: bool) -> None:
    other = here / "other"
    tokenisers.save(tokenisers.train_bpe([WORDS.replace("cat", "dog")] * 9, 300), other)
    recipe = asked(run, here, f"data.tokeniser={other if early else 'bpe:260'}")
    data = data_of(recipe)
    before = sorted(here.rglob("*"))
    with pytest.raises(UserError, match=rf"has another vocabulary .* alike\); set data.tokeniser={run}/tokeniser, or"):
        teach.check(recipe)
        teach.taught(recipe, data, silent)
    if early:
        with pytest.raises(UserError, match="another vocabulary"):
            teach.check(recipe)
    assert sorted(here.rglob("*")) == before
    with pytest.raises(UserError, match="'nobody' is not a run directory"):
        teach.check(dataclasses.replace(recipe, teacher=dataclasses.replace(recipe.teacher, model="nobody")))


def test_a_batch_holds_what_is_expected_of_its_labels(run: Path, here: Path) -> None:
    recipe = asked(run, here, "teacher.soft_share=0.25")
    plain = data_of(recipe)
    mixture = teach.taught(recipe, plain, silent)
    assert mixture.fingerprint != plain.fingerprint and mixture.described["parts"][0]["teacher"]["top_k"] == 5
    source = Source(recipe, mixture)
    batch = source.training(7, 3)
    assert batch.other and batch.other.soft.tolist() == [0.25, 2.0]
    tokens, records = prepare.shards(mixture.parts[0].folder, "train").read(), mixture.taught[0].rows["train"].read()  # type: ignore[union-attr]
    starts = source.stream.streams[0].order.starts(np.arange(7, 10))
    for row, start in enumerate(starts.tolist()):
        assert batch.labels_BS[row].tolist() == tokens[start + 1 : start + 17].tolist()
        assert batch.other.ids_BSK[row].tolist() == records["ids"][start + 1 : start + 17].tolist()
        assert batch.other.odds_BSR[row].tolist() == records["odds"][start + 1 : start + 17].tolist()
    assert source.validation([0, 1]).other is None
    assert Source(recipe, mixture.with_teacher({})).training(7, 3).other is None


def test_the_memory_of_the_teacher_is_given_back(run: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, loaded = asked(run, here), teach._loaded
    held: list[weakref.ref[Any]] = []
    emptied: list[bool] = []

    def notes(*arguments: Any) -> Any:
        teacher = loaded(*arguments)
        held.append(weakref.ref(teacher))
        return teacher

    monkeypatch.setattr(teach, "_loaded", notes)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(held[0]() is None))
    teach.taught(recipe, data_of(recipe), silent)
    assert emptied == [True]


def test_what_changed_beside_the_shards_is_refused(run: Path, here: Path) -> None:
    recipe = asked(run, here)
    part = teach.taught(recipe, data_of(recipe), silent).parts[0]
    file = sorted(part.folder.glob(f"*.{part.teacher}"))[0]
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(
        UserError, match=r"was changed after it was written; remove it and .*, and prepare the data again"
    ):
        teach.taught(recipe, data_of(recipe), silent)  # of a new run too
    file.write_bytes(content)  # as where it was copied
    Taught(part.folder, part.teacher)
    assert file.stat().st_mtime_ns <= (part.folder / f"{part.teacher}.json").stat().st_mtime_ns  # hashed once
    file.unlink()
    (part.folder / f"{part.teacher}.json").unlink()
    teach.taught(recipe, data_of(recipe), silent)
    assert file.read_bytes() == content
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match="bytes where its shard needs"):
        Taught(part.folder, part.teacher)


def test_a_resume_whose_teacher_expects_something_else_is_refused(run: Path, here: Path) -> None:
    recipe = asked(run, here)
    began = json.loads(json.dumps(teach.taught(recipe, data_of(recipe), silent).described))
    (part,) = began["parts"]
    folder, name = Path(part["folder"]), part["teacher"]["name"]
    again = Mixture(data_of(recipe).parts, began)  # as where the folder was prepared again
    assert teach.taught(recipe, again, silent, resumed=True).described == began
    part["teacher"]["sha256"] = "0" * 64
    with pytest.raises(UserError, match=f"what {name} expects in .* changed since the run began; restore it or start"):
        teach.taught(recipe, again, silent, resumed=True)
    teach.taught(recipe, again, silent)  # a branch may have another
    (folder / f"{name}.json").unlink()
    assert reopened(began).taught == [None]  # who only validates needs none
    with pytest.raises(UserError, match=f"what {name} gave is not in {folder}; restore it, or prepare the data"):
        reopened(began, taught=True)
