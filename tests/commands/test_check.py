"""`stagecraft check`: all problems of a JSON at once, or what it resolves to."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from commands.__main__ import main
from recipes.registry import ROOT
from support.errors import WRONG_INPUT
from tests.commands import documented

WRONG = """{
  // one problem a line
  "communication_data_type": "fp17",
  "zero_optimization": {
    "reduce_bucket_size": 0,
  },
  "steps_per_print": 0,
  "fp16": {"initial_scale_power": 500}, # and two here
  "scheduler": {"type": "WarmpLR"},
  "gradient_acumulation_steps": 2,
  "train_micro_batch_size_per_gpu": 1.5
}"""
PROBLEMS = [
    (3, "communication_data_type", "it must be fp32 or bf16 or fp16"),
    (5, "zero_optimization.reduce_bucket_size", "it must be a whole number of at least 1"),
    (7, "steps_per_print", "it must be a whole number of at least 1"),
    (8, "fp16.initial_scale_power", "it must be a whole number of at least 0 and at most 32"),
    (9, "scheduler.type", "did you mean WarmupLR or WarmupDecayLR?"),
    (10, "gradient_acumulation_steps", "did you mean gradient_accumulation_steps or managed_gradient_accumulation?"),
    (11, "train_micro_batch_size_per_gpu", "it must be a whole number of at least 1"),
]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["stagecraft", *arguments])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    path = tmp_path / "mine.json"
    path.write_text(WRONG)
    return path


def test_all_problems_stand_in_one_line_each(
    wrong: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "check", str(wrong)) == WRONG_INPUT
    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == len(PROBLEMS)
    for line, (number, key, remedy) in zip(lines, PROBLEMS, strict=True):
        assert line.startswith(f"error: {wrong} line {number}: ") and key in line and line.endswith(f"; {remedy}")


def test_all_problems_as_json(wrong: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "check", str(wrong), "--json") == WRONG_INPUT
    values = json.loads(capfd.readouterr().out)
    assert [(each["line"], each["key"], each["remedy"]) for each in values["problems"]] == PROBLEMS
    assert {each["file"] for each in values["problems"]} == {str(wrong)} and values["resolved"] == {}
    assert run(monkeypatch, "check", "ds_configs/zero1_bf16.json", "--json") == 0
    documented.check("check", values, json.loads(capfd.readouterr().out))


def test_a_start_says_all_of_them_and_writes_nothing(
    wrong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    assert run(monkeypatch, "pretrain", "tiny", "--deepspeed_config", str(wrong)) == WRONG_INPUT
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == len(PROBLEMS) and all(line.startswith("error: ") for line in lines)
    assert list(tmp_path.iterdir()) == [wrong]


def test_an_empty_name_and_no_ranks_are_not_left_out(
    wrong: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    assert run(monkeypatch, "pretrain", "tiny", "--deepspeed_config", "") == WRONG_INPUT
    assert "give a DeepSpeed JSON" in capfd.readouterr().err
    assert run(monkeypatch, "check", "ds_configs/zero1_bf16.json", "--world-size", "0") == WRONG_INPUT
    assert "needs at least 1 ranks" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == [wrong]


def test_layout_and_batch_are_checked_in_the_same_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"train_batch_size": 30,\n"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": 7}')
    assert run(monkeypatch, "check", str(path), "--recipe", "530b") == WRONG_INPUT
    first, second = capfd.readouterr().err.splitlines()
    assert "line 2: ZeRO stage 2 does not go with layout.pp 35" in first
    assert "line 2: global batch 30 is not micro-batch 1 x accumulation 7 x data degree 8 = 56" in second


def test_a_good_one_is_shown_resolved_with_its_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"optimizer": {"params": {"lr": 1, "torch_adam": true}}, "fp16": {"opt_level": "O2"}}')
    assert run(monkeypatch, "check", str(path), "--recipe", "tiny", "--world-size", "1") == 0
    out = capfd.readouterr().out
    resolved, end = json.JSONDecoder().raw_decode(out)
    assert resolved["optimizer"]["params"]["betas"] == [0.9, 0.95] and resolved["train_batch_size"] == 16
    assert out[end:].splitlines()[1:] == [
        f"{path} is good for gpt_tiny on 1 ranks",
        "deviates from the recipe: optimizer.params.lr is 1 (recipe: 0.003)",
        "fp16.opt_level is dropped: it belongs to Apex, which DeepSpeed 0.19.8 has no more",
        "gradient_clipping is 1.0: the JSON does not say it",
        "differs from the recipe's own JSON: optimizer.params.lr is 1 (there: 0.003)",
        "differs from the recipe's own JSON: optimizer.params.fused is unset (there: True)",
        "differs from the recipe's own JSON: zero_optimization.stage is 0 (there: 1)",
        "differs from the recipe's own JSON: zero_optimization.overlap_comm is unset (there: True)",
    ]


def test_a_check_imports_nothing_that_takes_seconds() -> None:
    code = (
        "import sys; sys.argv = ['stagecraft', 'check', 'ds_configs/zero3_fp16.json', '--json']; import "
        "commands.__main__; commands.__main__.main(); assert not {'torch', 'deepspeed', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
