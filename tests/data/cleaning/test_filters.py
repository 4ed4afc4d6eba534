"""Every rule with a document just inside its limit and one just outside."""

import itertools

import ftfy
import numpy as np
import pytest

from data.cleaning import filters
from data.cleaning.filters import c4, gopher_quality, gopher_repetition, language, repair, repeated_ngrams

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def words(count: int, length: int = 5) -> list[str]:
    """Different words of `length` letters, none of them a stop word."""
    made = ("".join(letters) for letters in itertools.product(LETTERS[::-1], repeat=length))
    return list(itertools.islice(made, count))


def prose(count: int) -> list[str]:
    """`count` different words, two of which are stop words."""
    return ["the", "and", *words(count - 2)]


# --- Unicode ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("schÃ¶n", "schön"),
        ("the mayorâ€™s", "the mayor’s"),
        ("a &amp; b", "a & b"),
        ("<b>a &amp; b</b>", "<b>a &amp; b</b>"),  # HTML on purpose
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("a\x00b\x1b[31mc", "abc"),
        ("e\u0301", "é"),
        ("ﬁne", "fine"),
        ("a\ud83d\ude00b", "a😀b"),
    ],
)
def test_damage_is_repaired(broken: str, mended: str) -> None:
    assert repair(broken).text == mended


@pytest.mark.parametrize(
    "text", ["“curly” ‘quotes’ – and … •", "漢字，カタカナ。", "Ünïcödé", "R&D; x = a && b;", "a\tb\n"]
)
def test_what_is_whole_stays(text: str) -> None:
    assert repair(text) == (text, "", "")


def test_a_repair_says_which_lines_were_broken() -> None:
    assert repair("fine\nschÃ¶n\nfine").detail == "schÃ¶n"
    assert repair("\x00\x01").rule == "nothing left"


def test_the_lines_that_ftfy_is_not_shown_are_ones_it_leaves_alone() -> None:
    config = ftfy.TextFixerConfig(uncurl_quotes=False, fix_character_width=False)
    usual = [chr(code) for code in range(0x20, 0x7F)] + list("\t\xa0–—‘’“”…•")
    for pair in itertools.product(usual, repeat=2):
        text = "".join(pair)
        assert ftfy.fix_text(text, config) == text, pair
    for triple in itertools.product("\xa0–—‘’“”…•aA1 ", repeat=3):
        text = "".join(triple)
        assert ftfy.fix_text(text, config) == text, triple
    random = np.random.default_rng(0)
    blocks = ((0x3001, 0x3020), (0x3041, 0x3096), (0x30A1, 0x30FC), (0x4E00, 0x9FFF), (0xFF01, 0xFF5E))
    every = [chr(code) for first, last in blocks for code in range(first, last + 1)]
    random.shuffle(every)
    text = "".join(character + str(random.choice([*usual, ""])) for character in every)
    assert ftfy.fix_text(text, config) == text and repair(text) == (text, "", "")


# --- Language --------------------------------------------------------------------------------------------------------


def test_languages_are_told_apart() -> None:
    english = "It was the best of times, it was the worst of times, it was the age of wisdom."
    german = "Als Gregor Samsa eines Morgens aus unruhigen Träumen erwachte, fand er sich verwandelt."
    chinese = "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？"
    assert [filters.language_of(text)[0] for text in (english, german, chinese)] == ["en", "de", "zh"]
    assert language(english, {"en"}).rule == ""
    assert language(german, {"en"}).rule == "language de"
    assert language(german, {"en", "de"}).rule == ""
    assert {"en", "de", "zh"} < set(filters.languages()) and len(filters.languages()) == 176


def test_an_unsure_verdict_drops(monkeypatch: pytest.MonkeyPatch) -> None:
    for probability, rule in ((0.65, ""), (0.649, "language unsure")):
        monkeypatch.setattr(filters, "language_of", lambda text, p=probability: ("en", p))
        assert language("text", {"en"}).rule == rule


