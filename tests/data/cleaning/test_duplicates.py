import numpy as np
import pytest
import xxhash

from data.cleaning import duplicates, ngrams
from data.cleaning.duplicates import BANDS, ROWS, first_equal, first_similar, join, signatures, similarity
from data.cleaning.ngrams import ngram_hashes, word_hashes, word_spans


def text(*numbers: int) -> str:
    return " ".join(f"word{n}" for n in numbers)


def test_case_punctuation_and_breaks_do_not_count() -> None:
    assert np.array_equal(word_hashes("To be, or not to be:\nthat"), word_hashes("to BE or not -- to be THAT!"))
    assert not np.array_equal(word_hashes("to be"), word_hashes("to bee"))
    assert len(word_hashes("日本語 text カタ")) == 6  # characters of Chinese and Japanese are words


@pytest.mark.parametrize(
    "sentence", ["To be, or  not", "“ÜBER”–İstanbul_2 漢字x don’t\u00a0ÀB", "", "…!", "\x00a\x1fb\x7fc", "ΟΔΟΣ 'Σ'"]
)
def test_spans_are_those_of_the_hashed_words(sentence: str) -> None:
    spans = word_spans(sentence)
    assert len(spans) == len(word_hashes(sentence))
    hashes = [int(word_hashes(sentence[begin:end])[0]) for begin, end in spans]
    assert hashes == word_hashes(sentence).tolist()


def test_words_are_those_of_the_pattern() -> None:
    """The fast way splits as one pattern over the whole text would."""
    random = np.random.default_rng(0)
    alphabet = list("aZ9_ .,'-\n\x00\x1céÜß“’–… \u00a0漢カ😀ـ１")
    for _ in range(300):
        sentence = "".join(random.choice(alphabet, 20))
        words = ngrams._WORD.findall(ngrams._lower(sentence))
        assert word_hashes(sentence).tolist() == [xxhash.xxh3_64_intdigest(word.encode()) for word in words]


def test_ngrams_are_equal_where_their_words_are() -> None:
    grams = ngram_hashes(word_hashes("a b c a b d a b c"), 3)
    assert len(grams) == 7 and len(set(grams.tolist())) == 6 and grams[0] == grams[6]
    assert len(ngram_hashes(word_hashes("a b"), 3)) == 0
    assert ngram_hashes(word_hashes("a b"), 2) != ngram_hashes(word_hashes("b a"), 2)


def test_the_first_of_equal_documents() -> None:
    digests = np.array([[1, 1], [2, 1], [1, 2], [1, 1], [2, 1], [1, 1]], np.uint64)
    assert first_equal(digests).tolist() == [0, 1, 2, 0, 1, 0]


def test_signatures_estimate_the_similarity_of_shingles() -> None:
    random = np.random.default_rng(0)
    for common in (500, 800, 950):
        shared = list(random.integers(0, 2**40, common))
        one, two = (list(random.integers(0, 2**40, 1000 - common)) for _ in range(2))
        # A change at the end: of 996 shingles on either side, common - 4 are shared.
        made = signatures([word_hashes(text(*shared, *end)) for end in (one, two)])
        true = (common - 4) / (2 * 996 - (common - 4))
        found = similarity([made], np.array([[0, 1]]))[0]
        assert abs(found - true) < 4 * 0.5 / np.sqrt(BANDS * ROWS)


def test_rows_with_equal_keys() -> None:
    keys = np.array([5, 7, 5, 9, 7, 5, 1], np.uint64) << np.uint64(40)
    found = ngrams.repeats(keys)
    assert found.rows.tolist() == [0, 2, 5, 1, 4] and found.counts.tolist() == [3, 2]
    assert found.first.tolist() == [True, False, False, True, False]
    assert not len(ngrams.repeats(keys[-2:]).rows) and not len(ngrams.repeats(keys[:0]).counts)


def near(texts: list[str], threshold: float = 0.8, alive: list[bool] | None = None, parts: int = 1) -> list[int]:
    hashes = [word_hashes(each) for each in texts]
    cuts = np.array_split(np.arange(len(texts)), parts)
    made = [signatures([hashes[i] for i in cut]) for cut in cuts]
    mask = np.ones(len(texts), bool) if alive is None else np.array(alive)
    return first_similar(made, mask, threshold).tolist()


BASE = list(range(300))
CHANGED = [*range(150), 999, *range(151, 300)]  # one word of 300: 5 of 296 shingles, similarity 291/301 = 0.967
OTHER = list(range(1000, 1300))


@pytest.mark.parametrize("parts", [1, 2, 4, 6])
def test_the_first_of_similar_documents_whatever_the_parts(parts: int) -> None:
    texts = [text(*OTHER), text(*BASE), text(*CHANGED), "", text(*OTHER), text(*CHANGED)]
    assert near(texts, parts=parts) == [0, 1, 1, 3, 0, 1]


def test_the_threshold() -> None:
    half = [*range(200), *range(2000, 2100)]  # similarity 196/396 = 0.49
    assert near([text(*BASE), text(*half)]) == [0, 1]
    less = [*range(270), *range(2000, 2030)]  # similarity 266/326 = 0.82
    assert near([text(*BASE), text(*less)], threshold=0.7) == [0, 0]
    assert near([text(*BASE), text(*less)], threshold=0.95) == [0, 1]
    assert near([text(*BASE), text(*BASE)], threshold=1.0) == [0, 0]
    assert near([text(*BASE), text(*CHANGED)], threshold=1.0) == [0, 1]


def test_documents_that_are_gone_and_those_without_words_join_none() -> None:
    assert near([text(*BASE), text(*CHANGED), text(*CHANGED)], alive=[False, True, True]) == [0, 1, 1]
    assert near(["", "…", "!!"]) == [0, 1, 2]
    assert near(["a b", "A, b.", "b a"]) == [0, 0, 2]  # fewer words than a shingle has
    assert near([]) == []


def test_groups_grow_along_chains() -> None:
    label = join(np.arange(7), np.array([[5, 6], [2, 5], [1, 2]]))
    assert label.tolist() == [0, 1, 1, 3, 4, 1, 1]
    assert join(label, np.array([[0, 6], [3, 4]])).tolist() == [0, 0, 0, 3, 3, 0, 0]
    assert join(np.arange(3), np.empty((0, 2), np.int64)).tolist() == [0, 1, 2]


def test_groups_are_those_of_a_plain_search() -> None:
    random = np.random.default_rng(2)
    pairs = random.integers(0, 200, (120, 2))
    group = list(range(200))
    for _ in range(200):
        for a, b in pairs:
            group[a] = group[b] = min(group[a], group[b])
    half = join(np.arange(200), pairs[:60])
    assert join(half, pairs[60:]).tolist() == group


def test_signatures_do_not_change_from_release_to_release() -> None:
    """Work that was interrupted goes on with signatures made before."""
    made = signatures([word_hashes("the quick brown fox jumps over the lazy dog")])
    assert made.shape == (duplicates.BANDS, 1, duplicates.ROWS)
    assert made[0, 0].tolist() == [3277171305, 3229258823, 3628367465, 3585104888, 2723267250, 2533615791]
