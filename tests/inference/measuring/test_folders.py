"""An export is as good as its run; somebody else's model is measured by a plain forward pass."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, GPT2Config, LlamaConfig

from commands import evaluate as command
from data.tokens import prepare, tokenisers
from inference import evaluate, export
from inference.measuring import losses, models
from model.checkpoint.weights import write_weights
from tests.inference.conftest import WORDS

TEXT = f"{WORDS}Käse, the rat\n" * 5
MISSING = "transformer.h.1.mlp.c_fc.weight"


@pytest.fixture
def text(run: Path) -> str:
    """Documents of several lengths, together longer than a window."""
    path = run.parent / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": TEXT * (1 + i)}) + "\n" for i in range(3)))
    return str(path)


@pytest.fixture
def folder(run: Path) -> Path:
    export.export(run, run.parent / "export")
    return run.parent / "export"


def test_an_export_is_as_good_as_its_run(run: Path, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "BATCH_TOKENS", 96)  # three windows
    prepared = str(prepare.prepare(text, str(run / "tokeniser"), 300, run.parent / "out") / "train")
    for data in (text, prepared):
        ours, theirs = (evaluate.evaluate(path, data) for path in (run, folder))
        assert ours.pop("run") == str(run) and theirs.pop("run") == str(folder)
        assert ours.pop("checkpoint") == 7 and theirs.pop("checkpoint") is None
        assert ours["tokens"] > 100
        for key in ("loss", "perplexity", "bits_per_byte"):
            assert theirs.pop(key) == pytest.approx(ours.pop(key), rel=1e-5)
        assert theirs.pop("parts")[0]["loss"] == pytest.approx(ours.pop("parts")[0]["loss"], rel=1e-5)
        assert ours == theirs
    words = [evaluate.word_perplexity(path, text)["word_perplexity"] for path in (run, folder)]
    assert words[0] == pytest.approx(words[1], rel=1e-4)


@pytest.mark.parametrize("framed", [True, False])
def test_another_model_by_hand(framed: bool, tmp_path: Path, text: str) -> None:
    """Windows of its context, at most of `LONGEST`; in front what its tokeniser puts there, else the end of a document.
    Rows of its embedding that are no id of the tokeniser have no share of the odds."""
    tokeniser = tokenisers.train_bpe([WORDS] * 9, 300)
    tokeniser.add_special_tokens({"bos_token": "<s>"})
    begin, end, entries = tokeniser.bos_token_id, tokeniser.eos_token_id, tokenisers.entries(tokeniser)
    if framed:
        frame = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
        tokeniser.backend_tokenizer.post_processor = frame
    tokenisers.save(tokeniser, tmp_path)
    torch.manual_seed(1)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=entries + 5, max_position_embeddings=20, initializer_range=0.3, **shape)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    documents = [TEXT * (1 + i) for i in range(3)]
    tokens = [begin if framed else end]
    for document in documents:
        pieces = document.split("<|endoftext|>")  # the name of a special token is plain text
        assert len(pieces) > 1
        tokens += [*tokeniser(document, add_special_tokens=False, split_special_tokens=True)["input_ids"], end]
    assert tokens.count(end) == 3 + (not framed)
    each = []
    for start in range(0, len(tokens) - 1, 20):
        window = torch.tensor([tokens[start : start + 21]])
        with torch.no_grad():
            odds_SE = model(window[:, :-1]).logits[0, :, :entries].log_softmax(-1)
        each.append(-odds_SE.gather(1, window[0, 1:, None])[:, 0])
    values = evaluate.evaluate(tmp_path, text)
    assert values["loss"] == pytest.approx(float(torch.cat(each).mean()), rel=1e-5)
    assert values["context"] == 20 and values["tokens"] == len(tokens) - 1
    assert values["bytes"] == sum(len(document.encode()) for document in documents)


def test_a_model_with_an_endless_context_is_read_in_long_windows(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokeniser = tokenisers.train_bpe([WORDS] * 9, 300)
    tokenisers.save(tokeniser, tmp_path)
    config = GPT2Config(vocab_size=tokenisers.entries(tokeniser), n_positions=64, n_embd=8, n_layer=1, n_head=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    monkeypatch.setattr(models, "LONGEST", 48)
    assert evaluate.evaluate(tmp_path, text)["context"] == 48


def changed(folder: Path, out: Path, name: str, value: torch.Tensor | None) -> Path:
    """A copy of an export with one tensor changed, or gone."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    assert name in tensors
    tensors = {key: tensor for key, tensor in tensors.items() if key != name or value is not None}
    save_file(tensors | ({} if value is None else {name: value}), out / "model.safetensors", metadata={"format": "pt"})
    return out


