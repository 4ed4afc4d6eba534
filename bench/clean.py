"""How fast is cleaning? Every stage in MB a second of one core, beside the library that people would use for it.

`python -m bench.clean CORPUS` measures each stage on the first documents of a corpus, alternating with the peer where
that is installed (`pip install datatrove datasketch nltk`), and prints medians and their ratio. It counts the
processor's time, which other work on the machine disturbs less. datatrove gets words split at white space, as ours;
its own word splitter is slower.
"""

import argparse
import importlib
import os
import statistics
import time
from collections.abc import Callable
from itertools import islice

from commands import cli
from data.cleaning import decontamination, duplicates, filters
from data.cleaning.ngrams import word_hashes
from data.corpus.corpora import documents
from support.json_object import JsonObject

Timed = Callable[[list[str]], object]
ROUNDS = 3


def stages(evaluation: decontamination.Evaluation) -> dict[str, tuple[Timed, str, Callable[[], Timed]]]:
    """Our work for each stage, the peer's name, and a way to get the peer's."""

    def each(look: Callable[[str], object]) -> Timed:
        return lambda texts: [look(text) for text in texts]

    return {
        "unicode": (each(filters.repair), "ftfy", lambda: each(importlib.import_module("ftfy").fix_text)),
        "language": (each(lambda text: filters.language(text, {"en"})), "", _no_peer),
        "c4": (each(filters.c4), "", _no_peer),
        "gopher-quality": (each(filters.gopher_quality), "datatrove", lambda: _datatrove("quality")),
        "gopher-repetition": (each(filters.gopher_repetition), "datatrove", lambda: _datatrove("repetition")),
        "near": (lambda texts: duplicates.signatures([word_hashes(text) for text in texts]), "datasketch", _datasketch),
        "decontaminate": (each(lambda text: evaluation.matches(word_hashes(text))), "", _no_peer),
    }


def _no_peer() -> Timed:
    raise ImportError


def _datatrove(kind: str) -> Timed:
    module = importlib.import_module(f"datatrove.pipeline.filters.gopher_{kind}_filter")
    document = importlib.import_module("datatrove.data").Document
    module.split_into_words = lambda text, language: text.split()  # type: ignore[attr-defined]
    look = getattr(module, f"Gopher{kind.title()}Filter")()
    return lambda texts: [look.filter(document(text=text, id="")) for text in texts]


def _datasketch() -> Timed:
    minhash = importlib.import_module("datasketch").MinHash

    def work(texts: list[str]) -> object:
        sketches = []
        for text in texts:
            words = text.lower().split()
            sketch = minhash(duplicates.BANDS * duplicates.ROWS)
            sketch.update_batch([" ".join(words[i : i + 5]).encode() for i in range(len(words) - 4)])
            sketches.append(sketch)
        return sketches

    return work


def measure(texts: list[str]) -> list[JsonObject]:
    """Median MB/s of every stage and of its peer, None where that is not installed."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    rows = []
    for stage, (ours, name, find) in stages(decontamination.Evaluation.of(texts[::50])).items():
        works: list[Timed] = [ours]
        try:
            works.append(find())
        except ImportError:
            name = name and f"{name} (not installed)"
        speeds: list[list[float]] = [[] for _ in works]
        for _ in range(ROUNDS):
            for work, found in zip(works, speeds, strict=True):
                began = time.process_time()
                work(texts)
                found.append(size / (time.process_time() - began))
        medians = [statistics.median(found) for found in speeds]
        rows.append(
            {"stage": stage, "mb_per_second": medians[0], "peer": name, "peer_mb_per_second": (*medians, None)[1]}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", nargs="?", default="shakespeare")
    parser.add_argument("--documents", type=int, default=1000, help="how many to read")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> list[JsonObject]:
        os.environ["RAYON_NUM_THREADS"] = "1"
        rows = measure([document.text for document in islice(documents(args.corpus), args.documents)])
        for row in () if args.json else rows:
            peer = row["peer_mb_per_second"]
            beside = f"{row['peer']} {peer:.1f} MB/s, ratio {row['mb_per_second'] / peer:.1f}" if peer else row["peer"]
            print(f"{row['stage']:20s} {row['mb_per_second']:8.1f} MB/s  {beside}")
        return rows

    cli.run_job(job, args.json)


if __name__ == "__main__":
    main()
