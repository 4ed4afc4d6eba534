"""What tokens are called."""

from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from data.tokens import tokenisers
from inference.look.texts import name, names
from inference.writers import encode
from tests.inference.conftest import WORDS


def test_a_token_that_ends_a_character_has_it_too() -> None:
    tokeniser = tokenisers.train_bpe([WORDS] * 9, 300)

    def called(text: str) -> list[str]:
        return names(tokeniser, encode(tokeniser, text))

    assert called("世é") == ["‹E4›", "‹B8›", "‹96›世", "‹C3›", "‹A9›é"]
    assert called("‹") == ["‹E2›", "‹80›", "‹B9›‹"]
    assert called("the cat") == ["the", " cat"]
    assert names(tokeniser, [tokeniser.eos_token_id]) == ["<|endoftext|>"]
    broken = [*encode(tokeniser, "世")[:2], *encode(tokeniser, "the世")]
    assert names(tokeniser, broken) == ["‹E4›", "‹B8›", "the", "‹E4›", "‹B8›", "‹96›世"]
    assert names(tokeniser, encode(tokeniser, "世")[2:] * 2) == ["‹96›", "‹96›"]  # ends of nothing
    assert name(tokeniser, 10**6) == "‹id 1000000›"


def test_sentencepiece_s_blanks_and_bytes() -> None:
    pieces = ["<unk>", "</s>", "▁the", "a", *(f"<0x{byte:02X}>" for byte in range(256))]
    whole = Tokenizer(models.BPE({piece: n for n, piece in enumerate(pieces)}, [], byte_fallback=True))
    whole.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokeniser = PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="</s>")
    assert names(tokeniser, [2, 3, 1]) == [" the", "a", "</s>"]
    assert names(tokeniser, [4 + byte for byte in "世".encode()]) == ["‹E4›", "‹B8›", "‹96›世"]
