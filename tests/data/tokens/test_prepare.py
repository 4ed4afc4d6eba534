"""Preparing a corpus: what is in the shards, who makes them, and when a folder is used again."""

import itertools
import json
import multiprocessing
import os
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.corpus import sources
from data.tokens import prepare, tasks, tokenisers
from data.tokens.prepare import Options, OthersUnfinished
from data.tokens.shards import ShardWriter
from data.tokens.shards import digest as digest_of
from data.tokens.tasks import Progress
from tests.data.tokens.preparing import LINES, contents, decoded, left_in
from tests.data.tokens.test_tokenisers import with_gap


def test_shards_hold_the_documents_in_order_each_with_its_end(corpus: Path, tmp_path: Path) -> None:
    folder = prepare.prepare(str(corpus), "bpe:300", 300, tmp_path / "out")
    described = prepare.check(folder)
    tokeniser = tokenisers.load(str(folder / "tokeniser"))
    found: dict[str, list[str]] = {}
    for split in ("train", "validation", "test"):
        opened = prepare.shards(folder, split)
        tokens = opened.read()
        assert (tokens[np.cumsum(opened.lengths) - 1] == tokeniser.eos_token_id).all()
        *texts, last = tokeniser.decode(tokens.tolist()).split(tokeniser.eos_token)
        assert last == ""
        found[split] = texts
        facts = described[split]
        assert facts["documents"] == len(texts) == len(opened.lengths)
        assert facts["bytes"] == sum(len(text.encode()) for text in texts)
        assert facts["tokens"] == opened.num_tokens == len(tokens)
    assert sorted(text for texts in found.values() for text in texts) == sorted(LINES)
    assert all(texts == [line for line in LINES if line in set(texts)] for texts in found.values())
    assert 1 <= len(found["validation"]) <= 20 and 1 <= len(found["test"]) <= 12


def test_a_corpus_too_small_to_split_holds_out_its_end(tmp_path: Path, tokeniser: str) -> None:
    text = "".join(LINES)
    (tmp_path / "a.txt").write_text(text)
    folder = prepare.prepare(str(tmp_path / "a.txt"), tokeniser, 300, tmp_path / "out")
    loaded = tokenisers.load(tokeniser)
    train, held = (loaded.decode(prepare.shards(folder, split).read().tolist()) for split in ("train", "validation"))
    end = loaded.eos_token
    assert train.removesuffix(end) + held.removesuffix(end) == text
    assert 0.03 < len(held) / len(text) < 0.07 and held.startswith("Document")


