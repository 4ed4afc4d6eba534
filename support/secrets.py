"""What a run neither keeps nor prints: passwords in addresses, and what is said to a listener's command."""

import re
from collections.abc import Sequence

ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*):[^\s/@]+@", re.IGNORECASE)
HIDDEN = "***"
WHOLE = ("--notify",)  # flags whose value may hold a key in any form


def without_passwords(text: str) -> str:
    """A text in which an address such as https://me:password@host/ has no password."""
    return ADDRESS.sub(rf"\1:{HIDDEN}@", text)


def command_to_keep(words: Sequence[str]) -> list[str]:
    """A command line without what others must not read."""
    kept = []
    for before, word in zip(["", *words], words, strict=False):
        flag = word.partition("=")[0]
        if before in WHOLE:
            word = HIDDEN
        elif flag in WHOLE and flag != word:
            word = f"{flag}={HIDDEN}"
        kept.append(without_passwords(word))
    return kept
