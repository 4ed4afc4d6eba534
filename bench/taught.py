"""What costs nothing to learn: the baselines of the sets of rows, on their held-out rows.

`python -m bench.taught` takes the sets in turn (or those named) and prints the scores that a tuned model has to beat:
the first sentence, the sentence most like the question, the most frequent answer, a lexicon, naive Bayes, a copy, a
dictionary. TextRank is sumy's, where that is installed (`pip install sumy`). VADER's rules run as its archive has them.
"""

import argparse
import importlib
import json
import random
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path

from commands import cli
from data.corpus import bigbench as questions
from data.corpus.fetch import fetch_sdist
from data.taught import pypi
from data.taught.bigbench import relation
from data.taught.sets import rows_file
from data.taught.words import into_chinese
from inference.tasks.own import scores, verse
from inference.tasks.own.rows import SENTENCES, sentences
from support.errors import UserError
from support.json_object import JsonObject

Scores = dict[str, float]
Write = Callable[[JsonObject], str]
MOST = 2_000  # rows of a set that are scored; they come in an order that has nothing to do with what they say


@cache
def rows(name: str, split: str) -> list[JsonObject]:
    """The rows of a split."""
    with open(rows_file(name), encoding="utf-8") as stream:
        return [row for row in map(json.loads, stream) if row["split"] == split]


def mean(each: Sequence[Scores]) -> Scores:
    """The mean of each score."""
    return {key: sum(one[key] for one in each) / len(each) for key in each[0]}


# --- Summaries -------------------------------------------------------------------------------------------------------


def source(row: JsonObject) -> str:
    """The text of a prompt, without what asks for it in the last line."""
    return str(row["prompt"]).rpartition("\n")[0]


def first_sentence(row: JsonObject) -> str:
    return (sentences(source(row)) or [""])[0]


def textrank(row: JsonObject) -> str:
    """The sentence that sumy's TextRank takes. Its own splitter would download a model."""
    from sumy.models.dom import ObjectDocumentModel, Paragraph, Sentence
    from sumy.summarizers.text_rank import TextRankSummarizer

    class Words:
        def to_words(self, text: str) -> tuple[str, ...]:
            return tuple(re.findall(r"\w+", text))

    found = [Sentence(text, Words()) for text in sentences(source(row))[:SENTENCES]]
    best = TextRankSummarizer()(ObjectDocumentModel([Paragraph(found)]), 1)
    return str(best[0]) if best else ""


def written(name: str, write: Write, kind: str) -> Scores:
    """ROUGE-L, or BLEU and chrF, of what a baseline writes for the rows that are tested."""
    tested = rows(name, "test")[:MOST]
    items = [(write(row), row.get("answers", [row["completion"].strip()])) for row in tested]
    if kind == "rouge":
        return {"rougeL": mean([scores.rouge(text, wanted) for text, wanted in items])["rougeL"]}
    bleu = scores.bleu_zh if kind == "zh" else scores.bleu
    return {"bleu": bleu(items), "chrf": scores.chrf(items)}


# --- Translations ----------------------------------------------------------------------------------------------------


def english(row: JsonObject) -> str:
    """The English text of a prompt."""
    return source(row).removeprefix("English: ").strip()


@cache
def say_in_chinese() -> Callable[[str], str]:
    """English word by word: the words are those that the Chinese for training has most often."""
    return into_chinese("\n".join(row["completion"] for row in rows("tune_help_zh", "train")))


def word_by_word(row: JsonObject) -> str:
    return say_in_chinese()(english(row))


# --- Answers ---------------------------------------------------------------------------------------------------------


def most_like(context: str, question: str) -> str:
    """The sentence that shares most with a question: F1 of the words."""
    return max(sentences(context), key=partial(scores.f1, answer=question), default="")


def reading() -> Iterator[tuple[str, str, Scores]]:
    """The sentence most like the question, for the held-out articles and for other kinds of text."""
    asked = [(re.split(r"\n(?:Background|Q): |\nA:", row["prompt"]), row) for row in rows("tune_read", "test")]
    tested = {"tune_read": [(parts[1], parts[2], row) for parts, row in asked]}
    for kind in ("nyt", "reddit", "amazon"):
        name = f"bb_squad_{kind}"
        with open(questions.rows_file(name), encoding="utf-8") as stream:
            given = random.Random(0).sample(list(map(json.loads, stream)), MOST)
        tested[name] = [(row["context"], row["question"], row) for row in given]
    for name, each in tested.items():
        answered = [scores.answers(row, [most_like(context, question)]) for context, question, row in each[:MOST]]
        yield name, "the sentence most like the question", mean(answered)


