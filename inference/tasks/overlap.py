"""Which examples of a task share n-grams with the data that a run was trained on, and the scores of the others.

Brown et al. 2020 (arXiv:2005.14165), appendix C, with the n-grams of `data/cleaning/decontamination.py`: 13 words, or
all of an example of 8 to 12 words; neither case nor punctuation counts. Shorter examples are not looked for: they match
by chance, and count as clean.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.cleaning.decontamination import SHORTEST, Evaluation, Overlap
from data.cleaning.ngrams import word_hashes
from data.corpus.sources import Document
from data.tokens import prepare
from inference.export import load_tokeniser
from run.directory import read_data
from support.errors import UserError
from support.json_object import JsonObject

if TYPE_CHECKING:
    from lm_eval.api.task import Task
    from tokenizers import Tokenizer

    from data.tokens.shards import Shards

BATCH_TOKENS = 1 << 20  # decoded at once, and at least one document


def example_text(task: "Task", doc: JsonObject) -> str:
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


def shared(examples: Sequence[str], training: Iterable[str]) -> list[int]:
    """How many documents of training, which are read once, hold an n-gram of each example, [examples]."""
    wanted = Evaluation.of(examples)
    numbers, hashes = [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
    for number, text in enumerate(training):
        found = np.unique(wanted.matches(word_hashes(text))[2])
        numbers.append(np.full(len(found), number))
        hashes.append(found)
    overlap = Overlap.of(np.concatenate(numbers), np.concatenate(hashes))
    report = overlap.report(Document(str(number), text) for number, text in enumerate(examples))
    counts = [0] * len(examples)
    for each in report["found"]:
        counts[each["number"] - 1] = each["documents"]
    return counts


def training_texts(run: Path) -> Iterator[str]:
    """The documents that a run was trained on, decoded from its prepared data: cleaned, and without held-out ones.

    Errors: `UserError` at once, where the run has no data or they are gone.
    """
    if not (run / "data.json").exists():
        raise UserError(f"{run} does not say what it was trained on: it is no run, or an import; leave out --overlap")
    tokeniser = load_tokeniser(run).backend_tokenizer
    folders = dict.fromkeys(Path(part["folder"]) for part in read_data(run)["parts"])
    return _decoded([prepare.shards(folder, "train") for folder in folders], tokeniser)


def _decoded(parts: "list[Shards]", tokeniser: "Tokenizer") -> Iterator[str]:
    """Every document, about `BATCH_TOKENS` at a time."""
    for shards in parts:
        ends = np.cumsum(shards.lengths, dtype=np.int64)
        first = 0
        while first < len(ends):
            start = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, start + BATCH_TOKENS, side="right")))
            documents = np.split(shards.read(start, int(ends[last - 1])), ends[first : last - 1] - start)
            yield from tokeniser.decode_batch([document.tolist() for document in documents])
            first = last


def apart(
    tasks: "Mapping[str, Task]", samples: Mapping[str, Sequence[JsonObject]], training: Iterable[str]
) -> JsonObject:
    """Of each task how many examples were asked, are shared with the training data or too short to look for, and the
    scores of the clean ones. `samples` are as lm-eval logs them, by task."""
    docs = {name: {each["doc_id"]: each["doc"] for each in samples[name]} for name in tasks}
    texts = {(name, at): example_text(tasks[name], doc) for name in tasks for at, doc in docs[name].items()}
    counts = dict(zip(texts, shared([*texts.values()], training), strict=True))
    found = {}
    for name, task in tasks.items():
        mine = [text for (owner, _), text in texts.items() if owner == name]
        dirty = {at for (owner, at), count in counts.items() if owner == name and count}
        found[name] = {
            "examples": len(mine),
            "shared": len(dirty),
            "too_short": sum(len(word_hashes(text)) < SHORTEST for text in mine),
            "scores": clean_scores(samples[name], task.aggregation(), dirty),
        }
    return found


def clean_scores(
    samples: Sequence[JsonObject], aggregation: Mapping[str, Callable[[list[Any]], float]], dirty: Container[int]
) -> JsonObject:
    """A task's metrics over its clean examples, None where there is none, and named as those of all examples are."""
    found: JsonObject = {}
    for sample in samples:
        for metric in sample["metrics"]:
            name = metric if sample["filter"] == "none" else f"{metric},{sample['filter']}"
            kept = found.setdefault(name, (metric, []))[1]
            if sample["doc_id"] not in dirty:
                kept.append(sample[metric])
    return {name: aggregation[metric](kept) if kept else None for name, (metric, kept) in found.items()}


def show(values: JsonObject) -> None:
    """Print what `apart` found."""
    for name, each in values.items():
        short = f"; {each['too_short']:,} are too short to look for" if each["too_short"] else ""
        scores = ", ".join(f"{metric} {score:.4f}" for metric, score in each["scores"].items() if score is not None)
        print(
            f"{name}: {each['shared']:,} of {each['examples']:,} examples share n-grams with the training data{short}; "
            f"the others: {scores or 'none'}"
        )
