import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.samples.mixture import Mixture, PreparedPart, reopened
from data.tokens.prepare import prepare, shared_tokeniser


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedPart]:
    """Two corpora of different letters, prepared with one tokeniser of both; three samples of the first for one."""
    root = tmp_path_factory.mktemp("mixture")
    made = []
    for name, words in (("upper", "THE KING SHALL COME "), ("lower", "and go with all his men ")):
        path = root / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": words * (2 + i % 7)}) + "\n" for i in range(100)))
        made.append(str(path))
    tokeniser = shared_tokeniser(made, "bpe:280", root)
    folders = [prepare(name, tokeniser, 280, root) for name in made]
    return [PreparedPart(name, folder, share) for name, folder, share in zip(made, folders, (3, 1), strict=True)]


def test_one_tokeniser_knows_all_parts(parts: list[PreparedPart]) -> None:
    one, two = (part.folder / "tokeniser" / "tokenizer.json" for part in parts)
    assert one.read_bytes() == two.read_bytes()
    vocabulary = json.loads(one.read_text())["model"]["vocab"]
    merged = [entry for entry in vocabulary if len(entry) > 1 and entry.isalpha()]
    assert any(entry.isupper() for entry in merged) and any(entry.islower() for entry in merged)


def test_samples_come_in_the_ratio_of_the_blend(parts: list[PreparedPart]) -> None:
    mixture = Mixture(parts)
    stream = mixture.training(seq_length=8, seed=1)
    lower = mixture.training(8, 1).streams[1].shards.read()
    taken = stream.batch(0, 40)
    assert taken.shape == (40, 9)
    assert [bool(np.isin(sample[:-1], lower).all()) for sample in taken].count(True) == 10


def test_validation_keeps_the_ratio_where_a_part_is_short(parts: list[PreparedPart]) -> None:
    upper, lower = (Mixture([part]).held_out(8, 1000) for part in parts)
    few = [parts[1], PreparedPart(parts[0].corpus, parts[0].folder, 99)]
    samples, mask = Mixture(few).held_out(8, 1000)
    assert len(samples) == len(upper[0]) + len(lower[0]) < 99
    assert np.array_equal(samples[: len(upper[0])], upper[0]) and np.array_equal(mask[: len(upper[0])], upper[1])
    again = samples[len(upper[0]) :]
    assert np.array_equal(again, np.resize(upper[0], again.shape))
    assert len(Mixture(few).held_out(8, 3)[0]) == 3


def test_a_mixture_is_reopened_and_a_changed_part_noticed(parts: list[PreparedPart]) -> None:
    described = json.loads(json.dumps(Mixture(parts).described))
    assert reopened(described).parts == tuple(parts)
    held_out = [part["validation"] for part in described["parts"]]
    by_hand = [facts["bytes"] / facts["tokens"] for facts in held_out]
    assert described["bytes_per_token"] == pytest.approx((3 * by_hand[0] + by_hand[1]) / 4)
    described["parts"][1]["train"]["sha256"] = "0" * 64
    with pytest.raises(ValueError, match="changed since the run began"):
        reopened(described)


def test_the_fingerprint_is_of_what_is_read_and_not_of_where(parts: list[PreparedPart], tmp_path: Path) -> None:
    elsewhere = [PreparedPart(p.corpus, shutil.copytree(p.folder, tmp_path / p.folder.name), p.share) for p in parts]
    assert Mixture(elsewhere).fingerprint == Mixture(parts).fingerprint
    others = [parts[:1], parts[::-1], [parts[0], PreparedPart(parts[1].corpus, parts[1].folder, 2)]]
    assert len({Mixture(each).fingerprint for each in [parts, *others]}) == 4
