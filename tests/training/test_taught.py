"""A run with a teacher, from its text to its resume, as its users run it."""

import json
from pathlib import Path

from tests.commands.running import fail, metrics, small, succeed, write_corpus
from tests.inference.conftest import write_untrained


def test_a_run_learns_from_a_teacher_and_goes_on_without_it(tmp_path: Path) -> None:
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    write_untrained(teacher)
    corpus = small(write_corpus(tmp_path / "corpus.jsonl"))
    settings = [*corpus, f"data.tokeniser={teacher / 'tokeniser'}"]
    taught = [*settings, f"teacher.model={teacher}", "teacher.top_k=5", "teacher.soft_share=1"]
    start = ["recipes.gpt_tiny", "--processes", "2", "--run-dir", str(run)]
    said = succeed(tmp_path, *start, "--max-steps", "4", *taught)
    assert "teacher: " in said and " are written" in said
    (part,) = json.loads((run / "data.json").read_text())["parts"]
    assert part["teacher"]["top_k"] == 5 and Path(part["folder"], f"{part['teacher']['name']}.json").exists()
    teacher.rename(tmp_path / "gone")
    refused = fail(tmp_path, *start, "--resume", "--max-steps", "6", "--set", "teacher.top_k=6")
    assert "was started with teacher.top_k 5, not 6; resume it without that setting, or begin a branch" in refused
    assert "proved: " in succeed(tmp_path, *start, "--resume", "--max-steps", "6")
    steps = [line for line in metrics(run) if "loss" in line]
    # All of the loss is the divergence from a teacher that expects nearly the same of every id, as the model does:
    # next to nothing, where the cross entropy of hundreds of ids is above 5.
    assert len(steps) == 6 and all(0 <= line["loss"] < 1 for line in steps)
    validation = [line["validation_loss"] for line in metrics(run) if "validation_loss" in line]
    assert min(validation) > 4
