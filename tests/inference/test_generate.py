"""What is written can be read: no id that the tokeniser does not have."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM
from transformers.generation import StopStringCriteria

from commands import generate
from data.tokens import tokenisers
from inference import export, prompts
from inference import generate as generation
from inference.chat import Conversation
from inference.decode.rows import Row
from inference.foreign import load_folder, meaningless
from inference.sampling import Sampling, parse_bias
from model.config import GPTConfig
from model.gpt import GPT
from model.huggingface import to_hf
from support.errors import WRONG_INPUT
from tests.data.tokens.test_tokenisers import with_gap
from tests.inference.conftest import WORDS

FLAGS = [["--top-k", "0"], ["--top-k", "0", "--repetition-penalty", "5"], ["--top-p", "0.9"], ["--greedy"]]


def written(run: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids that `generate` writes in eight texts."""
    ids: list[int] = []
    kept = generation.text_of

    def noted(writer: Any, row: Row) -> tuple[str, str]:
        ids.extend(row.new)
        return kept(writer, row)

    monkeypatch.setattr(generation, "text_of", noted)
    command = ["generate", "--run", str(run), "--prompt", "the", "--samples", "8", "--json", *flags]
    monkeypatch.setattr("sys.argv", command)
    generate.main()
    return ids


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_a_run_with_more_room_than_entries_writes_entries_only(
    run: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = written(run, flags, monkeypatch)
    assert len(json.loads(capsys.readouterr().out)["samples"]) == 8 and len(ids) > 100
    known = set(tokenisers.load(str(run / "tokeniser")).get_vocab().values())
    assert set(ids) <= known  # by chance, of 4,096 equally likely ids: 0.07 to the power of the number of ids
    assert len(set(ids)) > 100 or "--greedy" in flags


def test_neither_gaps_nor_the_padding_of_another_model_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_gap(tmp_path / "folder", [WORDS] * 9)
    tokeniser = tokenisers.load(str(folder))
    # With all weights zero every id is as likely as any other.
    model = GPT(GPTConfig(num_layers=1, hidden_size=8, num_attention_heads=1, seq_length=32, vocab_size=512))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    to_hf(model, 400, 0, 0).save_pretrained(str(folder))
    ids = written(folder, ["--top-k", "0"], monkeypatch)
    known = tokeniser.get_vocab().values()
    assert set(ids) <= set(known) and max(ids) >= 261  # past the gap
    assert len(ids) > 100 and len(set(ids)) > len(known) / 3
    assert meaningless(GPT2LMHeadModel.from_pretrained(folder), tokeniser) == [
        *range(257, 261), *range(max(known) + 1, 400)
    ]  # fmt: skip


def test_a_folder_that_is_no_export_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"cannot be read as a model: Unrecognized model .*; give a run"):
        load_folder(tmp_path)
    GPT2LMHeadModel(GPT2Config(vocab_size=256, n_positions=8, n_embd=8, n_layer=1, n_head=1)).save_pretrained(tmp_path)
    tokenisers.save(tokenisers.train_bpe([WORDS] * 9, 300), tmp_path)
    entries = tokenisers.entries(tokenisers.load(str(tmp_path)))
    with pytest.raises(ValueError, match=f"a tokeniser of {entries} entries for a model of 256"):
        load_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"cannot be read as a model: .*header"):
        load_folder(tmp_path)


