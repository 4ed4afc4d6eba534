"""Which split a document belongs to, where its source does not say so: a part is held out to validate and to test."""

import zlib
from collections.abc import Iterator
from dataclasses import replace

from data.corpus.document import Document

HELD_OUT, TESTED = 2, 1  # of a hundred documents, so many go to validation and to test


def split_of(document: Document, raw: bytes) -> str:
    """The split of a document whose text is `raw` in UTF-8: the source's own, else one that the text alone decides.

    So neither the order of the documents nor their files matter, and equal texts get the same split: a text is not
    both trained on and validated on.
    """
    if document.split:
        return document.split
    bucket = zlib.crc32(raw) % 100
    return "validation" if bucket < HELD_OUT else "test" if bucket < HELD_OUT + TESTED else "train"


def hold_out_end(
    documents: Iterator[Document], train_bytes: int, held_bytes: int, all_for_training: bool = False
) -> Iterator[Document]:
    """Hold out the end of the training text: for a corpus of which no document fell to validation.

    `train_bytes` are the bytes of UTF-8 for training; at least the last `held_bytes` of them go to validation. They are
    whole documents, but a document longer than `held_bytes` is cut, where a line ends if it has lines. With
    `all_for_training`, where nothing fell to training either, documents without a split of their own are for it.
    Documents of other splits stay as they are.
    """
    position = 0
    for document in documents:
        try:
            raw = document.text.encode()
        except UnicodeEncodeError:  # the caller reports it; `train_bytes` does not count it
            raw = b""
        drawn = "train" if all_for_training and not document.split else split_of(document, raw)
        if not raw or drawn != "train":
            yield document
            continue
        rest = train_bytes - held_bytes - position  # bytes for training, of this document and those after it
        position += len(raw)
        if rest >= len(raw):
            yield replace(document, split="train")
        elif rest <= 0 or len(raw) <= held_bytes or document.parts:  # an example is never cut
            yield replace(document, split="validation")
        else:
            cut = _cut(raw, rest)
            for split, text in (("train", raw[:cut]), ("validation", raw[cut:])):
                if text:
                    yield Document(document.name, text.decode(), split)


def _cut(raw: bytes, target: int) -> int:
    """Where to cut UTF-8 at or before `target`: where a line ends, or between characters if that is far away."""
    line = raw.rfind(b"\n", 0, target) + 1
    if line > target // 2:
        return line
    while target and raw[target] & 0xC0 == 0x80:
        target -= 1
    return target
