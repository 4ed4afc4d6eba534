"""A run is tuned with the real launcher: from its weights, stopped and resumed bit for bit, and branched."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from inference.export import load_model
from run.checkpoints import choose
from run.metrics import read_steps, reproducible
from tests.commands.running import fail, succeed
from tests.data.corpus.test_examples import TALK, write
from tests.inference.conftest import write_untrained

ROWS = [{"prompt": f"the cat {'sat ' * (n % 5)}", "completion": "on the mat" if n % 2 else "no"} for n in range(120)]
STEPS = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that was never trained, two files of rows, and a run that was tuned on a blend of them without a stop."""
    home = tmp_path_factory.mktemp("tune")
    (home / "base").mkdir()
    write_untrained(home / "base", "seq_length=64", "dropout=0.1")
    write(home / "rows.jsonl", *ROWS)
    write(home / "talks.jsonl", *({"messages": TALK[1:]} for _ in range(60)))
    tune(home, "unbroken")
    return home


def settings(home: Path) -> list[str]:
    blend = f"data.corpus={home}/rows.jsonl=0.75,{home}/talks.jsonl=0.25"
    more = ["batch.global_batch=4", "batch.micro_batch=1", f"schedule.train_tokens={STEPS * 4 * 64}"]
    more += ["schedule.warmup_tokens=256", f"schedule.decay_tokens={STEPS * 4 * 64}", "model.dropout=0.1"]
    return ["--set", blend, *more, "intervals.evaluate_every=3", "intervals.save_every=3"]


def tune(home: Path, name: str, *flags: str, more: Sequence[str] = ()) -> str:
    start = ["pretrain", "tune_sentiment", "--processes", "1", "--run-dir", str(home / name), *flags]
    base = () if "--resume" in flags else ("--from", str(home / "base"))
    return succeed(home, "commands", *start, *base, *settings(home), *more)


def test_a_stopped_run_goes_on_bit_for_bit(home: Path) -> None:
    tune(home, "stopped", "--max-steps", "3")
    out = tune(home, "stopped", "--resume")
    assert "proved: a loss of" in out
    whole, both = (reproducible(read_steps(home / name / "metrics.jsonl")) for name in ("unbroken", "stopped"))
    assert len(whole) == STEPS and whole == both
    assert [sum(line["samples_by_part"]) for line in whole] == [4 * step for step in range(1, STEPS + 1)]
    assert whole[-1]["samples_by_part"] == [18, 6]
    who = json.loads((home / "unbroken" / "run.json").read_text())["parent"]
    assert (who["tuned"], who["step"], who["consumed_samples"]) == (True, 7, 0)


def test_adapters_are_tuned_from_nothing_and_go_on_bit_for_bit(home: Path) -> None:
    lora = ["lora.rank=2", "lora.targets=qkv"]
    tune(home, "adapters", more=lora)
    tune(home, "half", "--max-steps", "3", more=lora)
    tune(home, "half", "--resume", more=lora)
    whole, both = (reproducible(read_steps(home / name / "metrics.jsonl")) for name in ("adapters", "half"))
    assert [line["step"] for line in whole] == list(range(1, STEPS + 1)) and whole == both
    full = reproducible(read_steps(home / "unbroken" / "metrics.jsonl"))
    assert whole[0]["loss"] == full[0]["loss"] != whole[-1]["loss"]  # B is zero at first
    before, after = (load_model(path, choose(path)).state_dict() for path in (home / "base", home / "adapters"))
    moved = {name.split(".", 2)[2] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"attention.qkv.weight"}


def test_the_report_and_evaluate_say_what_was_learned(home: Path) -> None:
    report = json.loads((home / "unbroken" / "report.json").read_text())
    out = succeed(home, "commands", "evaluate", "--run", str(home / "unbroken"), "--json")
    found = json.loads(out)
    assert found["objective"] == "answers" and [part["share"] for part in found["parts"]] == [0.75, 0.25]
    # A run pools the tokens of answers of a blend, and evaluate takes the mean of the parts by their shares.
    assert report["validation_loss"] == pytest.approx(found["loss"], rel=0.02)
    assert "nats an answer token" in succeed(home, "commands", "report", "--run", str(home / "unbroken"))


def test_bad_input_leaves_nothing_half_written(home: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", *ROWS, {"prompt": "the cat"})
    given = ["--from", str(home / "base"), "--set", f"data.corpus={rows}", "--run-dir", str(tmp_path / "run")]
    complaint = fail(home, "commands", "pretrain", "tune_sentiment", *given)
    assert complaint.startswith(f"error: corpus file {rows} line 121 has neither")
    assert not (tmp_path / "run").exists()
