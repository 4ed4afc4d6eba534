"""Translation without pairs: the Chinese of some of LibreOffice's help pages, and the English of others.

What is learned is text as people wrote it; what is shown is the same text, said in the other language word by word:
back-translation (Sennrich et al. 2016, arXiv:1511.06709) whose first backward model is a dictionary, as without pairs
(Lample et al. 2018, arXiv:1804.07755).
"""

from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

from data.taught.debian import help_pages
from data.taught.rows import Row, drawn, written
from data.taught.words import into_chinese, into_english


class Pair(NamedTuple):
    """A paragraph in both languages, and its page."""

    english: str
    chinese: str
    page: str

    @property
    def held_out(self) -> bool:
        return drawn(self.page) == "test"

    @property
    def gives_chinese(self) -> bool:
        """Whether the page gives its Chinese: half of the pages do, and the other half their English."""
        return crc32(self.page.encode()) // 100 % 2 == 0  # the rest of the division by 100 decides the split


def help_pairs() -> list[Pair]:
    return [Pair(row.text, str(row.content["completion"]).strip(), row.group) for row in help_pages("zh-CN")]


def sides(pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """The paragraphs to learn Chinese from, and those to learn English from; equal ones are still there.

    Of no paragraph both are learned: what a page of the other half has too, in either language, is left out.
    """
    seen = [pair for pair in pairs if not pair.held_out]
    chinese = [pair for pair in seen if pair.gives_chinese]
    there = {text for pair in chinese for text in (pair.english, pair.chinese)}
    english = [pair for pair in seen if not pair.gives_chinese and there.isdisjoint((pair.english, pair.chinese))]
    return chinese, english


def to_chinese() -> Iterator[Row]:
    """Chinese of half of the pages, behind English that the dictionary makes of it; pairs of the pages for testing."""
    chinese, english = sides(pairs := help_pairs())
    say = into_english("\n".join(pair.english for pair in english))
    for pair in [*chinese, *(pair for pair in pairs if pair.held_out)]:
        shown = pair.english if pair.held_out else say(pair.chinese)
        yield written(f"English: {shown}\nChinese:", f" {pair.chinese}", pair.page, pair.english)


def to_english() -> Iterator[Row]:
    """English of the other half, behind Chinese that the dictionary makes of it; pairs of the pages for testing."""
    chinese, english = sides(pairs := help_pairs())
    say = into_chinese("\n".join(pair.chinese for pair in chinese))
    for pair in [*english, *(pair for pair in pairs if pair.held_out)]:
        shown = pair.chinese if pair.held_out else say(pair.english)
        yield written(f"Chinese: {shown}\nEnglish:", f" {pair.english}", pair.page, pair.english)
