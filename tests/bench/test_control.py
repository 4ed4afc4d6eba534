"""How far prefixes move a judge: on cases that are computed by hand, and with a run that was never trained."""

import math
from pathlib import Path
from unittest.mock import Mock

import pytest

from bench import control, taught
from inference.generate import load
from inference.writers import encode
from tests.inference.conftest import write_untrained
from tests.inference.tasks.test_tune import given


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held-out reviews, one of which is no longer than what is given of it."""
    monkeypatch.setenv("STAGECRAFT_CACHE", str(tmp_path / "cache"))
    taught.rows.cache_clear()
    texts = [("the cat sat on", 1), ("the cat sat", 0), ("the rat sat bad", 0), ("and more cat bad", 1)]
    content = [{"completion": f" {text}", "gold": gold, "split": "test"} for text, gold in texts]
    given(
        tmp_path / "cache", "tune_control", *content, {"completion": " seen in training", "gold": 1, "split": "train"}
    )


def test_what_is_moved_is_the_difference_of_two_shares() -> None:
    assert control.shares([True, True, True, False], [True, False]) == {
        "positive_when_positive": 0.75,
        "positive_when_negative": 0.5,
        "moved": 0.25,
        "error": pytest.approx(math.sqrt(0.75 * 0.25 / 4 + 0.5 * 0.5 / 2)),
    }


def test_both_judges_hear_written_and_held_out_reviews(reviews: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Mock(side_effect=lambda _, starts, prefix: [f"{start} {prefix[11:14]}" for start in starts])
    monkeypatch.setattr(control, "written", asked)
    monkeypatch.setattr(control, "likelier", lambda _, texts: [text.endswith("pos") for text in texts])
    monkeypatch.setattr(control, "naive_bayes", lambda words: lambda texts: ["bad" not in text for text in texts])
    found = control.measure(Mock(), Mock(), 3)
    assert asked.call_args.args[1] == ["the cat sat", "the rat sat", "and more cat"]
    told = {(each["reviews"], each["judge"]): each for each in found}
    assert len(told) == len(found) == 4
    assert told["written", "tuned model"]["moved"] == 1
    assert told["written", "naive Bayes of words"]["moved"] == 0
    assert told["held out", "naive Bayes of words"]["positive_when_positive"] == 0.5
    assert told["held out", "naive Bayes of words"]["positive_when_negative"] == 0


def test_a_model_writes_on_and_judges_as_its_likelihoods_say(tmp_path: Path) -> None:
    write_untrained(tmp_path)
    writer = load(tmp_path)[0]
    prefix, starts = "the cat", ["the rat", "the rat", "the mat"]
    texts = control.written(writer, starts, prefix)
    assert [text[:7] for text in texts] == starts and all(len(text) > 7 for text in texts)
    assert texts[0] != texts[1]  # each has its own draws
    assert texts == control.written(writer, starts, prefix)
    odds = [
        writer.log_odds(
            [(encode(writer.tokeniser, f"Review: {text}\nSentiment:"), encode(writer.tokeniser, f" {answer}"))]
        )[0].total
        for text in ("a cat", "")
        for answer in ("negative", "positive")
    ]
    assert control.likelier(writer, ["a cat", ""]) == [odds[1] > odds[0], odds[3] > odds[2]]


@pytest.mark.parametrize("count", ["0", "1", "4"])
def test_a_number_of_starts_that_is_out_of_range_is_named(
    reviews: None, count: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["control", "--control", "x", "--classifier", "y", "--starts", count])
    with pytest.raises(SystemExit) as caught:
        control.main()
    assert caught.value.code == 2
    assert f"--starts {count} is out of range; give 2 to 3" in capsys.readouterr().err
