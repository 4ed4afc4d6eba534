"""Extraction: of the sentences of a text the one that a model ranks first is the summary."""

import re
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from inference.tasks.own.scores import rouge
from support.json_object import JsonObject

WORDS = 3  # of a sentence that are scored
BEGINNING = re.compile(rf"(?:\S+\s+){{,{WORDS - 1}}}\S+")


class Extraction(ConfigurableTask):
    """Asks how likely the first words of each sentence are behind the prompt, and behind its question alone.

    A model that copies chooses a sentence with its first words: the rest is nearly certain, and its likelihood says how
    long and how rare the sentence is.
    """

    def __init__(self, config: JsonObject) -> None:
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def construct_requests(self, doc: JsonObject, ctx: str, metadata: Any = None, **_: Any) -> list[Instance]:
        """The requests of a row: its sentences behind `ctx`, then the same behind the question."""
        asked = [(before, f" {beginning(each)}") for before in (ctx, doc["question"]) for each in doc["sentences"]]
        return [Instance("loglikelihood", doc, pair, at, metadata) for at, pair in enumerate(asked)]


def beginning(sentence: str) -> str:
    """The first words of a sentence."""
    found = BEGINNING.match(sentence)
    assert found
    return found[0]


def best(row: JsonObject, results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """ROUGE of the sentence that the text makes likelier by most: pointwise mutual information, given the question."""
    odds, count = [total for total, _ in results], len(row["sentences"])
    gains = [given - alone for given, alone in zip(odds[:count], odds[count:], strict=True)]
    return rouge(row["sentences"][max(range(count), key=gains.__getitem__)], row["answers"])
