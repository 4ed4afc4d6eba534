import json
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer
from tokenizers.pre_tokenizers import ByteLevel

from data.tokens import tokenisers
from data.tokens.encode import TRIALS
from data.tokens.tokenisers import LONGEST_WORD, training_words

TEXT = ["the cat sat on the mat, the rat sat on the cat. " * 20, "Ünïcödé and 漢字 and \x00 and 🙂"]


def with_gap(folder: Path, texts: list[str]) -> Path:
    """A tokeniser trained on `texts` whose merged words begin four ids above the bytes."""
    tokenisers.save(tokenisers.train_bpe(texts, 300), folder)
    described = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = described["model"]["vocab"]
    described["model"]["vocab"] = {word: id if id < 257 else id + 4 for word, id in vocabulary.items()}
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return folder


def test_a_trained_bpe_gives_back_every_byte(tmp_path: Path) -> None:
    tokeniser = tokenisers.obtain("bpe:300", TEXT)
    assert 257 <= len(tokeniser) <= 300
    tokenisers.save(tokeniser, tmp_path)
    loaded = tokenisers.load(str(tmp_path))
    strange = "never seen: ß→∞ \t\r\n  two  spaces"
    for each in (tokeniser, loaded):
        assert each.decode(each.encode(strange)) == strange
        assert each.eos_token == tokenisers.END_OF_DOCUMENT and each.eos_token_id == 0
    assert loaded.encode(TEXT[0]) == tokeniser.encode(TEXT[0])
    assert len(tokeniser.encode(TEXT[0])) < len(TEXT[0]) / 2


def test_ordinary_text_gives_the_tokeniser_of_the_plain_library() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "data.md").read_text()
    corpus = [*TRIALS, *TEXT, manual, f"漢字かな、交じり文。{' ' * 200}{'=' * 200}\r\n" * 9]
    plain = ByteLevelBPETokenizer(add_prefix_space=False)
    plain.train_from_iterator(
        corpus, vocab_size=600, min_frequency=2, special_tokens=["<|endoftext|>"], show_progress=False
    )
    trained = tokenisers.train_bpe(corpus, 600)
    assert len(trained) == 600
    assert trained.backend_tokenizer.to_str() == plain.to_str()


@pytest.mark.parametrize("run", ["a", "漢", "7", "=", " ", "\n", "\U0001f642"])
def test_a_run_without_white_space_is_cut_for_training(run: str) -> None:
    text = f"one two{run * 300_000}three four"
    spans = [span for _, span in training_words().pre_tokenize_str(text)]
    assert max(end - begin for begin, end in spans) <= LONGEST_WORD + 1  # with the space before it
    assert [spans[0][0], *(end for _, end in spans)] == [*(begin for begin, _ in spans), len(text)]


def test_words_below_the_bound_are_those_of_gpt2() -> None:
    for text in (*TRIALS, *TEXT, f"x {'漢' * LONGEST_WORD}。{' ' * LONGEST_WORD}{'a' * LONGEST_WORD}'s"):
        plain = ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
        assert training_words().pre_tokenize_str(text) == plain


def test_a_long_run_is_learned_up_to_the_bound_and_encoded_as_one_word() -> None:
    """300,000 letters are 1171 words of 128 times "ab" and one of 112: eight doublings, the last of which is a word."""
    said: list[str] = []
    tokeniser = tokenisers.train_bpe(["ab" * 150_000, "c"], 300, said.append)
    learned = {word for word in tokeniser.get_vocab() if len(word) > 1} - {tokenisers.END_OF_DOCUMENT}
    assert learned == {"ab" * 2**n for n in range(8)} and len(tokeniser) == 257 + 8
    assert len(tokeniser.encode("ab" * 150_000)) == 1171 + 3  # 112 = 64 + 32 + 16
    assert said == ["tokeniser: merging the words of 2 documents, 0.3 MB"]


def test_entries_reach_to_the_largest_id(tmp_path: Path) -> None:
    trained = tokenisers.obtain("bpe:300", TEXT)
    assert tokenisers.entries(trained) == len(trained)
    loaded = tokenisers.load(str(with_gap(tmp_path, TEXT)))
    assert tokenisers.entries(loaded) == len(loaded) + 4 == max(loaded.get_vocab().values()) + 1
    assert max(loaded.encode(TEXT[0])) >= len(loaded)


def test_a_tokeniser_without_a_pad_token_pads_behind_with_its_end_of_text(tmp_path: Path) -> None:
    tokenisers.save(tokenisers.train_bpe(TEXT, 300), tmp_path)
    batch = tokenisers.load(str(tmp_path))(["the cat", "the cat sat on"], padding=True)
    short, long = batch["input_ids"]
    padding = len(long) - len(short[: short.index(0)])
    assert short == [*long[: len(long) - padding], *[0] * padding] and padding > 0
    assert batch["attention_mask"][0] == [1] * (len(long) - padding) + [0] * padding


def test_gpt2_is_gpt2() -> None:
    tokeniser = tokenisers.obtain("gpt2", [])
    assert len(tokeniser) == 50257
    assert tokeniser.encode("Hello world") == [15496, 995]
    assert tokeniser.eos_token_id == 50256
    assert tokeniser.decode(tokeniser.encode(" naïve — 漢字")) == " naïve — 漢字"


@pytest.mark.parametrize(
    ("spec", "words"),
    [("bpe:10", "at least 257"), ("bpe:many", "write bpe:N"), ("no/such-tokeniser", "cannot be loaded")],
)
def test_a_tokeniser_that_cannot_be_is_refused(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        tokenisers.obtain(spec, [])
    assert "\n" not in str(caught.value)


def test_a_folder_with_a_model_and_no_tokeniser_is_refused(tmp_path: Path) -> None:
    """transformers makes an empty tokeniser of it, which encodes every text as nothing."""
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"has no words; give a folder that holds tokenizer.json"):
        tokenisers.load(str(tmp_path))
