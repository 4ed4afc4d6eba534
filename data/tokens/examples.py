"""Examples to tokens, with the weight of each token as a label: 1 in an answer, 0 before it.

A pair is the tokens of its chosen side, and behind them those of its rejected one, whose answer weighs 2: so both stay
together in whatever is packed, and their weights tell them apart.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.corpus.document import KIND, Document, Problems
from data.corpus.examples import Form
from data.tokens.encode import Judge, Tokens

Weights = NDArray[np.uint8]
Encode = Callable[[Sequence[str]], tuple[Tokens, Tokens]]  # the ids of texts, all in a row, and how many each has


@cache
def _with_special(tokeniser: Path) -> Judge:
    return Judge(tokeniser, special=True)


def encoded(document: Document, encoder: Encode, tokeniser: Path, end: int) -> tuple[Tokens, Weights]:
    """The tokens of an example or of a pair, and their weights, each [n]. `end` closes each side, and is learned too.

    Prompt and answer are encoded apart: a prompt has the tokens that it has where it stands alone, when the model is to
    answer it. The first token weighs nothing, because nothing stands in front from which it could be guessed.
    """
    encode = _with_special(tokeniser) if document.special else encoder
    tokens, weights = _side(document.parts, encode, end)
    if document.against:
        others, theirs = _side(document.against, encode, end)
        return np.concatenate((tokens, others)), np.concatenate((weights, 2 * theirs))
    return tokens, weights


def _side(parts: Sequence[tuple[str, bool]], encode: Encode, end: int) -> tuple[Tokens, Weights]:
    texts, learned = zip(*parts, strict=True)
    tokens, lengths = encode(texts)
    weights = np.repeat(np.asarray(learned, np.uint8), lengths)
    if not len(tokens) or int(tokens[-1]) != end:  # a chat template may write it
        tokens, weights = np.append(tokens, end), np.append(weights, np.uint8(1))
    weights[0] = 0
    return tokens, weights


def _with(document: Document) -> str:
    return " with both sides" if document.against else ""


def fitting(
    documents: Sequence[Document], encoder: Encode, tokeniser: Path, end: int, form: Form, problems: Problems
) -> tuple[list[int], Tokens, Tokens, Weights]:
    """Which of the documents fit into a sample; their tokens, one after the other, how many each has, the weights.

    Errors: `UserError` for a document that is longer than a sample, unless such are left out or skipped.
    """
    kept, found = [], []
    for number, document in enumerate(documents):
        each = encoded(document, encoder, tokeniser, end)
        if len(each[0]) > form.most_tokens:
            if form.skip_longer:
                problems.left_out += 1
                continue
            assert document.where
            problems.report(
                KIND["long"],
                f"{document.where()} makes {len(each[0]):,} tokens{_with(document)}, and a context of "
                f"{form.most_tokens - 1:,} takes {form.most_tokens:,} with the end; shorten it, or set "
                "data.skip_longer=true",
            )
            continue
        kept.append(number)
        found.append(each)
    if not kept:
        return [], np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8)
    tokens, weights = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return kept, tokens, np.array([len(each) for each, _ in found]), weights
