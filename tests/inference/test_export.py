"""An export is as large as its tokeniser, pads on the left, and is written a tensor at a time, whole or not at all."""

import dataclasses
import json
import resource
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from commands import export as command
from inference import export, folder
from inference.card import text as card_text
from inference.form import Form
from model.checkpoint import format, index
from model.checkpoint.index import Fragment
from model.checkpoint.read import Reader
from model.checkpoint.weights import write_weights
from model.gpt import GPT
from model.huggingface import to_hf, to_hf_value
from model.init import init_weights
from model.parallel import Slice
from run.checkpoints import choose
from run.directory import read_recipe
from support.errors import UserError
from support.files import NoRoomError

CUT = {
    "embed.weight": 0,
    "qkv.weight": 0,
    "qkv.bias": 0,
    "up.weight": 0,
    "up.bias": 0,
    "out.weight": 1,
    "down.weight": 1,
}
DATA = {"train": {"tokens": 1234}, "share": 0.25}


def model_of(run: Path) -> GPT:
    """The model that the fixture wrote."""
    model = GPT(read_recipe(run).model).eval()
    init_weights({p: name for name, p in model.named_parameters()}, model.config, 1)
    return model


def cut_over_two(run: Path) -> None:
    """Write the checkpoint as two tensor ranks with ZeRO would: slices, and of each a part in either file."""
    checkpoint = format.folder_of(run / "checkpoints", 7)
    flats: list[dict[str, torch.Tensor]] = [{}, {}]
    lies: dict[str, list[tuple[int, Fragment]]] = {"rank-00000.safetensors": [], "rank-00001.safetensors": []}
    for name, value in model_of(run).state_dict().items():
        dim = next((dim for end, dim in CUT.items() if name.endswith(end)), None)
        for rank in range(1 if dim is None else 2):
            part = value if dim is None else value.chunk(2, dim)[rank].contiguous()
            cut, half = None if dim is None else Slice(dim, 2, rank), part.numel() // 3
            for file, (low, high) in enumerate(((0, half), (half, part.numel()))):
                number = len(flats[file])
                flats[file][f"{number}.weight"] = torch.cat((torch.zeros(5), part.flatten()[low:high]))
                fragment = Fragment(name, low, high - low, 5, tuple(part.shape), cut)
                list(lies.values())[file].append((number, fragment))
    known = format.manifest(checkpoint)
    for file in checkpoint.iterdir():
        file.unlink()
    for file, tensors in zip(lies, flats, strict=True):
        save_file(tensors, checkpoint / file)
    (checkpoint / index.FILE).write_text(index.index_text(lies))
    facts = {file: format.facts(checkpoint / file) for file in lies}
    format.write_manifest(checkpoint, {**known, "index": format.facts(checkpoint / index.FILE), "files": facts})


def test_an_export_has_a_row_for_each_entry_and_goes_on_from_a_batch(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["export", "--run", str(run), "--out", str(run / "out"), "--json"])
    command.main()
    assert json.loads(capfd.readouterr().out) == {
        "run": str(run),
        "folder": str(run / "out"),
        "checkpoint": 7,
        "passed_over": [],
    }
    modes = {file.stat().st_mode & 0o777 for file in (run / "out").iterdir()}
    assert modes == {(run / "out").stat().st_mode & 0o666}  # a colleague reads it who may read the folder
    model, tokeniser = AutoModelForCausalLM.from_pretrained(run / "out"), AutoTokenizer.from_pretrained(run / "out")
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == len(tokeniser)
    assert model.config.pad_token_id == tokeniser.pad_token_id == tokeniser.eos_token_id == 0
    assert model.generation_config.pad_token_id == model.generation_config.eos_token_id == 0
    assert tokeniser.padding_side == "left" and tokeniser.model_max_length == 32
    texts = ["the cat", "the rat sat on the mat"]
    how = {"max_new_tokens": 9, "do_sample": False, "suppress_tokens": [0]}
    together = model.generate(**tokeniser(texts, padding=True, return_tensors="pt"), **how)
    for text, ids in zip(texts, together, strict=True):
        (alone,) = model.generate(**tokeniser(text, return_tensors="pt"), **how)
        assert ids[-len(alone) :].equal(alone)
    assert len(alone) > len(tokeniser(texts[0])["input_ids"]) + 9