# --- Gopher's quality ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inside", "outside", "rule"),
    [
        (prose(50), prose(49), "not 50 to 100,000 words"),
        (prose(100_000), prose(100_001), "not 50 to 100,000 words"),
        # 2 stop words of 3 letters and 98 words: mean 3 exactly, then 299/100.
        (["the", "and", *words(98, 3)], ["the", "to", *words(98, 3)], "mean word length not 3 to 10"),
        # 6 letters of stop words and 994 of 98 others: mean 10 exactly, then 10.01.
        (
            ["the", "and", *words(84, 10), *words(14, 11)],
            ["the", "and", *words(83, 10), *words(15, 11)],
            "mean word length not 3 to 10",
        ),
        ([*prose(90), *["#tag"] * 10], [*prose(89), *["#tag"] * 11], "over 0.1 hash symbols a word"),
        ([*["so..."] * 10, *prose(90)], [*["so…"] * 11, *prose(89)], "over 0.1 ellipses a word"),
        ([*prose(80), *["12345"] * 20], [*prose(79), *["12345"] * 21], "under 80% of words have a letter"),
        (["The", "AND", *words(60)], ["the", "the", *words(60)], "under 2 stop words"),
    ],
)
def test_the_limits_of_words(inside: list[str], outside: list[str], rule: str) -> None:
    assert gopher_quality(" ".join(inside)).rule == ""
    assert gopher_quality(" ".join(outside)).rule == rule


@pytest.mark.parametrize(
    ("bad", "inside", "outside", "rule"),
    [
        ("- {}", 9, 10, "over 90% of lines begin with a bullet"),
        ("• {}", 9, 10, "over 90% of lines begin with a bullet"),
        ("{}...", 3, 4, "over 30% of lines end with an ellipsis"),
        ("{}…", 3, 4, "over 30% of lines end with an ellipsis"),
    ],
)
def test_the_limits_of_lines(bad: str, inside: int, outside: int, rule: str) -> None:
    vocabulary = prose(100)
    lines = [" ".join(vocabulary[row * 10 : row * 10 + 10]) for row in range(10)]

    def text(count: int) -> str:
        return "\n\n".join([bad.format(line) for line in lines[:count]] + lines[count:])

    assert gopher_quality(text(inside)).rule == ""
    assert gopher_quality(text(outside)).rule == rule


# --- Gopher's repetition ---------------------------------------------------------------------------------------------


def test_duplicate_lines() -> None:
    # Of ten lines three occurred before, then four; they are short, so that their characters do not matter.
    assert gopher_repetition("\n".join([*words(6, 8), *"xxxx"])).rule == ""
    assert gopher_repetition("\n".join([*words(5, 8), *"xxxxx"])).rule == "over 30% duplicate lines"


def test_characters_in_duplicate_lines() -> None:
    # One line of five occurred before: 20 of 100 characters, then 21 of 101.
    inside = ["x" * 20, "x" * 20, *words(6, 10)]
    outside = ["x" * 21, "x" * 21, *words(5, 10), "q" * 9]
    assert gopher_repetition("\n".join(inside)).rule == ""
    assert gopher_repetition("\n".join(outside)).rule == "over 20% of characters in duplicate lines"


def test_duplicate_paragraphs() -> None:
    once = [f"{a}\n{b}" for a, b in zip(words(6, 8), words(12, 8)[6:], strict=True)]  # two lines each
    # Of ten paragraphs three occurred before, then four; of the lines, at most 4 of 15.
    assert gopher_repetition("\n\n".join([*once, *"xxxx"])).rule == ""
    assert gopher_repetition("\n\n".join([*once[:5], *"xxxxx"])).rule == "over 30% duplicate paragraphs"


def test_shares_of_ngrams_by_hand() -> None:
    # a b c a b c d: 2-grams ab bc ca ab bc cd. ab and bc occur twice, so the top share is 2 * 2 of 7 characters; the
    # second ab and bc cover a, b, c: 3 of 7. 3-grams: abc occurs twice: 6 of 7; its second occurrence covers 3 of 7.
    assert list(repeated_ngrams(list("abcabcd"), 10)) == [(2, 4 / 7, 3 / 7), (3, 6 / 7, 3 / 7)]
    # Of equally frequent 2-grams the longer one counts: "aa bbb" twice is 10 of 18 characters, "c d" twice is 4.
    tokens = ["c", "d", "aa", "bbb", "eeee", "c", "d", "aa", "bbb"]
    assert next(repeated_ngrams(tokens, 2)) == (2, 10 / 18, 7 / 18)
    assert list(repeated_ngrams(words(30), 10)) == [] == list(repeated_ngrams([], 10))
    # Overlapping duplicates count once: of aaaa (2-grams aa aa aa) the last three words.
    assert next(repeated_ngrams(list("aaaa"), 2)) == (2, 6 / 4, 3 / 4)


