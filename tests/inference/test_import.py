"""An import is a run that branches begin with: trained on from, and exported as it came."""

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from commands.__main__ import main
from data.tokens import tokenisers
from inference.export import export
from model.checkpoint import format
from model.convert import detect
from model.gpt import GPT
from recipes.registry import load
from run import cleaning, record
from run.checkpoints import choose
from run.request import Request, plan_run
from support.errors import CRASHED, WRONG_INPUT, UserError
from tests.commands.documented import check
from tests.commands.running import succeed, write_corpus
from tests.inference.conftest import WORDS
from tests.model.convert import test_megatron, test_sharded
from tests.model.convert.test_universal import their_name
from tests.model.test_huggingface import randomise

SETTINGS = ("batch.global_batch=8", "batch.micro_batch=2", "intervals.save_every=2", "model.dropout=0")


FORMS = {
    "stages": "Megatron-LM checkpoint of version 3",
    "sharded": "distributed checkpoint of megatron-core",
    "zero": "ZeRO checkpoint of DeepSpeed's",
}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPT-2 with a tokeniser, as somebody may have it."""
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    tokeniser = tokenisers.train_bpe([WORDS] * 9, 300)
    entries = tokenisers.entries(tokeniser)
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=entries, n_positions=32, n_embd=32, n_layer=2, n_head=2, eos_token_id=0))
    randomise(hf)
    hf.save_pretrained(tmp_path / "source")
    tokenisers.save(tokeniser, tmp_path / "source")
    return tmp_path / "source"


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["stagecraft", *arguments])
    main()


def in_form(form: str, source: Path, folder: Path) -> Path:
    """The same model in a form of another program's."""
    foreign = detect.opened(source)
    model = GPT(foreign.config)
    model.load_state_dict(dict(foreign.weights()))
    folder.mkdir()
    if form == "stages":
        test_megatron.write_stages(folder, model, ranks=2, stages=2, turns=model.config.num_layers // 2)
    elif form == "sharded":
        test_sharded.write(folder, model=model)
    else:
        weights = {their_name(name, "megatron"): value for name, value in model.state_dict().items()}
        args = {**test_megatron.ARGS, "tensor_model_parallel_size": 1}
        torch.save({"module": weights, "args": args}, folder / "mp_rank_00_model_states.pt")
    return folder


def imported(
    source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], form: str = "Hugging Face GPT-2"
) -> Path:
    words = ("--tokeniser", str(source.with_name("source")))
    command(monkeypatch, "import", str(source), "--recipe", "tiny", "--name", "theirs", "--json", *words)
    told = json.loads(capfd.readouterr().out)
    check("import", {**told, "notes": ["x"]})
    assert told["form"] == form and told["next"] == ["stagecraft pretrain tiny --from theirs"]
    return Path(told["run"])