def test_a_test_split_is_not_trained_on(tmp_path: Path, tokeniser: str) -> None:
    records = [{"text": line, "split": "train"} for line in LINES[:100]]
    records += [{"text": line, "split": "test"} for line in LINES[100:140]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    folder = prepare.prepare(str(tmp_path / "a.jsonl"), tokeniser, 300, tmp_path / "out")
    assert decoded(folder, "test") == LINES[100:140]
    assert decoded(folder, "train") == LINES[:95] and decoded(folder, "validation") == LINES[95:100]


def test_the_splits_of_a_folder_are_its_own_and_drawn_no_second_time(tmp_path: Path, tokeniser: str) -> None:
    lines = {"train-0.txt": LINES[:300], "dev.jsonl": LINES[300:340], "README.md": ["A data set."]}
    folder = tmp_path / "set"
    folder.mkdir()
    for name, held in lines.items():
        text = "".join(json.dumps({"text": line}) + "\n" for line in held) if name == "dev.jsonl" else "\n".join(held)
        (folder / name).write_text(text)
    made = prepare.prepare(str(folder), tokeniser, 300, tmp_path / "out")
    assert decoded(made, "train") == ["\n".join(lines["train-0.txt"])] and decoded(made, "test") == []
    assert decoded(made, "validation") == lines["dev.jsonl"]
    (folder / "train-0.txt").unlink()
    with pytest.raises(ValueError, match="no document to train on, only validation or test; give it a train split"):
        prepare.prepare(str(folder), tokeniser, 300, tmp_path / "out")


def test_as_many_tasks_as_it_takes_are_held_out(files: Path, tmp_path: Path, tokeniser: str) -> None:
    texts = [LINES[0] * 50, LINES[1] * 50, "ok then", "and so on"]
    for number, text in enumerate(texts):
        (files / f"{number}.jsonl").write_text(json.dumps({"text": text, "split": "train"}) + "\n")
    folder = prepare.prepare(str(files), tokeniser, 300, tmp_path / "out", options=Options(workers=1))
    cut, *whole = decoded(folder, "validation")
    assert whole == ["ok then", "and so on"] and decoded(folder, "train") == [texts[0], texts[1].removesuffix(cut)]
    assert 0.04 < len("".join([cut, *whole])) / len("".join(texts)) < 0.07


def test_shards_are_the_same_for_any_number_of_processes_and_nodes(files: Path, tmp_path: Path, tokeniser: str) -> None:
    said: list[str] = []
    reports: list[Progress] = []
    alone = prepare.prepare(str(files), tokeniser, 300, tmp_path / "1", options=Options(workers=1))
    many = Options(workers=3, report=reports.append)
    together = prepare.prepare(str(files), tokeniser, 300, tmp_path / "3", said.append, many)
    assert len(contents(alone)) >= 8 and contents(together) == contents(alone)
    assert reports[-1].documents == len(LINES) and reports[-1].text_bytes == len("".join(LINES))
    assert reports[-1].done_bytes == reports[-1].total_bytes and "MB/s" in str(reports[-1])

    root = tmp_path / "nodes"
    with pytest.raises(OthersUnfinished, match=r"node 1 of 2 did its part of .*; 2 of 4 tasks are not finished yet"):
        prepare.prepare(str(files), tokeniser, 300, root, options=Options(workers=1, nodes=2, node=1))
    split = prepare.prepare(str(files), tokeniser, 300, root, options=Options(workers=1, nodes=2, node=0))
    assert contents(split) == contents(alone) and left_in(root) == [split.name]
    one, two = prepare.manifest(split), prepare.manifest(alone)
    assert one == two


def test_folders_of_nodes_without_shared_storage_are_put_together(files: Path, tmp_path: Path) -> None:
    def node(number: int) -> Path:
        root = tmp_path / str(number)
        with pytest.raises(OthersUnfinished, match="2 of 4 tasks are not finished yet"):
            prepare.prepare(str(files), "bpe:300", 300, root, options=Options(workers=1, nodes=2, node=number))
        (scratch,) = root.glob("*.partial")
        return scratch

    shutil.copytree(node(1), node(0), dirs_exist_ok=True)
    said: list[str] = []
    folder = prepare.prepare(str(files), "bpe:300", 300, tmp_path / "0", said.append, Options(workers=1))
    assert "going on: 4 of 4 tasks are finished already" in said
    assert contents(folder) == contents(prepare.prepare(str(files), "bpe:300", 300, tmp_path / "alone"))


@pytest.mark.parametrize("step", ["run", "_work", "_unfinished"])
def test_a_node_that_is_overtaken_finds_the_folder(
    files: Path, tmp_path: Path, tokeniser: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Node 0 is started again, and just before each of its steps node 1 puts all together."""
    root = tmp_path / "out"
    node0, node1 = (Options(workers=1, nodes=2, node=node) for node in (0, 1))
    with pytest.raises(OthersUnfinished):
        prepare.prepare(str(files), tokeniser, 300, root, options=node0)
    plain, made = getattr(prepare._Preparation, step), []

    def overtaken(self: Any, *arguments: Any) -> Any:
        if not made and self.options.node == 0:
            made.append(root)
            made.append(prepare.prepare(str(files), tokeniser, 300, root, options=node1))
        return plain(self, *arguments)

    monkeypatch.setattr(prepare._Preparation, step, overtaken)
    assert prepare.prepare(str(files), tokeniser, 300, root, options=node0) == made[1]
    assert left_in(root) == [made[1].name]


def test_a_shard_writer_makes_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ShardWriter(tmp_path / "put-together" / "train", 300)


def test_shards_are_of_a_bounded_size(
    corpus: Path, tmp_path: Path, tokeniser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "BATCH_DOCUMENTS", 10)
    whole = prepare.prepare(str(corpus), tokeniser, 300, tmp_path / "whole")
    cut = prepare.prepare(str(corpus), tokeniser, 300, tmp_path / "cut", options=Options(shard_tokens=2000))
    sizes = [shard.num_tokens for shard in prepare.shards(cut, "train").shards]
    assert len(sizes) > 3 and max(sizes) < 2600 and min(sizes[:-1]) >= 2000
    assert np.array_equal(prepare.shards(cut, "train").read(), prepare.shards(whole, "train").read())


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


def test_a_tokeniser_with_another_end_of_document_makes_another_folder(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tokeniser"
    tokenisers.save(tokenisers.train_bpe(LINES, 300), folder)
    first = prepare.prepare(str(corpus), str(folder), 300, tmp_path / "out")
    described = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**described, "eos_token": "!"}))
    second = prepare.prepare(str(corpus), str(folder), 300, tmp_path / "out")
    ends = [prepare.manifest(made)["end_of_document"] for made in (first, second)]
    assert ends == [0, tokenisers.load(str(folder)).convert_tokens_to_ids("!")] and ends[1] != 0


def test_a_copy_of_the_hub_that_changed_is_prepared_again(
    tmp_path: Path, tokeniser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGECRAFT_HUB", str(tmp_path))
    copy = tmp_path / "some" / "set" / "train.jsonl"
    copy.parent.mkdir(parents=True)
    copy.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES[:50]))
    first = prepare.prepare("some/set", tokeniser, 300, tmp_path / "out")
    assert prepare.prepare("some/set", tokeniser, 300, tmp_path / "out") == first
    copy.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES[:60]))
    second = prepare.prepare("some/set", tokeniser, 300, tmp_path / "out")
    facts = prepare.manifest(second)
    assert second != first and sum(facts[split]["documents"] for split in sources.SPLITS) == 60


def test_processes_that_arrive_together_get_one_result(corpus: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        folders = pool.starmap(prepare.prepare, [(str(corpus), "bpe:300", 300, tmp_path / "out")] * 3)
    assert len(set(folders)) == 1
    prepare.check(folders[0])


def test_a_shard_that_changed_is_noticed(corpus: Path, tmp_path: Path, tokeniser: str) -> None:
    folder = prepare.prepare(str(corpus), tokeniser, 300, tmp_path / "out")
    before = prepare.manifest(folder)
    other = prepare.prepare(str(corpus), "bpe:299", 300, tmp_path / "out")
    with pytest.raises(ValueError, match="changed since the run began"):
        prepare.check(other, expected=before)
    path = folder / "train-00000-00.bin"
    raw = path.read_bytes()
    path.write_bytes(raw[:-2] + b"\x01\x00")
    os.utime(path, ns=(2**62, 2**62))  # clocks of file systems are coarse
    with pytest.raises(ValueError, match="train-00000-00 was changed after it was written"):
        prepare.check(folder)
    path.write_bytes(raw[:-2])
    with pytest.raises(ValueError, match="truncated"):
        prepare.check(folder)


def test_copied_shards_are_hashed_once_and_by_one_process(
    corpus: Path, tmp_path: Path, tokeniser: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, read = prepare.prepare(str(corpus), tokeniser, 300, tmp_path / "out"), list[Path]()
    shard = folder / "train-00000-00.bin"

    def digest(prefix: Path) -> str:
        read.append(prefix)
        return digest_of(prefix)

    monkeypatch.setattr(prepare, "digest", digest)
    os.utime(folder / "manifest.json", ns=(1, 1))  # older than what it describes, as in a folder that was copied
    prepare.check(folder, hashes=False)
    assert read == []
    prepare.check(folder)
    assert shard.with_suffix("") in read
    count = len(read)
    prepare.check(folder)
    assert len(read) == count


def test_an_index_of_other_shards_of_the_same_size_is_noticed(corpus: Path, tmp_path: Path, tokeniser: str) -> None:
    folder = prepare.prepare(str(corpus), tokeniser, 300, tmp_path / "out")
    prefix = folder / "train-00000-00"
    tokens, lengths = prepare.shards(folder, "train").read().copy(), prepare.shards(folder, "train").lengths.copy()
    with ShardWriter(prefix, 300) as writer:
        writer.add(tokens, np.concatenate(([lengths[0] + lengths[1]], lengths[2:])))
    with pytest.raises(ValueError, match=r"holds .* tokens in .* documents where the manifest says"):
        prepare.check(folder)


def test_a_corpus_of_nothing_but_blank_lines_is_refused(tmp_path: Path, tokeniser: str) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(ValueError, match="holds no text"):
        prepare.prepare(str(tmp_path / "a.jsonl"), tokeniser, 300, tmp_path / "out")
    with pytest.raises(ValueError, match="not a prepared data folder"):
        prepare.manifest(tmp_path)


def test_a_tokeniser_too_large_for_the_model_is_refused_before_and_after_the_work(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bpe:300 needs \d+ entries but the model has room for 200"):
        prepare.prepare(str(corpus), "bpe:300", 200, tmp_path / "out")
    assert left_in(tmp_path / "out") == []
    prepare.prepare(str(corpus), "bpe:300", 300, tmp_path / "out")
    with pytest.raises(ValueError, match="raise model"):
        prepare.prepare(str(corpus), "bpe:300", 200, tmp_path / "out")


def test_a_gap_in_the_ids_takes_room_in_the_model(corpus: Path, tmp_path: Path) -> None:
    """The model needs a row for the largest id, not for as many as there are entries."""
    folder = with_gap(tmp_path / "gap", LINES)
    tokeniser = tokenisers.load(str(folder))
    needed = len(tokeniser) + 4
    with pytest.raises(ValueError, match=f"needs {needed} entries but the model has room for {needed - 1}; raise"):
        prepare.prepare(str(corpus), str(folder), needed - 1, tmp_path / "out")
    made = prepare.prepare(str(corpus), str(folder), needed, tmp_path / "out")
    assert prepare.manifest(made)["vocab_size"] == needed
    assert len(tokeniser) <= prepare.shards(made, "train").read().max() < needed
    first = prepare.shards(made, "train").read(0, 100).tolist()
    assert tokeniser.decode(first[: first.index(0)]) in LINES


@pytest.mark.parametrize(
    ("wrong", "words"), [({"workers": -1}, "--workers is -1"), ({"nodes": 2, "node": 2}, "--node is 2 of --nodes 2")]
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Options(**wrong)


def test_a_large_file_is_several_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Path, tokeniser: str
) -> None:
    whole = prepare.prepare(str(corpus), tokeniser, 300, tmp_path / "whole")
    for module in (sources, tasks):
        monkeypatch.setattr(module, "piece_bytes", lambda total: 5000)
    cut = prepare.prepare(str(corpus), tokeniser, 300, tmp_path / "cut", options=Options(workers=1))
    assert len(prepare.manifest(cut)["train"]["shards"]) > 3
    for split in ("train", "validation", "test"):
        assert np.array_equal(prepare.shards(cut, split).read(), prepare.shards(whole, split).read())


@pytest.mark.parametrize("names", [1, 2])
def test_a_corpus_of_which_nothing_falls_to_training_is_trained_on_all_the_same(
    names: int, tmp_path: Path, tokeniser: str
) -> None:
    drawn = (
        text for i in itertools.count() if zlib.crc32((text := f"Text {i}.\n" + "the same " * 400).encode()) % 100 < 3
    )
    folder = tmp_path / "drawn"
    folder.mkdir()
    for number in range(names):
        (folder / f"{number}.txt").write_text(next(drawn))
    made = prepare.manifest(prepare.prepare(str(folder), tokeniser, 300, tmp_path / "made"))
    assert made["train"]["documents"] == names and made["test"]["documents"] == 0
    share = made["validation"]["bytes"] / (made["train"]["bytes"] + made["validation"]["bytes"])
    assert 0.04 < share < 0.11
