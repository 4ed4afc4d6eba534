"""The nearest known word to a mistyped one."""

import difflib
from collections.abc import Iterable


def hint(word: str, known: Iterable[str], most: int = 2, otherwise: str = "", cutoff: float = 0.4) -> str:
    """`did you mean a or b?` where known words are near, else `otherwise`, or `there are a, b, c`.

    `cutoff` is how near, from 0 to 1: high where there are so many words that some are always near.
    """
    words = list(known)
    close = difflib.get_close_matches(word, words, n=most, cutoff=cutoff)
    return f"did you mean {' or '.join(close)}?" if close else otherwise or f"there are {', '.join(words)}"
