"""What is seen is what the model computes: attention, losses, guesses of its layers."""

import base64
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

from data.tokens import tokenisers
from inference import export
from inference.evaluate import evaluate
from inference.look import foreign, own, seen
from inference.look.look import look, look_into
from model.config import GPTConfig
from model.gpt import GPT
from model.init import init_weights
from support.errors import UserError
from tests.inference.conftest import WORDS

ROUNDING = 2**-24  # of a number up to 1 in fp32
TEXT = "the cat sat on the mat"
SHAPE = GPTConfig(num_layers=2, hidden_size=16, num_attention_heads=2, seq_length=16, vocab_size=64)
END = 3


def lively(model: GPT) -> GPT:
    """The model with heads that look at something: of fresh weights they look everywhere alike."""
    for block in model.blocks:
        block.attention.qkv.weight.data *= 40
    return model


def fresh(objective: str) -> GPT:
    """A model of an objective in float64: what differs between two ways to compute is their rounding to fp32."""
    config = dataclasses.replace(SHAPE, objective=objective)
    model = GPT(config).eval()
    init_weights({p: name for name, p in model.named_parameters()}, config, 1)
    return lively(model).double()


def tokens_of(count: int, below: int = SHAPE.vocab_size) -> list[int]:
    return [END, *(int(token) for token in np.random.default_rng(0).integers(4, below, count - 1))]


def test_attention_and_guesses_of_a_run_are_those_of_its_export(run: Path) -> None:
    lively(export.load_model(run, None)).double()  # type: ignore[arg-type]  # the fixture has one model for all
    ours = look(run, TEXT)
    model, tokeniser = export.load_as_hf(run, None)  # type: ignore[arg-type]
    theirs = foreign.look(model.double(), ours.seen.tokens, tokenisers.entries(tokeniser))
    assert ours.seen.attention.shape == (2, 2, len(ours.seen.tokens), len(ours.seen.tokens)) and not theirs.notes
    assert np.abs(ours.seen.attention - theirs.attention).max() <= ROUNDING
    assert ours.seen.attention[:, :, 5:, :5].max() > 0.5  # some head looks back
    assert len(ours.seen.lens) == len(theirs.lens) == 3
    for mine, other in zip(ours.seen.lens, theirs.lens, strict=True):
        assert (mine.ids[:, 0] == other.ids[:, 0]).all() and (mine.rank == other.rank).all()
        np.testing.assert_allclose(mine.loss, other.loss, rtol=1e-6)  # fp32 behind equal scores
        np.testing.assert_allclose(mine.odds, other.odds, rtol=1e-5)