def test_any_causal_model_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenisers.save(tokenisers.train_bpe([WORDS] * 9, 300), tmp_path)
    entries = tokenisers.entries(tokenisers.load(str(tmp_path)))
    config = OPTConfig(
        vocab_size=entries + 3, hidden_size=8, word_embed_proj_dim=8, num_hidden_layers=1, ffn_dim=8,
        num_attention_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    OPTForCausalLM(config).save_pretrained(tmp_path)
    flags = ["--top-k", "0", "--min-p", "0.001", "--no-repeat-ngram", "2", "--bias", " cat=4", "--stop", "rat"]
    ids = written(tmp_path, flags, monkeypatch)
    texts = json.loads(capsys.readouterr().out)["samples"]
    assert len(ids) > 20 and max(ids) < entries
    assert all(text.startswith("the") and "rat" not in text for text in texts)
    monkeypatch.setattr("sys.argv", ["generate", "--run", str(tmp_path), "--prompt", "the", "--max-new-tokens", "99"])
    with pytest.raises(SystemExit):
        generate.main()
    assert "does not fit: behind a prompt of 1 tokens a context of 32" in capsys.readouterr().err


def test_another_model_gets_the_beginning_that_its_tokeniser_puts_before_a_text(tmp_path: Path) -> None:
    tokeniser = tokenisers.train_bpe([WORDS] * 9, 300)
    end = tokeniser.eos_token_id
    frame = TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", end)])
    tokeniser.backend_tokenizer.post_processor = frame
    tokenisers.save(tokeniser, tmp_path)
    entries, small = tokenisers.entries(tokeniser), {"num_attention_heads": 1, "hidden_size": 8}
    for config, framed in (
        (OPTConfig(vocab_size=entries, word_embed_proj_dim=8, num_hidden_layers=1, ffn_dim=8, **small), True),
        (GPT2Config(vocab_size=entries, n_positions=32, n_embd=8, n_layer=1, n_head=1), False),
    ):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        (asked,) = generation.requests(load_folder(tmp_path), "the<|endoftext|>", Sampling(), False)
        assert (asked.prompt[0] == end) is framed and end not in asked.prompt[1:]


def test_a_run_streams_what_it_returns(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Texts of a batch come together; on the terminal they stand one behind the other."""
    values = generation.generate(run, "the cat", Sampling(samples=3, stop=("e",)), stream=True)
    shown = "".join(f"--- sample {n + 1} (seed {n})\n{text}\n" for n, text in enumerate(values["samples"]))
    assert capsys.readouterr().out == shown
    (one,) = generation.generate(run, "the cat", Sampling(seed=1), stream=True)["samples"]
    assert capsys.readouterr().out == f"{one}\n"
    assert values["samples"][1] == "the cat" + Sampling(stop=("e",)).cut(one.removeprefix("the cat"))


@pytest.mark.parametrize("folder", [False, True])
def test_a_stop_string_ends_a_text_before_it(folder: bool, run: Path) -> None:
    """Also where it begins and ends within tokens; the prompt does not count."""
    if folder:
        export.export(run, run.parent / "out")
        run = run.parent / "out"
    free = generation.generate(run, "the cat", Sampling(samples=8))["samples"]
    stopped = generation.generate(run, "the cat", Sampling(samples=8, stop=("he", "a", "o")))["samples"]
    assert len(set(stopped)) > 3
    for text, whole in zip(stopped, free, strict=True):
        ends = [at for each in ("he", "a", "o") if (at := whole.find(each, 7)) >= 0]
        assert text == whole[: min(ends, default=len(whole))]


def test_writing_stops_at_the_token_where_transformers_would(run: Path) -> None:
    writer, _ = generation.load(run)
    free = generation.generate(run, "the cat", Sampling(samples=8))["samples"]
    stop = free[0][12:15]
    wanted = generation.requests(writer, "the cat", Sampling(samples=8), False)
    rows = {row.request.number: row for row in writer.write(wanted, Sampling(samples=8), lambda row: False)}
    judge = StopStringCriteria(writer.tokeniser, [stop])
    lengths: list[int] = []

    def stopped(row: Row) -> bool:
        return stop in generation.text_of(writer, row)[1]

    for row in writer.write(wanted, Sampling(samples=8), stopped):
        whole = rows[row.request.number].tokens
        first = len(row.request.prompt) + 1
        ends = [n for n in range(first, len(whole) + 1) if bool(judge(torch.tensor([whole[:n]]), None))]
        assert len(row.tokens) == min(ends, default=len(whole))
        lengths.append(len(row.tokens))
    assert min(lengths) < max(lengths)


@pytest.mark.parametrize("flags", [{}, {"repetition_penalty": 1.5, "no_repeat_ngram": 2, "bias": ((" cat", 3.0),)}])
def test_a_search_with_beams_finds_what_transformers_finds(flags: dict[str, Any], run: Path) -> None:
    export.export(run, run.parent / "out")
    how = Sampling(beams=3, max_new_tokens=12, **flags)
    ours, theirs = (generation.generate(path, "the cat", how)["samples"] for path in (run, run.parent / "out"))
    assert ours == theirs


def test_the_name_of_a_special_token_is_plain_text(run: Path) -> None:
    writer, _ = generation.load(run)
    (plain,) = generation.requests(writer, "a<|endoftext|>", Sampling(), False)
    (asked,) = generation.requests(writer, "a<|endoftext|>", Sampling(), True)
    end = writer.tokeniser.eos_token_id
    assert end not in plain.prompt and asked.prompt[-1] == end and len(plain.prompt) > len(asked.prompt) == 2
    (text,) = generation.generate(run, "a<|endoftext|>", Sampling(max_new_tokens=2))["samples"]
    assert text.startswith("a<|endoftext|>")
    (nothing,) = generation.requests(writer, "", Sampling(), False)
    assert nothing.prompt == (end,)


def test_a_text_of_a_run_may_be_longer_than_its_context(run: Path) -> None:
    writer, _ = generation.load(run)
    (wanted,) = generation.requests(writer, "the cat", Sampling(max_new_tokens=100, greedy=True), False)
    (row,) = writer.write([wanted], Sampling(greedy=True), lambda row: False)
    assert writer.context == 32 and len(row.new) == 100


BAD = [
    (["--seed", "-1"], "--seed must be from 0 to 4294967295"), (["--seed", str(2**32)], "--seed must be from 0"),
    (["--temperature", "inf"], "--temperature must be from 0.000001 to 1,000,000 (--greedy"),
    (["--temperature", "nan"], "--temperature must be"), (["--top-p", "nan"], "--top-p must be in (0, 1]"),
    (["--min-p", "1.5"], "--min-p must be in [0, 1]"), (["--min-p", "nan"], "--min-p must be in [0, 1]"),
    (["--repetition-penalty", "nan"], "--repetition-penalty must be"),
    (["--repetition-penalty", "inf"], "--repetition-penalty must be"),
    (["--beams", "0"], "--beams must be at least 1"),
    (["--beams", "2", "--samples", "2"], "--beams must be at least 1, and gives one sample"),
    (["--no-repeat-ngram", "-1"], "--no-repeat-ngram must be at least 0"),
    (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1"), (["--stop", ""], "--stop must be"),
    (["--bias", "King"], "--bias 'King': write TEXT=NUMBER"), (["--bias", "=3"], "--bias '=3': write TEXT=NUMBER"),
    (["--bias", "a=nan"], "--bias 'a=nan': write TEXT=NUMBER"), (["--bias", "a=inf"], "--bias 'a=inf'"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "words"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_a_flag_out_of_range_is_one_line(
    flags: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["generate", "--run", "x", "--prompt", "the", *flags])
    with pytest.raises(SystemExit) as ended:
        generate.main()
    error = capsys.readouterr().err
    assert ended.value.code == WRONG_INPUT and error.startswith(f"error: {words}") and error.count("\n") == 1


def test_a_text_among_the_flags_is_utf_8(run: Path) -> None:
    text = os.fsdecode(b"a\xff")
    with pytest.raises(ValueError, match="--stop must be a text in UTF-8"):
        Sampling(stop=(text,))
    with pytest.raises(ValueError, match="write TEXT=NUMBER, in UTF-8"):
        parse_bias([f"{text}=3"])
    with pytest.raises(ValueError, match="--system is not UTF-8; convert it"):
        Conversation(generation.load(run)[0], Sampling(), text)


def test_a_bias_may_forbid_and_has_an_equals_sign() -> None:
    assert parse_bias(["a=b=-inf", " King=2.5"]) == (("a=b", -math.inf), (" King", 2.5))


def test_a_prompt_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--prompt is not UTF-8 at byte 1; convert it"):
        prompts.read_prompt(os.fsdecode(b"a\xff"), None)
    with pytest.raises(ValueError, match=r"--file .*none\.txt does not exist; give"):
        prompts.read_prompt(None, tmp_path / "none.txt")
    with pytest.raises(ValueError, match=r"--file .* is a directory; give the path of a text file"):
        prompts.read_prompt(None, tmp_path)
    (tmp_path / "nothing.txt").touch()
    with pytest.raises(ValueError, match=r'--file .*nothing\.txt is empty; give another, or --prompt ""'):
        prompts.read_prompt(None, tmp_path / "nothing.txt")
    monkeypatch.setattr("sys.stdin", None)  # as where it is closed
    assert prompts.read_prompt(None, None) == "" and prompts.read_prompt("Käse 漢字", None) == "Käse 漢字"
