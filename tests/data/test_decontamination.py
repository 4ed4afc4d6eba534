import numpy as np
import pytest

from data.decontamination import LEAST_PIECE, MARGIN, Evaluation, common, cut
from data.ngrams import ngram_hashes, word_hashes

QUESTION = [f"question{i}" for i in range(13)]
NONE = np.empty(0, np.uint64)


def filler(characters: int, word: str = "filler") -> str:
    """Different words, exactly so many characters with the space at the end."""
    made = " ".join(f"{word}{i}" for i in range(characters))[: characters - 1]
    return made.replace(" ", "x", 1)[: characters - 2] + "z "


def document(before: int, after: int, middle: list[str] = QUESTION) -> str:
    return filler(before) + " ".join(middle) + " " + filler(after, "after")


def evaluation(*texts: str) -> Evaluation:
    return Evaluation.of(texts)


def test_a_13_gram_and_200_characters_on_either_side_are_cut_out() -> None:
    text = document(1000, 1000)
    pieces, removed = cut(text, evaluation(" ".join(QUESTION)), NONE)
    question = " ".join(QUESTION)
    at = text.index(question)
    assert pieces == [text[: at - MARGIN], text[at + len(question) + MARGIN :]]
    assert removed == [text[at - MARGIN : at + len(question) + MARGIN]]


def test_twelve_words_of_thirteen_are_no_overlap() -> None:
    text = document(1000, 1000, QUESTION[:12])
    assert cut(text, evaluation(" ".join(QUESTION)), NONE) == ([text], [])
    case = document(1000, 1000, [word.upper() + "," for word in QUESTION])
    assert len(cut(case, evaluation(" ".join(QUESTION)), NONE)[1]) == 1


@pytest.mark.parametrize(("characters", "pieces"), [(MARGIN + LEAST_PIECE, 1), (MARGIN + LEAST_PIECE - 1, 0)])
def test_short_pieces_go_too(characters: int, pieces: int) -> None:
    text = filler(characters) + " ".join(QUESTION)
    assert len(text) == characters + len(" ".join(QUESTION))
    assert len(cut(text, evaluation(" ".join(QUESTION)), NONE)[0]) == pieces


@pytest.mark.parametrize(("times", "kept"), [(10, 11), (11, 0)])
def test_a_document_cut_in_more_than_ten_places_goes(times: int, kept: int) -> None:
    text = "".join(filler(1000) + " ".join(QUESTION) + " " for _ in range(times)) + filler(1000)
    pieces, removed = cut(text, evaluation(" ".join(QUESTION)), NONE)
    assert (len(pieces), len(removed)) == (kept, times)


def test_overlapping_cuts_are_one() -> None:
    twenty = [f"question{i}" for i in range(20)]
    text = document(1000, 1000, [*twenty, *["between"] * 5, *twenty])
    _, removed = cut(text, evaluation(" ".join(twenty)), NONE)
    assert len(removed) == 1


@pytest.mark.parametrize(("length", "found"), [(7, 0), (8, 1), (12, 1)])
def test_short_evaluation_texts_are_looked_for_as_a_whole(length: int, found: int) -> None:
    known = evaluation(" ".join(QUESTION[:length]))
    assert known.too_short == (length < 8)
    assert len(cut(document(1000, 1000), known, NONE)[1]) == found
    # One word less is no overlap.
    assert not cut(document(1000, 1000, QUESTION[: length - 1]), known, NONE)[1]


def test_common_phrases_are_in_more_than_ten_documents() -> None:
    hashes = np.array([7] * 10 + [8] * 11 + [9] * 20, np.uint64)
    documents = np.array([*range(10), *range(11), *[1] * 20])
    assert common(documents, hashes).tolist() == [8]
    text, known = document(1000, 1000), evaluation(" ".join(QUESTION))
    assert cut(text, known, ngram_hashes(word_hashes(" ".join(QUESTION)), 13)) == ([text], [])


def test_matches_are_those_of_a_plain_search() -> None:
    random = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(3)]
    texts = [" ".join(random.choice(vocabulary, random.integers(5, 40))) for _ in range(8)]
    known = evaluation(*texts)
    grams = {tuple(words[i : i + 13]) for words in map(str.split, texts) for i in range(len(words) - 12)}
    grams |= {tuple(words) for words in map(str.split, texts) if 8 <= len(words) < 13}
    for _ in range(50):
        words = list(random.choice(vocabulary, 60))
        words[20:40] = random.choice(texts).split()[:20]
        starts, lengths, _ = known.matches(word_hashes(" ".join(words)))
        found = set(zip(starts.tolist(), lengths.tolist(), strict=True))
        assert found == {(i, n) for n in range(8, 14) for i in range(len(words)) if tuple(words[i : i + n]) in grams}
