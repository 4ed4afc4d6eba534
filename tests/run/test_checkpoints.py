"""Which checkpoint a step, `best` or `newest` means, and what becomes of damaged ones."""

import json
from pathlib import Path

import pytest

from commands import evaluate
from run.checkpoints import choose
from support.errors import UserError
from tests.inference import conftest
from tests.run import directories

untrained = conftest.run


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A run that was saved at three steps and evaluated at two of them, and at one more."""
    path = directories.run(tmp_path, "x", steps=40, validation={10: 3.0, 15: 1.0, 20: 2.0, 40: float("nan")})
    directories.lines(
        path / "metrics.jsonl", [{"step": 20, "final_validation_loss": 9.0}]
    )  # of a start that ended there
    for step in (10, 20, 40):
        directories.checkpoint(path, step)
    return path


def test_a_checkpoint_by_its_step_or_as_the_best_or_the_newest(path: Path) -> None:
    found = {which: choose(path, which).step for which in (None, "newest", "best", "10", " 20 ")}
    assert found == {None: 40, "newest": 40, "best": 20, "10": 10, " 20 ": 20}
    for which, words in {"30": "of step 30; there are 10, 20, 40", "last": "'last' is no", "": "'' is no"}.items():
        with pytest.raises(UserError, match=words):
            choose(path, which)


def test_a_damaged_checkpoint_is_passed_over_aloud(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for step in (20, 40):
        (path / "checkpoints" / f"step-{step:08d}" / "rank-00000.safetensors").write_bytes(b"x")
    best, newest = choose(path, "best"), choose(path)
    assert best.step == newest.step == 10 and (len(best.passed_over), len(newest.passed_over)) == (1, 2)
    newest.tell()
    said = capfd.readouterr()
    assert said.out == "" and said.err.count("passing over a damaged checkpoint: ") == 2
    assert "step-00000040/rank-00000.safetensors has 1 bytes where its manifest says 1000; taking step 10" in said.err
    with pytest.raises(UserError, match=r"has 1 bytes .*; restore it, or take another; whole may be 10, 20"):
        choose(path, "40")
    (path / "checkpoints" / "step-00000010" / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"has no checkpoint to read: .*step-00000040.*; restore it, or take another$"):
        choose(path)


def test_a_run_that_was_not_evaluated_where_it_was_saved_has_no_best(path: Path) -> None:
    (path / "metrics.jsonl").write_text('{"step": 10, "loss": 3}\n{"step": 15, "validation_loss": 3}\n')
    with pytest.raises(
        UserError, match=r"no validation loss of .* at a step that is saved \(10, 20, 40\); give a step"
    ):
        choose(path, "best")


def test_evaluate_says_which_checkpoint_it_took(
    untrained: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    directories.checkpoint(untrained, 9, damaged=True)
    (untrained / "text.txt").write_text(conftest.WORDS)
    flags = ["--run", str(untrained), "--data", str(untrained / "text.txt"), "--json"]
    monkeypatch.setattr("sys.argv", ["evaluate", *flags])
    evaluate.main()
    out, err = capfd.readouterr()
    values = json.loads(out)
    assert values["checkpoint"] == 7 and "is not the file that its manifest describes" in values["passed_over"][0]
    assert "passing over a damaged checkpoint" in err
    monkeypatch.setattr("sys.argv", ["evaluate", *flags, "--checkpoint", "9"])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "step-00000009/rank-00000.safetensors is not the file" in capfd.readouterr().err