def refused(
    path: Path, data: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *flags: str
) -> str:
    """The one line that the command ends with; it ends with status 2."""
    monkeypatch.setattr("sys.argv", ["evaluate", "--run", str(path), "--data", data, *flags])
    capfd.readouterr()
    with pytest.raises(SystemExit, match="2"):
        command.main()
    found = capfd.readouterr()
    assert found.err.count("\n") == 1 and not found.out, found.err
    return found.err


def test_a_damaged_export_is_one_line(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    lacks = changed(folder, folder.with_name("lacks"), MISSING, None)
    assert f"lacks the tensor {MISSING}, or" in refused(lacks, text, monkeypatch, capfd)
    shape = changed(folder, folder.with_name("shape"), MISSING, torch.zeros(16, 32))
    assert f"lacks the tensor {MISSING}, or holds it in another shape" in refused(shape, text, monkeypatch, capfd)
    nan = changed(folder, folder.with_name("nan"), MISSING, torch.full((16, 64), torch.nan))
    assert f"the loss on {text} is not finite" in refused(nan, text, monkeypatch, capfd)
    (folder / "tokenizer.json").unlink(), (folder / "tokenizer_config.json").unlink()
    assert "tokeniser" in refused(folder, text, monkeypatch, capfd)


def test_what_a_folder_does_not_have_is_one_line(
    run: Path, folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "has no validation data of its own" in refused(folder, "validation", monkeypatch, capfd)
    assert "it has no checkpoints" in refused(folder, text, monkeypatch, capfd, "--checkpoint", "7")
    prepared = prepare.prepare(text, str(run / "tokeniser"), 300, run.parent / "out") / "validation"
    tokenisers.save(tokenisers.train_bpe(["other texts have other words\n"] * 9, 300), folder)
    assert "was made with another tokeniser than" in refused(folder, str(prepared), monkeypatch, capfd)


def test_a_model_of_another_kind_is_one_line(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertForMaskedLM(BertConfig(vocab_size=50, **shape)).save_pretrained(tmp_path)
    assert "holds no causal model but BertForMaskedLM" in refused(tmp_path, text, monkeypatch, capfd)


def test_a_tokeniser_of_another_model_is_one_line(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One with a lot fewer entries too: its ids would all be known to the model, and other words."""
    config = GPT2Config(vocab_size=1000, n_positions=8, n_embd=8, n_layer=1, n_head=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    assert "for a model of 1000: they do not belong together" in refused(folder, text, monkeypatch, capfd)


def test_a_damaged_run_is_one_line(
    run: Path, text: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = models.load_model(run, None)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    monkeypatch.undo()  # the checkpoint itself is read from now on
    gone, state = "blocks.1.mlp.up.bias", {"consumed_samples": 0}
    left = ((name, value) for name, value in weights.items() if name != gone)
    write_weights(run / "checkpoints", left, {}, {"step": 8, **state})
    assert f"step-00000008 holds 0 of 1 elements of {gone}" in refused(run, text, monkeypatch, capfd)
    weights[gone].fill_(np.nan)
    write_weights(run / "checkpoints", iter(weights.items()), {}, {"step": 9, **state})
    assert f"the loss on {text} is not finite" in refused(run, text, monkeypatch, capfd)
    assert "step-00000008" in refused(run, text, monkeypatch, capfd, "--checkpoint", "8")
    values = json.loads((run / "recipe.json").read_text())
    values["model"]["vocab_size"] = 100
    (run / "recipe.json").write_text(json.dumps(values))
    assert "entries for a model of 100: it is not the one" in refused(run, text, monkeypatch, capfd)
    (run / "data.json").write_text(json.dumps({"parts": [{"vocab_size": 5, "end_of_document": 0}]}))
    assert "is not the one that the run was trained with" in refused(run, text, monkeypatch, capfd)
    shutil.rmtree(run / "tokeniser")
    assert "tokeniser is missing; restore it" in refused(run, text, monkeypatch, capfd)


def test_a_checkpoint_by_its_path(run: Path, text: str) -> None:
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    ours, theirs = evaluate.evaluate(run, text), evaluate.evaluate(checkpoint, text)
    assert ours == theirs
    with pytest.raises(ValueError, match="is a checkpoint already; leave --checkpoint 7 out"):
        evaluate.evaluate(checkpoint, text, "7")