@pytest.mark.parametrize("form", ["folder", *FORMS])
def test_it_is_trained_on_from_and_exported_unchanged(
    form: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    theirs = source if form == "folder" else in_form(form, source, tmp_path / "theirs")
    run = imported(theirs, monkeypatch, capfd, FORMS.get(form, "Hugging Face GPT-2"))
    export(run, tmp_path / "out")
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "out"))
    assert before.keys() == after.keys() and all(value.equal(after[name]) for name, value in before.items())
    words = [json.loads((folder / "tokenizer.json").read_text())["model"] for folder in (source, tmp_path / "out")]
    assert words[0] == words[1]
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    flags = ("--run-dir", str(tmp_path / "on"), "--max-steps", "2", "--set", f"data.corpus={corpus}", *SETTINGS)
    printed = succeed(tmp_path, "recipes.gpt_tiny", "--from", "theirs", *flags)
    assert f"branches off {run} after step 0" in printed and "processes" not in printed
    first = json.loads((tmp_path / "on" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1 and first["consumed_samples"] == 8
    assert json.loads((tmp_path / "on" / "recipe.json").read_text())["model"]["hidden_size"] == 32
    assert (tmp_path / "on" / "tokeniser" / "tokenizer.json").exists()
    export(tmp_path / "on", tmp_path / "trained")
    moved = load_file(tmp_path / "trained" / "model.safetensors")["transformer.wte.weight"]
    difference = (moved - before["transformer.wte.weight"]).abs().max()
    assert 0 < difference < 0.05  # two steps away from the import, and not from random weights


def test_an_import_is_a_run_to_other_commands(
    source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = imported(source, monkeypatch, capfd)
    assert record.read(run).name == "theirs" and choose(run).step == 0  # type: ignore[union-attr]
    assert not format.damage(run / "checkpoints" / "step-00000000")
    assert cleaning.leftovers([run]) == []
    command(monkeypatch, "runs")
    assert "theirs" in capfd.readouterr().out
    (run / "text.txt").write_text(WORDS * 3)
    command(monkeypatch, "evaluate", "--run", "theirs", "--data", str(run / "text.txt"), "--json")
    assert 5 < json.loads(capfd.readouterr().out)["loss"] < 7  # of random weights: the logarithm of 287 entries
    with pytest.raises(UserError, match="is an import, which nothing is written into; train on from it with --from"):
        plan_run(load("tiny"), Request(run_dir=str(run), resume=True), 2)
    branch = plan_run(load("tiny"), Request(branch="theirs", settings=("optimizer.lr=0.5",)), 2)
    assert branch.parent and branch.parent.changes == ("optimizer.lr 0.003 -> 0.5",)
    assert branch.recipe.model.num_layers == 2 and branch.recipe.data.tokeniser == str(run.resolve() / "tokeniser")


def test_what_cannot_be_imported_is_one_line_and_leaves_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refused(words: str, *flags: str, status: int = WRONG_INPUT) -> None:
        with pytest.raises(SystemExit) as ended:
            command(monkeypatch, "import", str(source), "--recipe", "tiny", "--run-dir", str(tmp_path / "new"), *flags)
        out, err = capfd.readouterr()
        assert ended.value.code == status and words in err.splitlines()[-1] and not out
        assert not [path.name for path in tmp_path.glob("new*")]

    refused("would be trained anew", "--tokeniser", "bpe:300")
    large = tmp_path / "large"
    tokenisers.save(tokenisers.train_bpe([WORDS + f" {i} word{i}{i * i}" for i in range(99)] * 9, 400), large)
    refused("they do not belong together", "--tokeniser", str(large))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a file of more is refused as on a full disk
    try:
        refused("no room left to write", status=CRASHED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (source / "tokenizer.json").rename(tmp_path / "kept")
    refused("has no tokeniser")
    (tmp_path / "kept").rename(source / "tokenizer.json")
    (source / "model.safetensors").unlink()
    torch.save({"a": Path("x")}, source / "pytorch_model.bin")
    refused("holds more than tensors (it asks for pathlib")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "model_type": "opt"}))
    refused("holds a model of type opt")
    (tmp_path / "new").mkdir()
    with pytest.raises(SystemExit):
        command(monkeypatch, "import", str(source), "--recipe", "tiny", "--run-dir", str(tmp_path / "new"))
    assert "exists; give another --run-dir" in capfd.readouterr().err and not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize("form", list(FORMS))
def test_a_torn_file_of_each_form_is_one_line_and_leaves_nothing(
    form: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hf = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=32, n_embd=128, n_layer=4, n_head=2))
    hf.save_pretrained(source)
    theirs = in_form(form, source, tmp_path / "theirs")
    file = max(theirs.rglob("*.*"), key=lambda file: file.is_file() and file.stat().st_size)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    flags = ("--recipe", "tiny", "--tokeniser", str(source), "--run-dir", str(tmp_path / "new"))
    capfd.readouterr()  # of transformers' progress
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, "import", str(theirs), *flags)
    out, err = capfd.readouterr()
    assert ended.value.code == WRONG_INPUT and f"{file.name}" in err and len(err.splitlines()) == 1 and not out
    assert not list(tmp_path.glob("new*"))
