"""English and Chinese, word by word, out of CC-CEDICT. Of several meanings the usual one is taken: a text of the
language that is made says which."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cache

from data.taught.npm import dictionary

Say = Callable[[str], str]
MOST_WORDS = 3  # of a meaning in English that stands for a word
CHINESE = re.compile("[\u4e00-\u9fff]+")
MARKS = str.maketrans("，、。；：！？（）", ",,.;:!?()", "「」『』“”《》")


def senses(means: list[str]) -> Iterator[str]:
    """The meanings of an entry in small letters, one by one, without brackets and the "to" of a verb."""
    for sense in (sense for mean in means for sense in mean.split(";")):
        yield re.sub(r"\([^)]*\)|^\s*to\s", "", sense.lower()).strip()


def into_chinese(read: str) -> Say:
    """Says English in Chinese: each word, or its singular, as the dictionary has it; others stay, articles go.

    Of the words of several letters that mean the English one that is taken which `read`, Chinese text, has most often.
    """
    found: dict[str, list[str]] = defaultdict(list)
    for _, new, _, means in dictionary():
        for word in senses(means):
            if re.fullmatch(r"[a-z-]+", word):
                found[word].append(new)

    @cache
    def chinese(word: str) -> str:
        known = found.get(word) or found.get(word.rstrip("s")) or [word]
        return max(known, key=lambda each: (len(each) > 1) * read.count(each))

    def said(each: re.Match[str]) -> str:
        word = each[0].lower()
        there = chinese(word)
        return "" if word in ("a", "an", "the") else each[0] if there == word else there

    def say(text: str) -> str:
        text = re.sub(r"[A-Za-z-]+", said, text)
        return re.sub(r"(?<=[^\x00-\x7f])\s+|\s+(?=[^\x00-\x7f])", "", text).replace(",", "，").replace(".", "。")

    return say


def into_english(read: str) -> Say:
    """Says Chinese in English: the longest words that the dictionary has, from the left; what it has not goes.

    Of the meanings of up to three words that is taken which `read`, English text, has most often; the first of equals.
    """
    words = re.findall("[a-z'-]+", read.lower())
    usual = Counter(
        " ".join(words[at : at + size]) for size in range(1, MOST_WORDS + 1) for at in range(len(words) - size + 1)
    )
    found: dict[str, list[str]] = defaultdict(list)
    for _, new, _, means in dictionary():
        found[new] += [
            word
            for word in senses(means)
            if re.fullmatch("[a-z' -]+", word) and word.count(" ") < MOST_WORDS and not word.startswith("surname ")
        ]
    longest = max(map(len, found), default=1)

    def english(text: str) -> Iterator[str]:
        while text:
            size = next((size for size in range(min(longest, len(text)), 1, -1) if text[:size] in found), 1)
            yield max(found.get(text[:size], []), key=usual.__getitem__, default="")
            text = text[size:]

    def say(text: str) -> str:
        text = CHINESE.sub(lambda each: f" {' '.join(english(each[0]))} ", text).translate(MARKS)
        text = re.sub(r" +(?=[,.;:!?)])|(?<=\() +", "", " ".join(text.split()))
        return re.sub(r"(^|[.!?:] )([a-z])", lambda each: each[1] + each[2].upper(), text)

    return say
