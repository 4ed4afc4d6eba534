import numpy as np
import pytest

from data.cleaning.decontamination import LEAST_PIECE, MARGIN, Evaluation, Overlap, cut, summary
from data.cleaning.ngrams import ngram_hashes, word_hashes
from data.corpus.sources import Document

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
    assert Overlap.of(documents, hashes).common.tolist() == [8]
    text, known = document(1000, 1000), evaluation(" ".join(QUESTION))
    assert cut(text, known, ngram_hashes(word_hashes(" ".join(QUESTION)), 13)) == ([text], [])


def overlap(known: Evaluation, texts: list[str]) -> Overlap:
    found = [known.matches(word_hashes(text))[2] for text in texts]
    return Overlap.of(np.repeat(np.arange(len(texts)), list(map(len, found))), np.concatenate(found))


def test_every_evaluation_text_that_was_found_is_listed_with_its_fate() -> None:
    """One in 3 documents, one in 12, one in 2 whose first 13 words are in 11 others, one of 9 words, one in none."""
    few, many, long, absent = ([f"{name}{i}" for i in range(30)] for name in ("few", "many", "long", "absent"))
    texts = [few, many, long, [f"short{i}" for i in range(9)], ["too", "short"], absent]
    evaluations = [Document(f"e.jsonl@{n}", " ".join(words)) for n, words in enumerate(texts)]
    known = Evaluation.of(each.text for each in evaluations)
    middles = [*[few] * 3, *[many] * 12, *[long[:13]] * 11, *[long] * 2, texts[3]]
    report = overlap(known, [document(500, 500, words) for words in middles]).report(evaluations)
    keys = ("number", "name", "documents", "cut_from", "left_in", "whole_in", "fate")
    assert [tuple(each[key] for key in keys) for each in report["found"]] == [
        (1, "e.jsonl@0", 3, 3, 0, 3, "cut"),
        (2, "e.jsonl@1", 12, 0, 12, 12, "left: in more than 10 documents"),
        (3, "e.jsonl@2", 13, 2, 11, 2, "cut"),
        (4, "e.jsonl@3", 1, 1, 0, 1, "cut"),
    ]
    assert report["found"][1]["begins"] == " ".join(many)[:80]
    assert {key: report[key] for key in ("texts", "too_short", "cut", "left")} == {
        "texts": 6, "too_short": 1, "cut": 3, "left": 1
    }  # fmt: skip
    counts, warning = summary(report)
    assert (
        counts
        == "evaluation texts: 4 of 6 found in the corpus, 3 cut out, 1 left (1 as a whole); 1 too short to look for"
    )
    assert "as a whole: 1." in warning and "in 12 documents: text 2 (e.jsonl@1), 'many0 many1" in warning


def test_a_common_phrase_of_a_text_that_is_not_there_is_no_cause_for_a_warning() -> None:
    known = Evaluation.of([" ".join(QUESTION) + " and how it goes on"])
    report = overlap(known, [document(500, 500)] * 11).report(
        [Document("e", " ".join(QUESTION) + " and how it goes on")]
    )
    assert (report["left"], report["found"][0]["left_in"], report["found"][0]["whole_in"]) == (1, 11, 0)
    assert summary(report) == ["evaluation texts: 1 of 1 found in the corpus, 0 cut out, 1 left (0 as a whole)"]
    nothing = overlap(known, [filler(500)]).report([Document("e", " ".join(QUESTION))])
    assert nothing == {"texts": 1, "too_short": 0, "cut": 0, "left": 0, "found": []}


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