@pytest.mark.parametrize("layout", ["one file", "two ranks"])
@pytest.mark.parametrize(("dtype", "shard"), [("fp32", None), ("fp32", "20KB"), ("bf16", "5KB")])
def test_shards_hold_what_transformers_would_have_written(
    run: Path, layout: str, dtype: str, shard: str | None
) -> None:
    if layout == "two ranks":
        cut_over_two(run)
    tokeniser = export.load_tokeniser(run)
    whole = to_hf(model_of(run), len(tokeniser), 0, 0)
    form = Form(dtype=dtype, shard_size=shard)
    whole.to(getattr(torch, form.torch_dtype)).save_pretrained(run / "whole", max_shard_size=form.shard_bytes)
    export.export(run, run / "out", form=form)
    read = [{file.name: load_file(file) for file in (run / name).glob("*.safetensors")} for name in ("whole", "out")]
    assert len(read[0]) == {None: 1, "20KB": 3, "5KB": 5}[shard] and read[0].keys() == read[1].keys()
    for name, tensors in read[0].items():
        assert tensors.keys() == read[1][name].keys()
        assert all(value.dtype == read[1][name][key].dtype for key, value in tensors.items())
        assert all(value.equal(read[1][name][key]) for key, value in tensors.items())
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        written = [(run / each / name).read_text() for each in ("whole", "out") if (run / each / name).exists()]
        assert not written[1:] or json.loads(written[0]) == json.loads(written[1]), name
    tokens = torch.randint(0, len(tokeniser), (2, 32))
    loaded = AutoModelForCausalLM.from_pretrained(run / "out")
    assert loaded(tokens).logits.equal(whole(tokens).logits)


def test_an_export_keeps_less_than_two_shards_in_memory(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read_recipe(run)
    model = GPT(dataclasses.replace(recipe.model, num_layers=12, hidden_size=64, ffn_hidden_size=256, vocab_size=384))
    recipe = dataclasses.replace(recipe, model=model.config)
    (run / "recipe.json").write_text(json.dumps(dataclasses.asdict(recipe)))
    size = sum(parameter.nbytes for parameter in model.parameters())
    state = {"step": 8, "consumed_samples": 128}
    write_weights(run / "checkpoints", ((n, p.detach()) for n, p in model.named_parameters()), {}, state, 10**6)
    del model
    alive: list[weakref.ref[torch.Tensor]] = []
    peaks: list[int] = []

    def noted(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*arguments: Any, **more: Any) -> torch.Tensor:
            result = function(*arguments, **more)
            alive.append(weakref.ref(result))
            living = [tensor.untyped_storage() for ref in alive if (tensor := ref()) is not None]
            peaks.append(sum({storage.data_ptr(): storage.nbytes() for storage in living}.values()))
            return result

        return call

    monkeypatch.setattr(Reader, "whole", noted(Reader.whole))
    monkeypatch.setattr("model.huggingface.to_hf_value", noted(to_hf_value))
    export.export(run, run / "out", form=Form(shard_size="300KB"))
    assert len(list((run / "out").glob("model-*.safetensors"))) == 10
    assert size > 8 * 300_000 and 250_000 < max(peaks) < 2 * 300_000


def test_the_card_says_what_the_run_says(run: Path) -> None:
    parts = [{"corpus": corpus, **DATA} for corpus in ("shakespeare", "allenai/c4:en", "/home/me/secret/notes.txt")]
    (run / "data.json").write_text(json.dumps({"parts": parts}))
    line = {"step": 7, "consumed_samples": 112, "loss": 3.25, "validation_loss": 3.5}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    start = {"world_size": 4, "device": "H100", "python": "3.11", "versions": {"torch": "9.9"}, "commit": "abc"}
    (run / "starts.jsonl").write_text(json.dumps(start) + "\n")
    export.export(run, run / "out", form=Form(dtype="bf16"))
    card = (run / "out" / "README.md").read_text()
    for words in (
        "| trained on | 3,584 tokens, 7 steps |",
        "| training loss | 3.2500 nats", "| validation loss | 3.5000 nats", "| weights | bf16 |",
        "| layout | 4 ranks of H100; tensor 1, pipeline 1, Ulysses 1, ZeRO stage 1, fp32 |", "torch 9.9",
        "| 25.00% | 1,234 | MIT |", "datasets:\n- allenai/c4\n", "| notes.txt | 25.00% | 1,234 | unknown",
    ):  # fmt: skip
        assert words in card, words
    assert "secret" not in card and "it was not taught to answer" in card
    recipe = read_recipe(run)
    data = dataclasses.replace(recipe.data, tokeniser="gpt2", template="Q: {q}\nA: {a}")
    (run / "recipe.json").write_text(json.dumps(dataclasses.asdict(dataclasses.replace(recipe, data=data))))
    tuned = card_text(run, choose(run), Form())
    assert "| validation loss | 3.5000 nats an answer token |" in tuned and "not taught" not in tuned
    assert r"It was taught to answer, by rows of the form `'Q: {q}\nA: {a}'`." in tuned


def refused(run: Path, words: str, kind: type[Exception] = UserError, form: Form = export.FOLDER) -> None:
    """The export fails with one line that has these words, and leaves nothing."""
    with pytest.raises(kind, match=words) as raised:
        export.export(run, run / "out", form=form)
    assert "\n" not in str(raised.value)
    assert not [path.name for path in run.glob("out*")]


def test_a_full_disk_is_one_line_and_leaves_nothing(run: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, limits[1]))  # a file of more is refused as on a full disk
    try:
        refused(run, "no room left to write", NoRoomError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("objective", ["masked", "prefix"])
@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_a_model_that_is_not_causal_has_no_export(objective: str, form: str, run: Path) -> None:
    recipe = read_recipe(run)
    other = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, objective=objective))
    (run / "recipe.json").write_text(json.dumps(dataclasses.asdict(other)))
    words = f"a model of the {objective} objective has no GPT-2 form: its attention is not causal"
    refused(run, words, form=Form(form))


