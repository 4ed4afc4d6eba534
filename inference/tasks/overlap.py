"""Which examples of a task share n-grams with the data that a run was trained on, and the scores of the others.

Brown et al. 2020 (arXiv:2005.14165), appendix C, with the n-grams of `data/cleaning/decontamination.py`: 13 words, or
all of an example of 8 to 12 words; neither case nor punctuation counts. Shorter examples are not looked for: they match
by chance, and count as clean.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.cleaning.decontamination import Evaluation, Overlap
from data.cleaning.ngrams import word_hashes
from data.corpus.sources import Document
from data.tokens import prepare
from inference.export import load_tokeniser
from run.directory import read_data
from support.json_object import JsonObject

BATCH_TOKENS = 1 << 20  # decoded at once, and at least one document


class Task(Protocol):
    """What is needed of a task of lm-eval: an example's question and answer."""

    config: Any

    def doc_to_text(self, doc: JsonObject) -> Any: ...

    def doc_to_target(self, doc: JsonObject) -> Any: ...

    def doc_to_choice(self, doc: JsonObject) -> Any: ...


@dataclass(frozen=True)
class Shared:
    """How many training documents hold an n-gram of each example, and how many examples are too short to look for."""

    documents: tuple[int, ...]
    too_short: int

    @property
    def clean(self) -> list[bool]:
        """Whether an example shares nothing, for each of them."""
        return [not count for count in self.documents]


def example_text(task: Task, doc: JsonObject) -> str:
    """An example as a text to look for: its question and its (first) right answer."""
    text, target = task.doc_to_text(doc), task.doc_to_target(doc)
    choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else ()
    if isinstance(target, list):
        target = target[0]
    if choices and isinstance(text, int):  # the contexts are the choices
        text = choices[text]
    elif choices and isinstance(target, int):
        target = choices[target]
    return f"{text} {target}"


def shared(examples: Sequence[str], training: Iterable[str]) -> Shared:
    """Look for the n-grams of the examples in the texts of training, which are read once."""
    wanted = Evaluation.of(examples)
    numbers, hashes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    for number, text in enumerate(training):
        found = np.unique(wanted.matches(word_hashes(text))[2])
        numbers.append(np.full(len(found), number))
        hashes.append(found)
    overlap = Overlap.of(np.concatenate(numbers), np.concatenate(hashes))
    report = overlap.report(Document(str(number), text) for number, text in enumerate(examples))
    counts = dict.fromkeys(range(len(examples)), 0) | {
        each["number"] - 1: each["documents"] for each in report["found"]
    }
    return Shared(tuple(counts.values()), report["too_short"])


def training_texts(run: Path) -> Iterator[str]:
    """The documents that a run was trained on, decoded from its prepared data: cleaned, and without held-out ones.

    Errors: `UserError` where the data are gone.
    """
    tokeniser = load_tokeniser(run)
    for folder in dict.fromkeys(Path(part["folder"]) for part in read_data(run)["parts"]):
        shards = prepare.shards(folder, "train")
        ends = np.cumsum(shards.lengths, dtype=np.int64)
        first = 0
        while first < len(ends):
            start = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, start + BATCH_TOKENS, side="right")))
            tokens = shards.read(start, int(ends[last - 1]))
            parts = np.split(tokens, ends[first : last - 1] - start)
            yield from tokeniser.backend_tokenizer.decode_batch([part.tolist() for part in parts])
            first = last


def clean_scores(
    samples: Sequence[JsonObject], aggregation: Mapping[str, Callable[[list[Any]], float]], clean: Sequence[bool]
) -> JsonObject:
    """A task's metrics over its clean examples, None where there is none. `samples` are as lm-eval logs them."""
    kept = [sample for sample in samples if clean[sample["doc_id"]]]
    return {
        name: aggregation[name]([sample[name] for sample in kept]) if kept else None
        for name in (samples[0]["metrics"] if samples else ())
    }
