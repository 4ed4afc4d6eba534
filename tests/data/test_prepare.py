import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from data import prepare, tokenisers
from data.shards import Shard

LINES = [f"Document {i} says that the number is {i * i} and the rest is the same.\n" for i in range(120)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES))
    return path


def test_shards_hold_the_documents_in_order_each_with_its_end(corpus: Path, tmp_path: Path) -> None:
    folder = prepare.prepare(str(corpus), "bpe:300", 300, tmp_path / "out")
    described = prepare.check(folder)
    tokeniser = tokenisers.load(str(folder / "tokeniser"))
    train, held = Shard(folder / "train"), Shard(folder / "validation")
    end = tokeniser.eos_token_id
    texts = tokeniser.decode(train.tokens.tolist()).split(tokeniser.eos_token)
    assert texts[-1] == ""
    assert texts[:-1] == [line for i, line in enumerate(LINES) if i not in (49, 99)]
    assert tokeniser.decode(held.tokens.tolist()) == LINES[49] + tokeniser.eos_token + LINES[99] + tokeniser.eos_token
    assert (train.tokens[np.cumsum(train.lengths) - 1] == end).all()
    assert described["train"]["documents"] == 118 and described["validation"]["documents"] == 2
    assert described["train"]["bytes"] == sum(len(t.encode()) for t in texts)
    assert described["train"]["tokens"] == train.num_tokens


def test_prepared_data_is_used_again_until_its_source_changes(corpus: Path, tmp_path: Path) -> None:
    said: list[str] = []
    first = prepare.prepare(str(corpus), "bpe:300", 300, tmp_path / "out", said.append)
    assert said
    said.clear()
    assert prepare.prepare(str(corpus), "bpe:300", 300, tmp_path / "out", said.append) == first
    assert not said
    assert prepare.prepare(str(corpus), "bpe:280", 300, tmp_path / "out") != first
    with open(corpus, "a") as stream:
        stream.write('{"text": "one more"}\n')
    assert prepare.prepare(str(corpus), "bpe:300", 300, tmp_path / "out") != first


def test_a_corpus_that_breaks_half_way_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    with open(corpus, "a") as stream:
        stream.write("not json\n")
    with pytest.raises(ValueError, match="line 121 is not JSON"):
        prepare.prepare(str(corpus), "bpe:300", 300, tmp_path / "out")
    assert [p for p in (tmp_path / "out").iterdir() if not p.name.endswith(".lock")] == []


def test_processes_that_arrive_together_get_one_result(corpus: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        folders = pool.starmap(prepare.prepare, [(str(corpus), "bpe:300", 300, tmp_path / "out")] * 3)
    assert len(set(folders)) == 1
    prepare.check(folders[0])


def test_a_shard_that_changed_is_noticed(corpus: Path, tmp_path: Path) -> None:
    folder = prepare.prepare(str(corpus), "bpe:300", 300, tmp_path / "out")
    before = prepare.manifest(folder)
    (folder / "train.bin").write_bytes((folder / "train.bin").read_bytes()[:-2])
    with pytest.raises(ValueError, match="truncated"):
        prepare.check(folder)
    other = prepare.prepare(str(corpus), "bpe:299", 300, tmp_path / "out")
    with pytest.raises(ValueError, match="changed since the run began"):
        prepare.check(other, expected=before)


def test_a_corpus_of_nothing_but_blank_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no text"):
        prepare.prepare(str(tmp_path / "a.jsonl"), "gpt2", 50257, tmp_path / "out")
    with pytest.raises(ValueError, match="not a prepared data folder"):
        prepare.manifest(tmp_path)


def test_a_tokeniser_too_large_for_the_model_is_refused_before_and_after_the_work(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bpe:300 has \d+ entries but the model has room for 200"):
        prepare.prepare(str(corpus), "bpe:300", 200, tmp_path / "out")
    assert [p for p in (tmp_path / "out").iterdir() if not p.name.endswith(".lock")] == []
    prepare.prepare(str(corpus), "bpe:300", 300, tmp_path / "out")
    with pytest.raises(ValueError, match="raise model"):
        prepare.prepare(str(corpus), "bpe:300", 200, tmp_path / "out")