def slow_shares(tokens: list[str], n: int) -> tuple[float, float]:
    """The definition, word by word."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    total = sum(map(len, tokens))
    counts = {gram: grams.count(gram) for gram in grams}
    most = max(counts.values(), default=1)
    top = max((most * sum(map(len, gram)) for gram, count in counts.items() if count == most > 1), default=0)
    covered = {i + k for i, gram in enumerate(grams) if gram in grams[:i] for k in range(n)}
    return top / total, sum(len(tokens[i]) for i in covered) / total


def test_shares_of_ngrams_are_those_of_the_definition() -> None:
    random = np.random.default_rng(1)
    for _ in range(30):
        tokens = ["x" * length for length in random.integers(1, 5, random.integers(1, 60))]
        found = {n: (top, duplicate) for n, top, duplicate in repeated_ngrams(tokens, 10)}
        for n in range(2, 11):
            assert found.get(n, (0, 0)) == pytest.approx(slow_shares(tokens, n))


@pytest.mark.parametrize(
    ("times", "of", "size", "rule"),
    [
        # An n-gram of one-letter-longer words between different ones, so that nothing longer repeats.
        (10, 100, 2, "over 20% of characters in the most frequent 2-gram"),
        (6, 100, 3, "over 18% of characters in the most frequent 3-gram"),
        (4, 100, 4, "over 16% of characters in the most frequent 4-gram"),
    ],
)
def test_the_most_frequent_ngram(times: int, of: int, size: int, rule: str) -> None:
    gram = [["pp", "qq", "rr", "ss"][i] for i in range(size)]

    def text(count: int) -> str:
        """`count` times the n-gram among `of` words of two letters, all others different."""
        others = iter(words(of, 2))
        used = [word for _ in range(count) for word in (*gram, next(others))]
        return " ".join([*used, *itertools.islice(others, of - len(used))])

    assert gopher_repetition(text(times)).rule == ""
    assert gopher_repetition(text(times + 1)).rule == rule


@pytest.mark.parametrize(("n", "percent"), [(5, 15), (6, 14), (7, 13), (8, 12), (9, 11), (10, 10)])
def test_duplicate_ngrams(n: int, percent: int) -> None:
    vocabulary = words(700, 2)

    def text(words_again: int, total: int) -> str:
        """`total` words, of which `words_again` are n-grams that occurred before, each once."""
        once = vocabulary[: total - words_again]
        again = []
        for k in range(words_again // n):
            again += once[k * (n + 1) : k * (n + 1) + n]
        return " ".join(once + again)

    pieces = 2
    least = 100 * n * pieces // percent
    assert gopher_repetition(text(n * pieces, least + 1)).rule == ""
    rule = f"over {percent}% of characters in duplicate {n}-grams"
    shorter = [k for k in range(5, n) if filters.DUPLICATE_NGRAMS[k] < n * pieces / (least - 1)]
    assert not shorter, "the longer n-grams have the lower limits"
    assert gopher_repetition(text(n * pieces, least - 1)).rule == rule


# --- C4 --------------------------------------------------------------------------------------------------------------

SENTENCE = "This is a sentence of seven words."


@pytest.mark.parametrize(
    "line",
    [
        "Home | About | Contact us today",  # no terminal punctuation
        "Only four words here.",
        "This sentence trails off in the end...",
        "Please enable Javascript to view this page.",
        "By using this site you accept our privacy policy.",
        f"This line has a {'very' * 251} long word.",
    ],
)
def test_c4_drops_lines(line: str) -> None:
    verdict = c4("\n".join([SENTENCE, line, SENTENCE, SENTENCE]))
    assert verdict.text == "\n".join([SENTENCE] * 3) and verdict.detail == line and not verdict.rule


@pytest.mark.parametrize(
    "line",
    ["Now it is five words!", "Is it a question, then?", 'She said: "It is one."', f"A {'v' * 1000} word it is."],
)
def test_c4_keeps_lines(line: str) -> None:
    assert c4("\n".join([SENTENCE, line, SENTENCE, SENTENCE])) == (
        "\n".join([SENTENCE, line, SENTENCE, SENTENCE]),
        "",
        "",
    )


def test_c4_drops_pages() -> None:
    assert c4(SENTENCE + "\n" + SENTENCE).rule == "under 3 sentences"
    assert c4(f"{SENTENCE} {SENTENCE} {SENTENCE}").rule == ""
    assert c4("\n".join([SENTENCE] * 3 + ["Lorem ipsum dolor sit amet"])).rule == "lorem ipsum"
    assert c4("\n".join([SENTENCE] * 3 + ["if (a) { b; }"])).rule == "curly bracket"
    assert c4("\n".join(["It is so.[1] And so is this.[citation needed] It is."] * 2)).text.count("[") == 0
