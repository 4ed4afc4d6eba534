"""What a reference gives pairs: that of each side alone, whatever they are packed with."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from data.corpus.examples import AUTO, Form
from data.samples.mixture import Mixture, PreparedPart, reopened
from data.samples.packing import sizes
from data.tokens import prepare, tasks
from inference import reference
from inference.export import load_model
from inference.measuring.models import measured_run
from inference.measuring.texts import words_of
from run.checkpoints import choose
from support.errors import UserError
from tests.data.corpus.test_examples import write

NAME = "reference-0"


def test_each_side_has_its_own_odds_and_a_change_is_found(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "BATCH_DOCUMENTS", 8)
    rows = [
        {"prompt": "the cat " * (n % 2), "chosen": " sat" * (n % 5 + 1), "rejected": " on the mat"} for n in range(80)
    ]
    path, options = write(tmp_path / "rows.jsonl", *rows), prepare.Options(1, shard_tokens=300)
    form, words = Form(AUTO, 33, pairs=True), run / "tokeniser"
    folder = prepare.prepare(str(path), str(words), 4096, tmp_path / "out", options=options, form=form)
    model, said = measured_run(words_of(run), choose(run)), list[str]()
    reference.write(folder, NAME, model, "mine@7", said.append)
    assert said[0].startswith("reference: mine@7 reads ")
    mixture = Mixture([PreparedPart("x", folder, 1, NAME)])
    (taught,), plain = mixture.taught, load_model(run, choose(run))
    assert taught and len(prepare.shards(folder, "train").shards) > 1
    for split in ("train", "validation"):
        shards, odds = prepare.shards(folder, split), taught.rows[split].read()
        (weights,) = mixture.beside(split, ".weights", np.uint8)
        assert np.all(odds[weights.read() == 0] == 0)
        stop = 0
        for length in shards.lengths.tolist():
            start, stop = stop, stop + length
            for size in sizes(weights.read(start, stop)):
                tokens = torch.from_numpy(shards.read(start, start + size).astype(np.int64))
                counted = weights.read(start, start + size)[1:] > 0
                with torch.no_grad():
                    scores = plain(tokens[None, :-1])[0, :, : model.entries].log_softmax(-1)
                right = -F.nll_loss(scores, tokens[1:], reduction="none").numpy()
                assert odds[start + 1 : start + size][counted] == pytest.approx(right[counted], abs=1e-5)
                start += size
    kept = json.loads(json.dumps(mixture.described))
    assert kept["parts"][0]["reference"]["asked"] == {"model": "mine@7"}
    (again,) = reopened(kept, taught=True).taught
    assert again and again.manifest == taught.manifest and reopened(kept).taught == [None]
    manifest = folder / f"{NAME}.json"
    manifest.write_text(manifest.read_text().replace(taught.manifest["sha256"], "0" * 64))
    with pytest.raises(
        UserError, match=f"what {NAME} expects in .* changed since the run began; restore it or start a"
    ):
        reopened(kept, taught=True)
    manifest.unlink()
    with pytest.raises(UserError, match=f"what {NAME} gave is not in .*; restore it, or start a new run from the same"):
        reopened(kept, taught=True)
