"""Scores and diversity, held against what was computed by hand and what the model says of each token."""

import math
from pathlib import Path

import pytest

from inference import generate, ranking
from inference.decode.rows import Row
from inference.sampling import Sampling
from inference.writers import Writer


def rows(writer: Writer, prompt: str, sampling: Sampling) -> list[Row]:
    wanted = generate.requests(writer, prompt, sampling, False, within=True)
    found = {row.request.number: row for row in writer.write(wanted, sampling, lambda row: False)}
    return [found[number] for number in range(sampling.samples)]


@pytest.mark.parametrize("by", ranking.WAYS)
def test_the_best_text_stands_first(by: str, run: Path) -> None:
    sampling = Sampling(samples=6, max_new_tokens=9, temperature=2.0, top_k=0)
    values = generate.generate(run, "the cat", sampling, by=by)
    plain = generate.generate(run, "the cat", sampling)["samples"]
    writer, _ = generate.load(run)
    scores = []
    for row in rows(writer, "the cat", sampling):  # token by token, each behind what is before it
        prompt, new = list(row.request.prompt), row.new
        total = sum(writer.log_odds([(prompt + new[:at], [new[at]])])[0].total for at in range(len(new)))
        if by == "mutual":
            alone = [writer.tokeniser.eos_token_id]
            total -= sum(writer.log_odds([(alone + new[:at], [new[at]])])[0].total for at in range(len(new)))
        scores.append(total / len(new))
    order = sorted(range(6), key=lambda at: -scores[at])
    assert values["seeds"] == order and values["samples"] == [plain[at] for at in order]
    assert values["scores"] == pytest.approx([scores[at] for at in order], abs=1e-5)
    assert len(set(values["scores"])) == 6 and values["scores"] == sorted(values["scores"], reverse=True)


def test_a_folder_gives_the_scores_of_its_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inference import export, foreign

    export.export(run, run.parent / "out")
    pairs = [([1, 2, 3], [4, 5]), ([9], [8, 7, 6, 5])]
    ours, theirs = (generate.load(path)[0].log_odds(pairs) for path in (run, run.parent / "out"))
    assert [each.total for each in theirs] == pytest.approx([each.total for each in ours], rel=1e-5)
    assert [each.greedy for each in theirs] == [each.greedy for each in ours]
    folder = generate.load(run.parent / "out")[0]
    alone = [folder.log_odds([pair])[0].total for pair in pairs]
    assert alone == pytest.approx([each.total for each in theirs], rel=1e-5)  # however many are read together
    monkeypatch.setattr(foreign, "SCORED", 1)
    assert [each.total for each in folder.log_odds(pairs)] == alone
    values = generate.generate(run.parent / "out", "the", Sampling(samples=3, max_new_tokens=4), by="mutual")
    assert values["scores"] == sorted(values["scores"], reverse=True) and len(values["samples"]) == 3


def test_what_is_ranked_stays_within_the_context(run: Path) -> None:
    with pytest.raises(ValueError, match="does not fit: behind a prompt of"):
        generate.generate(run, "the cat", Sampling(samples=2, max_new_tokens=40), by="likelihood")


def test_diversity_by_hand() -> None:
    same = ranking.diversity(["a b c d e"] * 3)
    assert same == {"distinct_1": 5 / 15, "distinct_2": 4 / 12, "distinct_3": 3 / 9, "self_bleu": pytest.approx(1)}
    other = ranking.diversity(["a b", "c d"])
    assert other == {"distinct_1": 1, "distinct_2": 1, "distinct_3": None, "self_bleu": 0}
    assert ranking.diversity([""]) == {"distinct_1": None, "distinct_2": None, "distinct_3": None, "self_bleu": None}


def test_bleu_by_hand() -> None:
    text = ["the", "the", "the", "cat", "sat"]
    references = [["the", "cat", "sat", "on", "the", "mat"], ["a", "cat", "sat"]]
    # Words: "the" counts twice at most. Pairs: the cat, cat sat. Three: the cat sat. Four: none, which counts 0.1.
    wanted = (4 / 5 * 2 / 4 * 1 / 3 * 0.1 / 2) ** 0.25  # the nearest reference is longer by one
    assert ranking.bleu(text, references) == pytest.approx(wanted * math.exp(1 - 6 / 5))
    assert ranking.bleu(["a", "cat", "sat", "on"], references) == pytest.approx((1 * 1 * 1 * 0.1) ** 0.25)
    assert ranking.bleu(["dog"], references) == 0
