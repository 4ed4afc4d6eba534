"""What is done with a text that was written, by name: `--tidy sentence,repeats,spaces`. Pure functions of a text.

A text is what stands behind the prompt. Nothing is added, and what is left keeps its order.
"""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

FEW = 3  # words: a sentence or a line of so many may stand twice, as a speaker's name does in a play
CLOSING = "\"'”’»›)]}」』）】》"  # may stand behind the end of a sentence and belong to it
END = re.compile(rf"(?:[.!?…؟۔।]+[{re.escape(CLOSING)}]*(?=\s|$)|[。！？]+[{re.escape(CLOSING)}]*)")
SHORTENED = re.compile(  # a full stop behind these ends no sentence: an initial, a number of a list, a short form
    r"(?:(?:^|[\s(])[A-HJ-Z]|(?:^|\n)[ \t]*\d+|\b(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|cf|Fig|e\.g|i\.e))\.$"
)
MARK = r"(?:[,.!?](?=\s|$|[\"'”’)])|[;:](?=\s|$))"  # what no space stands before
LONGEST = 40  # characters that are looked at before a full stop
CODE = re.compile(r"^[ \t]|[{}=<>\\|`_]|\w\(|;\s*$")  # a line that may be code or a table


def tidied(text: str, names: Sequence[str]) -> str:
    """A text after the steps of these names, in this order."""
    for name in names:
        text = STEPS[name](text)
    return text


def whole_sentences(text: str) -> str:
    """Cut a text behind its last whole sentence; one that has none stays as it is."""
    ends = _ends(text)
    return text[: ends[-1]] if ends else text


def without_repeats(text: str) -> str:
    """Drop sentences and lines that stood before; short ones only where they follow themselves.

    Capitals and spaces do not count. A line that may be code stays, and what holds neither letter nor digit.
    """
    seen: set[str] = set()
    last, kept = "", []
    for line, code in _lines(text):
        left = line if code else ""
        for sentence in () if code else _sentences(line):
            key = " ".join(sentence.casefold().split())
            means = any(map(str.isalnum, key))
            if means and (key == last or (key in seen and not _is_short(key))):
                continue
            left += sentence
            if means:
                seen.add(key)
                last = key
        if left or not line:
            kept.append(left if left == line else left.rstrip())
    return "\n".join(kept)


def tidy_spaces(text: str) -> str:
    """One space between words, none before a comma or a full stop, none inside brackets, one empty line at most.

    A line that may be code stays but for spaces at its end. Full stops in a row, and those before a digit or a letter,
    stay: `...`, `3 . 5`, `.txt`.
    """
    lines = [(line if code else _tidy_line(line)).rstrip(" \t") for line, code in _lines(text)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines))


def _lines(text: str) -> list[tuple[str, bool]]:
    """The lines of a text, and whether each may be code: it looks so, or stands between lines of three backticks."""
    found, fenced = [], False
    for number, line in enumerate(text.split("\n")):
        fence = line.lstrip().startswith("```")
        # The first line goes on from the prompt: a space before it is the one between two words.
        looks_so = bool(CODE.search(line.removeprefix(" ") if number == 0 else line))
        found.append((line, fence or fenced or looks_so))
        fenced ^= fence
    return found


def _tidy_line(line: str) -> str:
    line = re.sub(r"[ \t]+", " ", line)
    line = re.sub(rf"(?<=[^\s\d.]) (?!\. \.)(?={MARK})", "", line)
    line = re.sub(rf"(?<=\d) (?={MARK}(?!\s+\d))", "", line)
    line = re.sub(r" +(?=[，。！？；：、])", "", line)
    return re.sub(r"(?<=[(\[“]) (?=[^\s)\]])|(?<=[^\s(\[]) (?=[)\]”])", "", line)


def _sentences(text: str) -> list[str]:
    """The sentences of a text, each with the spaces behind it; together they are the text."""
    cuts = [0, *(re.compile(r"\s*").match(text, end).end() for end in _ends(text)), len(text)]  # type: ignore[union-attr]
    return [text[first:last] for first, last in pairwise(cuts) if first < last]


def _ends(text: str) -> list[int]:
    """Behind which characters sentences end. A small letter goes on with a sentence, as in `"What?" he asked`."""
    found = []
    for match in END.finditer(text):
        rest = text[match.end() :].lstrip()
        goes_on = match[0][0] in ".!?…" and rest[:1].islower()
        if not goes_on and not SHORTENED.search(text[max(0, match.start() - LONGEST) : match.start() + 1]):
            found.append(match.end())
    return found


def _is_short(key: str) -> bool:
    """Whether a sentence is short; Chinese and Japanese have no spaces, and count a word for two characters."""
    words = key.split()
    return max(len(words), sum(ord(letter) > 0x2E7F for letter in key) // 2) <= FEW


STEPS: dict[str, Callable[[str], str]] = {
    "sentence": whole_sentences,
    "repeats": without_repeats,
    "spaces": tidy_spaces,
}