def test_what_a_killed_export_left_is_no_export_and_goes(run: Path) -> None:
    (run / "out.partial").mkdir()
    (run / "out.partial" / "model-00001-of-00009.safetensors").write_text("torn")
    export.export(run, run / "out")
    export.export(run, run / "out", form=Form(shard_size="20KB"))  # in the place of the first
    assert {path.name for path in run.glob("out*")} == {"out"} and not (run / "out" / "model.safetensors").exists()
    for torn in ("config.json", "generation_config.json"):
        (run / "out" / torn).unlink()
    with pytest.raises(UserError, match="is not an export"):
        folder.check(run / "out")


def test_a_tensor_that_is_missing_is_named(run: Path) -> None:
    weights = [(n, p.detach()) for n, p in model_of(run).named_parameters() if n != "blocks.0.mlp.up.bias"]
    write_weights(run / "checkpoints", weights, {}, {"step": 8, "consumed_samples": 0})
    refused(run, r"step-00000008 holds 0 of .* elements of blocks.0.mlp.up.bias")


def test_a_tokeniser_that_does_not_match_or_is_missing_is_refused(run: Path) -> None:
    recipe = read_recipe(run)
    small = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=128))
    (run / "recipe.json").write_text(json.dumps(dataclasses.asdict(small)))
    weights = ((n, p.detach()) for n, p in GPT(small.model).named_parameters())
    write_weights(run / "checkpoints", weights, {}, {"step": 7, "consumed_samples": 0})
    refused(run, "entries for a model of 128")
    (run / "tokeniser").rename(run / "gone")
    refused(run, "tokeniser is missing; restore it")


def test_a_shard_size_is_read_or_refused() -> None:
    assert [Form(shard_size=size).shard_bytes for size in ("1.5kb", "2 MB", None)] == [1500, 2_000_000, 5_000_000_000]
    for size in ("5", "0GB", "-1GB", "5 apples"):
        with pytest.raises(UserError, match="--shard-size"):
            Form(shard_size=size)
