"""Preferences are learned with the real launcher: from a run, stopped and resumed bit for bit, and evaluated."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from run.metrics import read_metrics, read_steps, reproducible
from tests.commands.documented import check
from tests.commands.running import fail, succeed
from tests.commands.test_tune import STEPS, settings, tune
from tests.data.corpus.test_examples import write
from tests.inference.conftest import write_untrained

GOOD, BAD = " on the mat", " on the cat"
PAIRS = [
    {"prompt": f"the cat {'sat ' * (n % 5)}", "completion": " sat", "chosen": GOOD, "rejected": BAD} for n in range(120)
]


def said(content: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "the rat?"}, {"role": "assistant", "content": content}]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that was never trained, two files of pairs, and a run on a blend of them without a stop."""
    home = tmp_path_factory.mktemp("prefer")
    (home / "base").mkdir()
    write_untrained(home / "base", "seq_length=64", "dropout=0.1")
    write(home / "rows.jsonl", *PAIRS)
    write(
        home / "talks.jsonl",
        *({"messages": said("on"), "chosen": said("sat"), "rejected": said("and more")} for _ in range(60)),
    )
    prefer(home, "unbroken")
    return home


def prefer(home: Path, name: str, *flags: str, more: Sequence[str] = ()) -> str:
    start = ["pretrain", "tune_sentiment", "--processes", "1", "--run-dir", str(home / name), *flags]
    base = () if {"--resume", "--from"} & {*flags} else ("--from", str(home / "base"))
    return succeed(home, "commands", *start, *base, *settings(home), "dpo.beta=0.2", *more)


def test_a_stopped_run_goes_on_bit_for_bit_without_its_reference(home: Path) -> None:
    said = prefer(home, "stopped", "--max-steps", "3")
    assert "reference: " not in said  # what the first run has written is there
    (home / "base").rename(home / "gone")
    assert "proved: a loss of" in prefer(home, "stopped", "--resume")
    (home / "gone").rename(home / "base")
    whole, both = (reproducible(read_steps(home / name / "metrics.jsonl")) for name in ("unbroken", "stopped"))
    assert len(whole) == STEPS and whole == both
    parts = json.loads((home / "unbroken" / "data.json").read_text())["parts"]
    assert all(Path(part["folder"], f"{part['reference']['name']}.json").exists() for part in parts)


def test_a_branch_has_a_reference_of_its_own_and_proves_its_parents_weights(home: Path) -> None:
    said = prefer(home, "branch", "--from", f"{home / 'unbroken'}@3", more=["model.dropout=0"])
    assert f"reference: {home / 'unbroken'}@3 reads" in said and "proved: a loss of" in said
    first, *_ = read_steps(home / "branch" / "metrics.jsonl")
    assert first["step"] == 4 and first["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_it_begins_at_the_reference_and_learns(home: Path) -> None:
    """Before the first step no side has gained. Dropout is on, so the loss is near that of a coin, ln 2."""
    first, *_ = read_steps(home / "unbroken" / "metrics.jsonl")
    assert abs(first["loss"] - math.log(2)) < 0.1
    prefer(home, "exact", "--max-steps", "1", more=["model.dropout=0"])
    first, *_ = read_steps(home / "exact" / "metrics.jsonl")
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    final = read_metrics(home / "unbroken" / "metrics.jsonl")[-1]
    assert final["final_validation_loss"] < math.log(2) and final["final_validation_accuracy"] == pytest.approx(1)
    report = json.loads((home / "unbroken" / "report.json").read_text())
    assert report["validation_accuracy"] == final["final_validation_accuracy"]
    assert report["perplexity"] is report["bits_per_byte"] is None
    told = succeed(home, "commands", "report", "--run", str(home / "unbroken"))
    assert "nats a pair" in told and "100.0% of pairs" in told


def test_adapters_that_were_tuned_are_the_reference_of_those_that_go_on(home: Path) -> None:
    lora = ["lora.rank=2", "model.dropout=0", "optimizer.lr=1e-2"]
    tune(home, "tuned", "--max-steps", "3", more=lora)
    prefer(home, "adapters", "--from", str(home / "tuned"), more=lora)
    first, *_, last = read_steps(home / "adapters" / "metrics.jsonl")
    assert first["step"] == 1 and first["loss"] == pytest.approx(math.log(2), abs=1e-6) and last["loss"] < 0.69


def test_evaluate_says_which_answers_are_likelier(home: Path) -> None:
    asked = ["evaluate", "--run", str(home / "unbroken"), "--data"]
    swapped = [{"prompt": "the cat ", "chosen": BAD, "rejected": GOOD}, {**PAIRS[0]}, {**PAIRS[1]}, {**PAIRS[2]}]
    found = json.loads(succeed(home, "commands", *asked, str(write(home / "swapped.jsonl", *swapped)), "--json"))
    check("evaluate of pairs", found)
    assert found["objective"] == "pairs" and found["pairs"] == 4 and found["likelier"] in (0.25, 0.75)
    assert "the chosen answer is likelier in" in succeed(home, "commands", *asked, "validation")
    told = succeed(home, "commands", "status", "--run", str(home / "unbroken"))
    assert "\nvalidation 0." in told and "a token" not in told
    wrong = fail(home, "commands", *asked, str(write(home / "plain.jsonl", {"prompt": "a", "completion": "b"})))
    assert 'line 1 has no field "chosen"' in wrong


def test_bad_input_leaves_nothing_half_written(home: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", *PAIRS, {"prompt": "the cat", "chosen": "x", "rejected": "x"})
    given = ["pretrain", "tune_sentiment", "--run-dir", str(tmp_path / "run"), "--set", f"data.corpus={rows}"]
    complaint = fail(home, "commands", *given, "dpo.beta=0.1", "--from", str(home / "base"))
    assert complaint.startswith(f'error: corpus file {rows} line 121 has the same in "chosen" and "rejected"')
    alone = fail(home, "commands", *given, "dpo.beta=0.1")
    assert "tunes a model; say which with --from" in alone
    assert not (tmp_path / "run").exists()
