"""The watch inside the loop: rollbacks, resumes that prove themselves, and saves that are asked for."""

import re
from pathlib import Path

import pytest

from model.checkpoint.format import manifest
from run import save_request
from tests.faults.loops import Fault, happened, run_steps, steps, tensors


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))


def test_many_skips_in_a_row_roll_back_past_the_samples(tmp_path: Path) -> None:
    """Step 4 is taken and its weights are given up; steps 5 to 14 read samples 32 to 111 and are skipped."""
    whole, broken, fault = tmp_path / "whole", tmp_path / "broken", Fault(bad=(5, 14), save=(2,))
    assert run_steps(whole, 18, fault=fault) == ["", ""]
    rolled = {"event": "rollback", "from_step": 14, "to_step": 3, "first_sample": 24, "last_sample": 111}
    assert happened(whole, "rollback") == [rolled]
    assert [event["step"] for event in happened(whole, "saved")] == [2, 3, 14, 15, 18]  # 2: by SIGUSR2
    lines = steps(whole)
    assert [line["step"] for line in lines if line["skipped"]] == list(range(5, 15))
    assert [line["loss"] is None for line in lines] == [line["skipped"] for line in lines]
    assert [line["consumed_samples"] for line in lines] == [8 * step for step in range(1, 19)]
    checkpoints = whole / "checkpoints"
    assert tensors(checkpoints / "step-00000014") == tensors(checkpoints / "step-00000003")
    assert run_steps(broken, 14, fault=fault) == ["", ""]  # ends with the rollback
    assert run_steps(broken, 18, fault=fault) == ["", ""]
    theirs = steps(broken)
    theirs[13].pop("validation_loss")  # the end of the first part was evaluated
    lines[17]["validation_loss"] = theirs[17]["validation_loss"]
    assert theirs == lines
    assert tensors(broken / "checkpoints" / "step-00000018") == tensors(checkpoints / "step-00000018")


def test_rollbacks_that_do_not_help_end(tmp_path: Path) -> None:
    path = tmp_path / "run"
    ends = run_steps(path, 40, fault=Fault(bad=(5, 40), most_skipped=2))
    assert all(
        end.startswith("3: no step is taken up to step 12") and "3 rollbacks did not help" in end for end in ends
    )
    assert [event["to_step"] for event in happened(path, "rollback")] == [3, 6, 8]
    assert [event["first_sample"] for event in happened(path, "rollback")] == [24, 48, 64]
    assert len({tuple(tensors(folder)) for folder in (path / "checkpoints").iterdir()}) == 1  # all are those of step 3


def test_weights_without_a_finite_loss_are_not_saved(tmp_path: Path) -> None:
    """The steps before were taken and logged; what a rank then computes with is lost."""
    path = tmp_path / "run"
    assert run_steps(path, 7, fault=Fault(breaks=6)) == ["", ""]
    rolled = {"event": "rollback", "from_step": 6, "to_step": 3, "first_sample": 24, "last_sample": 47}
    assert happened(path, "rollback") == [rolled]
    third, sixth = (tensors(path / "checkpoints" / f"step-0000000{step}") for step in (3, 6))
    assert third == sixth and not any(line["skipped"] for line in steps(path))


WAYS = {
    "zero0_fp32": (),
    "zero3_bf16": (),
    "zero2_offload_bf16": (),
    "zero1_fp16": ("layout.tp=2",),
    "pipeline_bf16": ("layout.pp=2",),
}


@pytest.mark.parametrize("engine", WAYS)
def test_rollbacks_and_proofs_disturb_nothing(engine: str, tmp_path: Path) -> None:
    """In each of DeepSpeed's ways to keep and to move weights: a run that is resumed after a rollback is the unbroken
    one, and its proof is equal to the bit. fp16 looks for its loss scale, and does not go back."""
    whole, broken, fault = tmp_path / "whole", tmp_path / "broken", Fault(bad=(4, 5), most_skipped=2)
    assert run_steps(whole, 7, *WAYS[engine], engine=engine, fault=fault) == ["", ""]
    for last in (5, 7):
        assert run_steps(broken, last, *WAYS[engine], engine=engine, fault=fault) == ["", ""]
    assert [event["to_step"] for event in happened(whole, "rollback")] == ([] if "fp16" in engine else [3])
    proved = [event["line"] for event in happened(broken, "said") if event["line"].startswith("proved")]
    assert len(proved) == 1 and re.search(r"a loss of (\S+) over samples \d+ to \d+, \1 was saved", proved[0])
    first, second = (tensors(path / "checkpoints" / "step-00000007") for path in (whole, broken))
    assert first == second


def test_a_resume_proves_itself(tmp_path: Path) -> None:
    """To the bit on the same ranks, to fp32 accuracy in another layout; a weight that is a little off is noticed."""
    path = tmp_path / "run"
    assert run_steps(path, 3) == ["", ""]
    ends = run_steps(path, 4, fault=Fault(loads=True))
    found = [re.fullmatch(r"3: .* a loss of (\S+) over samples 16 to 19, (\S+) was saved, .* bit; .*", e) for e in ends]
    assert found[0] and found[0][1] != found[0][2] and ends[0] == ends[1]
    saved = manifest(path / "checkpoints" / "step-00000003")["state"]["proof"]
    assert repr(saved["loss"]) == found[0][2] and saved["first"] == 16 and saved["count"] == 4
    (path / save_request.FILE).touch()
    assert run_steps(path, 4) == ["", ""]
    assert not (path / save_request.FILE).exists()
    assert run_steps(path, 5, "layout.tp=2") == ["", ""]
    assert run_steps(path, 6, "layout.tp=1", world=1) == [""]
    said = [event["line"] for event in happened(path, "said") if event["line"].startswith("proved")]
    assert [re.search("samples .* to .*,", line)[0] for line in said] == [  # type: ignore[index]
        "samples 16 to 19,",
        "samples 24 to 27,",
        "samples 32 to 33,",
    ]