def facts() -> Iterator[tuple[str, str, Scores]]:
    """The answer that is most frequent for a relation in what is trained on."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows("tune_facts", "train"):
        counts[relation(row["prompt"])[0]][row["completion"].strip()] += 1
    best = {name: count.most_common(1)[0][0] for name, count in counts.items()}
    each = [scores.facts(row, [best.get(relation(row["prompt"])[0], "")]) for row in rows("tune_facts", "test")]
    yield "tune_facts", "most frequent answer of the relation", mean(each)


def chance(name: str) -> Iterator[tuple[str, str, Scores]]:
    each = [{"acc": 1 / len(row["choices"])} for row in rows(name, "test")]
    yield name, "chance", mean(each)


# --- Sentiment -------------------------------------------------------------------------------------------------------


def sentiment() -> Iterator[tuple[str, str, Scores]]:
    """The more frequent answer, VADER's lexicon and rules, and naive Bayes."""
    name = "tune_sentiment"
    tested, trained = rows(name, "test"), rows(name, "train")
    usual = Counter(row["gold"] for row in trained).most_common(1)[0][0]
    yield name, "more frequent answer", {"acc": sum(row["gold"] == usual for row in tested) / len(tested)}
    polarity = _vader()
    for what, those in (("", tested), (", on all rows", [*tested, *trained, *rows(name, "validation")])):
        right = sum((polarity(_review(row))["compound"] > 0) == bool(row["gold"]) for row in those)
        yield name, f"VADER's lexicon and rules{what}", {"acc": right / len(those)}
    reviews, gold = [_review(row) for row in tested], [bool(row["gold"]) for row in tested]
    for what, words in (("words", 1), ("words and pairs of words", 2)):
        agreed = sum(told == kind for told, kind in zip(naive_bayes(words)(reviews), gold, strict=True))
        yield name, f"naive Bayes of {what}", {"acc": agreed / len(gold)}


def naive_bayes(words: int) -> Callable[[Sequence[str]], list[bool]]:
    """What says which reviews are positive, by n-grams of up to so many words; learned from the reviews for training.

    A word counts once a review.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    trained, count = rows("tune_sentiment", "train"), CountVectorizer(ngram_range=(1, words), binary=True)
    bayes = MultinomialNB().fit(count.fit_transform(map(_review, trained)), [row["gold"] for row in trained])
    return lambda reviews: [bool(label) for label in bayes.predict(count.transform(reviews))]


def _review(row: JsonObject) -> str:
    before, _, behind = pypi.ASKED.partition("{}")
    return str(row["prompt"]).removeprefix(before).removesuffix(behind)


def _vader() -> Callable[[str], Scores]:
    """VADER's function, run out of its archive: the lexicon is read as long as the folder is there."""
    archive = fetch_sdist(pypi.VADER, pypi.VADER_SHA256)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("vaderSentiment.py", "vader_lexicon.txt", "emoji_utf8_lexicon.txt"):
            Path(folder, name).write_bytes(pypi.member(archive, f"/vaderSentiment/{name}"))
        sys.path.insert(0, folder)
        try:
            analyser = importlib.import_module("vaderSentiment").SentimentIntensityAnalyzer()
        finally:
            sys.path.remove(folder)
    return lambda text: analyser.polarity_scores(text)


# --- All of them -----------------------------------------------------------------------------------------------------


def summaries(name: str) -> Iterator[tuple[str, str, Scores]]:
    yield name, "first sentence", written(name, first_sentence, "rouge")
    try:
        yield name, "TextRank (sumy)", written(name, textrank, "rouge")
    except ImportError:
        yield name, "TextRank (sumy is not installed)", {}


def copies(name: str) -> Iterator[tuple[str, str, Scores]]:
    kind = "zh" if name.endswith("_zh") else "letters"
    yield name, "copy", written(name, english, kind)
    if kind == "zh":
        yield name, "word by word (CC-CEDICT)", written(name, word_by_word, kind)


def last_line(name: str) -> Iterator[tuple[str, str, Scores]]:
    yield name, "last line of the input", written(name, lambda row: source(row).rpartition("\n")[2], "rouge")


def poems(name: str) -> Iterator[tuple[str, str, Scores]]:
    each = [verse.form(row, [row["completion"]]) for row in rows(name, "test")]
    yield name, "the poems themselves", mean(each)


BASELINES: dict[str, Callable[[], Iterator[tuple[str, str, Scores]]]] = {
    "tune_sentiment": sentiment,
    **{
        name: partial(summaries, name)
        for name in ("tune_summary", "tune_sources", "tune_xsum", "tune_wikilingua", "tune_story")
    },
    **{
        name: partial(copies, name) for name in ("tune_help_de", "tune_help_zh", "tune_packages_de", "tune_packages_fr")
    },
    "tune_read": reading,
    "tune_facts": facts,
    **{name: partial(chance, name) for name in ("tune_cosmosqa", "tune_qasc", "tune_winogrande")},
    "tune_verse": partial(poems, "tune_verse"),
    "tune_instructions": partial(last_line, "tune_instructions"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sets", nargs="*", help=f"of {', '.join(BASELINES)}; all without one")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> list[JsonObject]:
        for name in args.sets:
            if name not in BASELINES:
                raise UserError(f"{name} has no baseline; give some of {', '.join(BASELINES)}")
        found = []
        for name in args.sets or BASELINES:
            for task, baseline, values in BASELINES[name]():
                found.append({"task": task, "baseline": baseline, **values})
                told = "  ".join(f"{key} {value:.3f}" for key, value in values.items())
                if not args.json:
                    print(f"{task:18s} {baseline:44s} {told}", flush=True)
        return found

    cli.run_job(job, args.json)


if __name__ == "__main__":
    main()