@pytest.mark.parametrize("separate", [False, True])
def test_losses_are_those_of_evaluate(run: Path, separate: bool) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["data"]["separate_documents"] = separate
    (run / "recipe.json").write_text(json.dumps(recipe))
    text = run / "text.txt"
    text.write_text(TEXT)
    values = evaluate(run, str(text))
    found = look(run, f"{TEXT}<|endoftext|>", special=True).seen  # evaluate closes each document
    assert values["tokens"] == len(found.tokens) - 1 and found.losses[0] is None
    assert found.mean_loss == pytest.approx(values["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("objective", "separate"),  # a recipe refuses prefixes in documents apart
    [("causal", False), ("causal", True), ("masked", False), ("masked", True), ("prefix", False)],
)
def test_weights_are_those_that_the_fused_attention_sums_with(objective: str, separate: bool) -> None:
    model, tokens = fresh(objective), tokens_of(12)
    tokens[5] = END
    sums: list[Tensor] = []
    with torch.no_grad(), own._hooked([block.attention for block in model.blocks], noted(sums)):
        apart = torch.tensor([[0] + [1] * 5 + [2] * 6]) if separate else None
        model(torch.tensor([tokens]), torch.tensor([12]) if objective == "prefix" else None, apart)
    found = own.look(model, tokens, 60, END, separate)
    weights = torch.from_numpy(found.attention)
    assert (weights.sum(-1) - 1).abs().max() <= 12 * ROUNDING
    for layer, (values_NSD, wanted_NSD) in enumerate(zip(sums[::2], sums[1::2], strict=True)):
        most = 12 * ROUNDING * float(values_NSD.abs().max())
        torch.testing.assert_close(weights[layer].double() @ values_NSD, wanted_NSD, rtol=0, atol=most)
    above = found.attention[:, :, *np.triu_indices(12, 1)]
    assert found.both_sides is bool(above.max() > 0) is (objective != "causal")
    across = found.attention[:, :, 6:, :6]
    assert bool(across.max() > 0) is not separate


def noted(sums: list[Tensor]):  # type: ignore[no-untyped-def]
    """Notes of each attention its values and what its fused core makes of them, each [N, S, D]."""

    def note(attention, x_BSH, visible_BSS=None, *_):  # type: ignore[no-untyped-def]
        B, S, _H = x_BSH.shape
        qkv = attention.qkv(x_BSH).view(B, S, attention.num_heads, 3, attention.head_size).transpose(1, 2)
        sums.extend((qkv[0, :, :, 2], attention.core(qkv, visible_BSS)[0]))

    return note


@pytest.mark.parametrize("objective", ["causal", "prefix"])
def test_the_last_layer_of_the_lens_is_the_model_s_own_guess(objective: str) -> None:
    model, tokens = fresh(objective), tokens_of(12)
    found = own.look(model, tokens, 60, END, False)
    with torch.no_grad():
        scores = model(torch.tensor([tokens]), torch.tensor([1]) if objective == "prefix" else None)[0, :, :60]
    odds = scores.softmax(-1)
    assert (found.lens[-1].ids == odds.topk(5).indices.numpy()).all() and len(found.lens) == 3
    np.testing.assert_allclose(found.lens[-1].odds, odds.topk(5).values, rtol=1e-5)
    labels = torch.tensor(tokens[1:])
    wanted = torch.nn.functional.cross_entropy(scores[:-1], labels, reduction="none")
    np.testing.assert_allclose(found.losses[1:], wanted, rtol=1e-5)  # type: ignore[arg-type]
    assert found.lens[-1].rank[:-1].tolist() == [
        1 + int((row > row[label]).sum()) for row, label in zip(odds, labels, strict=False)
    ]
    assert found.lens[-1].rank[-1] == 0


@pytest.mark.parametrize("rows_at_once", [own.READ, 30])
def test_a_masked_model_guesses_each_token_while_it_alone_is_masked(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "READ", rows_at_once)
    model, tokens = fresh("masked"), tokens_of(12, below=60)
    found = own.look(model, tokens, 60, END, False)
    wanted = []
    for place in range(1, 12):
        masked = torch.tensor([tokens])
        masked[0, place] = SHAPE.vocab_size - 1
        with torch.no_grad():
            wanted.append(-float(model(masked)[0, place, :60].log_softmax(-1)[tokens[place]]))
    np.testing.assert_allclose(found.losses[1:], wanted, rtol=1e-5)  # type: ignore[arg-type]
    assert found.ahead == 0 and found.losses[0] is None and found.notes == (own.MASKED,)


@pytest.mark.parametrize("objective", ["masked", "prefix"])
def test_a_run_that_sees_to_both_sides_has_a_page(run: Path, objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the model is that of the checkpoint
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["model"]["objective"] = objective
    (run / "recipe.json").write_text(json.dumps(recipe))
    values = look_into(run, TEXT)
    found = re.findall(r'"attention":"([^"]+)"', Path(values["page"]).read_text())
    tokens = len(values["tokens"])
    assert len(base64.b64decode(found[0])) == 2 * 2 * tokens**2
    assert len(values["next"]) == (0 if objective == "masked" else 5) and len(values["notes"]) == 1
    assert [token["loss"] is None for token in values["tokens"]] == [True] + [False] * (tokens - 1)


def test_any_causal_model_shows_what_transformers_computes(tmp_path: Path) -> None:
    tokenisers.save(tokenisers.train_bpe([WORDS] * 9, 300), tmp_path)
    entries = tokenisers.entries(tokenisers.load(str(tmp_path)))
    sizes = {"num_hidden_layers": 2, "ffn_dim": 8, "num_attention_heads": 2, "max_position_embeddings": 32}
    for width, lens in ((8, 3), (4, 1)):  # the narrow one has a layer between norm and head
        torch.manual_seed(0)
        model = OPTForCausalLM(OPTConfig(vocab_size=entries, hidden_size=8, word_embed_proj_dim=width, **sizes))
        model.save_pretrained(tmp_path)
        found = look(tmp_path, TEXT).seen
        ids = torch.tensor([found.tokens])
        with torch.no_grad():
            wanted = model.eval()(ids, labels=ids)
        assert found.mean_loss == pytest.approx(float(wanted.loss), rel=1e-5)
        assert len(found.lens) == lens and bool(found.notes) is (lens == 1)
        assert found.lens[-1].ids[-1, 0] == int(wanted.logits[0, -1].argmax())
        assert np.abs(found.attention.sum(-1) - 1).max() <= len(found.tokens) * ROUNDING


def test_nothing_is_written_where_something_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(run.rglob("*"))

    def refused(words: str, prompt: str = TEXT, out: Path | None = None, which: str | None = None) -> None:
        with pytest.raises(UserError, match=words):
            look_into(run, prompt, out, which)
        assert sorted(run.rglob("*")) == files

    refused("with what stands in front it has 34 tokens for a context of 32; give a shorter", "the " * 32)
    refused("has no checkpoint of step 6; there are 7", which="6")
    refused("is a directory", out=run)
    refused("there is no directory", out=run / "x" / "y.html")
    refused("no page of this command; give another", out=run / "recipe.json")
    model = export.load_model(run, None)  # type: ignore[arg-type]
    model.final_norm.weight.data[0] = torch.nan
    refused("not finite: its training has diverged")
    model.final_norm.weight.data[0] = 1
    tokens = len(look(run, TEXT).seen.tokens)
    monkeypatch.setattr(seen, "MOST_BYTES", 4 * (tokens - 1) * tokens // 2 * 4 // 3)  # of one token less
    refused(f"would make a page of 0 MB; give a prompt of at most {tokens - 1} tokens, the one in front included")


def test_a_page_takes_the_place_of_a_page(run: Path) -> None:
    values = look_into(run, "")
    page = Path(values["page"])
    assert page == run / "look.html" and values["mean_loss"] is None and len(values["tokens"]) == 1
    before = page.read_text()
    assert look_into(run, TEXT)["bytes"] == page.stat().st_size and page.read_text() != before


def test_an_export_gets_its_page_where_one_stands(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file beside an export would make it a folder that is not written over."""
    model, tokeniser = export.load_as_hf(run, None)  # type: ignore[arg-type]
    model.save_pretrained(tmp_path / "export")
    tokenisers.save(tokeniser, tmp_path / "export")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    values = look_into(tmp_path / "export", TEXT)
    assert Path(values["page"]).resolve() == tmp_path / "here" / "look.html" and values["checkpoint"] is None
    assert values["mean_loss"] == pytest.approx(look_into(run, TEXT)["mean_loss"], rel=1e-5)
    with pytest.raises(UserError, match="it has no checkpoints"):
        look_into(tmp_path / "export", TEXT, which="7")


def test_a_model_without_attention_over_all_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=2, n_head=1)).eval()
    kept = model.forward

    def without(*args: Tensor, **flags: bool) -> object:
        output = kept(*args, **flags)
        output.attentions = output.attentions[:1]
        return output

    monkeypatch.setattr(model, "forward", without)
    with pytest.raises(UserError, match="gpt2 has layers without attention"):
        foreign.look(model, [1, 2], 9)
