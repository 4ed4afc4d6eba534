"""What is wrong with a model or a place to write to is one line that names it, and nothing is half-written."""

import json
import os
import resource
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import generate as command
from inference import export, generate, prompts
from inference.sampling import Sampling
from model.checkpoint.weights import write_weights
from support import json_lines
from tests.inference.test_prompts import given, write

__all__ = ["given"]  # a fixture

FEW = Sampling(samples=2, max_new_tokens=4)


@pytest.fixture
def folder(run: Path) -> Path:
    """The export of a run."""
    export.export(run, run.parent / "exported")
    return run.parent / "exported"


def test_a_tensor_that_a_checkpoint_lacks_is_named(run: Path) -> None:
    writer, _ = generate.load(run)
    weights = [(name, value.detach()) for name, value in writer.stage.named_parameters()]  # type: ignore[attr-defined]
    gone, _ = weights.pop(7)
    write_weights(run / "checkpoints", iter(weights), {}, {"step": 8, "consumed_samples": 128})
    with pytest.raises(ValueError, match=f"do not have the same parameters, for example {gone}; use the recipe"):
        generate.generate(run, "the", FEW)


def test_a_tensor_that_a_folder_lacks_is_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("transformer.h.1.mlp.c_fc.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    words = r"exported lacks the tensor transformer\.h\.1\.mlp\.c_fc\.weight; copy it again"
    with pytest.raises(ValueError, match=words):
        generate.generate(folder, "the", FEW)


def test_a_tensor_of_another_shape_and_a_broken_configuration_are_one_line(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for change in ({"n_embd": 32}, {"n_head": 3}, {"n_layer": "two"}, {"model_type": 3}, {"dtype": "float3"}):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match="exported cannot be read as a model: ") as caught:
            generate.generate(folder, "the", FEW)
        assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokeniser_is_one_line(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"tokeniser '.*exported' ") as caught:
        generate.generate(folder, "the", FEW)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", [{}, {"greedy": True}, {"beams": 2, "samples": 1}])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_scores_of_a_folder_that_are_no_numbers_are_one_line(how: dict[str, int], value: float, folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["transformer.ln_f.bias"][:] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="the model's scores are not finite: its training has diverged"):
        generate.generate(folder, "the", Sampling(**{"samples": 2, "max_new_tokens": 4, **how}))  # type: ignore[arg-type]


def test_scores_that_rank_and_are_no_numbers_are_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from inference.writers import RunWriter

    monkeypatch.setattr(RunWriter, "log_odds", lambda self, texts: [torch.nan] * len(texts))
    for by in ("likelihood", "mutual"):
        with pytest.raises(ValueError, match="the model's scores are not finite"):
            generate.generate(run, "the", FEW, by=by)


@pytest.mark.parametrize("flags", [
    ["--temperature", "1e-40"], ["--temperature", "1e308"], ["--repetition-penalty", "1e300"], ["--bias", "a=1e300"],
])  # fmt: skip
def test_numbers_that_no_score_survives_are_out_of_range(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["generate", "--run", "x", "--prompt", "the", *flags])
    with pytest.raises(SystemExit) as ended:
        command.main()
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(f"error: {flags[0]}") and error.count("\n") == 1


def test_numbers_at_the_end_of_their_range_write(run: Path) -> None:
    for how in (Sampling(temperature=1e-6), Sampling(temperature=1e6), Sampling(repetition_penalty=1e6)):
        assert generate.generate(run, "the", how)["samples"]


def test_a_mark_before_a_text_is_no_part_of_it(run: Path, tmp_path: Path) -> None:
    for name, line in (("a.txt", "the"), ("a.jsonl", '{"prompt": "the"}')):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")
        assert [prompt.text for prompt in prompts.read_prompts(tmp_path / name)] == ["the"]
    assert prompts.read_prompt(None, tmp_path / "a.txt") == "the\n"


@pytest.mark.parametrize(("content", "words"), [
    (b"the\n\0\n", "is no text: character 5 is zero; give a text in UTF-8"),
    ("the\n".encode("utf-16"), "is not UTF-8 at byte 0; convert it"),
    (b"\x7fELF\x02\x80", "is not UTF-8 at byte 5; convert it"),
    (b'{"prompt": "a\\ud800b"}\n', 'line 1: "prompt" holds half of a surrogate pair, which is no text'),
    (b"[" * 100_000, "line 1: not JSON: "),
])  # fmt: skip
def test_a_file_that_is_no_text_is_one_line(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="--prompts ") as caught:
        prompts.read_prompts(tmp_path / "a.jsonl")
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_prompts_may_come_through_a_pipe_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = subprocess.Popen(["bash", "-c", 'printf "a\\nb\\n" > "$0"', tmp_path / "pipe"])
    assert [prompt.text for prompt in prompts.read_prompts(tmp_path / "pipe")] == ["a", "b"]
    assert writer.wait() == 0
    with pytest.raises(ValueError, match="pipe is a pipe, which can be read but once"):
        prompts.read_prompts(tmp_path / "pipe", again=True)


def test_a_place_where_nothing_can_be_written_is_one_line(given: Path) -> None:
    (given.parent / "file").write_text("")
    with pytest.raises(ValueError, match=r"--out .*file/out.jsonl: .*/file is a file; give another place"):
        write(given, given.parent / "file" / "out.jsonl")
    with pytest.raises(ValueError, match="--out /dev/null is no file; give a file"):
        write(given, Path("/dev/null"))
    write(given, given.parent / "new" / "folder" / "out.jsonl")
    assert len(json_lines.read(given.parent / "new" / "folder" / "out.jsonl")) == 5


def test_a_full_disk_leaves_whole_rows(given: Path) -> None:
    """The limit on a file stands in for the disk: a write is cut at it, and the next one is refused."""
    out = given.parent / "out.jsonl"
    write(given, given.parent / "whole.jsonl")
    whole = (given.parent / "whole.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (first + 20, before[1]))
    try:
        with pytest.raises(ValueError, match=r"no room left to write .*out.jsonl: File too large") as caught:
            write(given, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value) and out.read_bytes() == whole[:first]
    assert write(given, out)["kept"] == 1 and sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_texts_longer_than_the_context_are_not_ranked_by_the_model(run: Path) -> None:
    with pytest.raises(ValueError, match="does not fit: behind a prompt of 1 tokens a context of 32 has room for"):
        generate.generate(run, "the", Sampling(samples=2, max_new_tokens=32), by="mutual")
