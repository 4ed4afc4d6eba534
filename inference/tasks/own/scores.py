"""How answers are scored. lm-eval calls these with a row and the results for it, or with all of a metric's items."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, cast

from support.json_object import JsonObject

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

Written = Sequence[tuple[str, Sequence[str]]]  # a text and its references

ARTICLES = re.compile(r"\b(a|an|the)\b")
STEERED_WORDS = 12
PUNCTUATION = str.maketrans("", "", string.punctuation)


# --- Answers ---------------------------------------------------------------------------------------------------------


def normalised(text: str) -> str:
    """A text as SQuAD compares it (Rajpurkar et al. 2016): no capitals, punctuation, articles, spare white space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact(text: str, answer: str) -> float:
    """1 where a text is the answer, else 0."""
    return float(normalised(text) == normalised(answer))


def f1(text: str, answer: str) -> float:
    """F1 of the words that a text and the answer share; where one of them has no word, whether both have none."""
    words, wanted = normalised(text).split(), normalised(answer).split()
    if not words or not wanted:
        return float(words == wanted)
    shared = (Counter(words) & Counter(wanted)).total()
    return 2 * shared / (len(words) + len(wanted))


def begins(text: str, answer: str) -> float:
    """1 where a text begins with the answer and a word ends there, else 0; where no word is left of it, as `exact`."""
    words, wanted = normalised(text).split(), normalised(answer).split()
    return float(words[: len(wanted)] == wanted if wanted else not words)


def answers(row: JsonObject, results: Sequence[str]) -> dict[str, float]:
    """Exact match and F1, of the answer that fits best."""
    return {"em": _best(exact, results[0], row["answers"]), "f1": _best(f1, results[0], row["answers"])}


def facts(row: JsonObject, results: Sequence[str]) -> dict[str, float]:
    """The same, and whether the text begins with an answer: a model that is not told to stop writes on."""
    return {**answers(row, results), "begins": _best(begins, results[0], row["answers"])}


def coqa(row: JsonObject, results: Sequence[str]) -> dict[str, float]:
    """As CoQA's own script (Reddy et al. 2019): the mean over leaving out one person's answer, as a person is scored
    against the others'."""
    people = row["answers"]
    others = [people[:at] + people[at + 1 :] for at in range(len(people))] if len(people) > 1 else [people]
    each = [answers({"answers": left}, results) for left in others]
    return {name: sum(scores[name] for scores in each) / len(each) for name in each[0]}


def _best(score: Callable[[str, str], float], text: str, wanted: Sequence[str]) -> float:
    return max(score(text, answer) for answer in wanted)


def said(row: JsonObject, results: Sequence[tuple[float, bool]]) -> JsonObject:
    """The likelihood of an answer and its words, of which lm-eval makes a perplexity of all words together."""
    return {"word_perplexity": (results[0][0], len(row["completion"].split()))}


def last_word(row: JsonObject, results: Sequence[str]) -> dict[str, float]:
    """1 where the text begins with the wanted word and the word ends there, else 0."""
    return {"acc": float(bool(re.match(rf"\s*{re.escape(row['word'])}(?!\w|['’-]\w)", results[0])))}


def right_context(row: JsonObject) -> int:
    """The number of the right choice, for lm-eval, which asks for it as a text where contexts are the choices."""
    return int(row["gold"])


def steered_text(row: JsonObject) -> str:
    """The first words of a text that stands behind a prefix: a context of 64 tokens has room for both."""
    return " " + " ".join(row["completion"].split()[:STEERED_WORDS])


def steered(row: JsonObject, results: Sequence[tuple[float, bool]]) -> JsonObject:
    """Whether a text is likelier behind its own prefix than behind the others, and its perplexity there."""
    odds = [total for total, _ in results]
    right = row["gold"]
    best = max(range(len(odds)), key=odds.__getitem__)
    return {"acc": float(best == right), "word_perplexity": (odds[right], len(steered_text(row).split()))}


# --- Texts -----------------------------------------------------------------------------------------------------------


def texts(row: JsonObject, results: Sequence[str]) -> JsonObject:
    """ROUGE of the reference that fits best; BLEU and chrF are computed of all texts together, at the end."""
    return {**rouge(results[0].strip(), row["answers"]), **letters(row, results)}


def letters(row: JsonObject, results: Sequence[str]) -> JsonObject:
    """BLEU and chrF alone: rouge-score takes no letters but Latin ones, and would give 0."""
    item = (results[0].strip(), row["answers"])
    return {"bleu": item, "chrf": item}


def rouge(text: str, references: Sequence[str]) -> dict[str, float]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), without stemming; of several references the highest."""
    scores = [_rouge_scorer().score(reference, text) for reference in references]
    return {name: max(each[name].fmeasure for each in scores) for name in ("rouge1", "rouge2", "rougeL")}


@cache
def _rouge_scorer() -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"])


def bleu(written: Written) -> float:
    """BLEU of all texts together, 0 to 100 (sacrebleu's own settings)."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu([text for text, _ in written], _streams(written)).score)


def bleu_zh(written: Written) -> float:
    """The same of Chinese texts, cut into characters."""
    import sacrebleu

    return float(sacrebleu.corpus_bleu([text for text, _ in written], _streams(written), tokenize="zh").score)


def chrf(written: Written) -> float:
    """chrF of all texts together, 0 to 100 (Popović 2015)."""
    import sacrebleu

    return float(sacrebleu.corpus_chrf([text for text, _ in written], _streams(written)).score)


def _streams(written: Written) -> list[list[str]]:
    """The first references, the second ones and so on, [most references, texts]; None where a text has no more."""
    most = max(len(references) for _, references in written)
    streams = [[refs[at] if at < len(refs) else None for _, refs in written] for at in range(most)]
    return cast("list[list[str]]", streams)  # sacrebleu passes over None, and its types do not say so
