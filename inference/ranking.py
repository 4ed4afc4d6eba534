"""Which of several texts is the best, and how much they differ."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from inference.sampling import NOT_FINITE
from inference.scorer import FORM, scorer_of
from support.errors import UserError
from support.json_object import JsonObject
from support.nearest import hint

if TYPE_CHECKING:
    from inference.decode.rows import Row
    from inference.writers import Writer

LIKELIHOOD, MUTUAL = "likelihood", "mutual"
WAYS = (LIKELIHOOD, MUTUAL)
LONGEST = 4  # words of an n-gram that BLEU counts
NONE_FOUND = 0.1  # what BLEU counts where no n-gram is found, as otherwise one length without a match makes it 0


def known(by: str | None) -> str | None:
    """What ranks texts, checked: None, `likelihood`, `mutual`, or a scorer's name with the digest of its code.

    Errors: `UserError`.
    """
    if by is None or by in WAYS:
        return by
    if ":" not in by:
        raise UserError(f"--rank-by {by} is no way to rank; {hint(by, WAYS)}, or {FORM}")
    return f"{by} {scorer_of(by).digest}"


def scores(
    writer: "Writer", rows: "Sequence[Row]", by: str, texts: Sequence[tuple[str, str]], speaks: bool = True
) -> list[float]:
    """The score of each text; the highest is the best. Collective.

    `likelihood` is the mean log-probability behind the prompt, in nats a token, the text's end included. `mutual` is
    that minus the same at the beginning of a document: how much the prompt makes the text likelier (Li et al. 2016,
    arXiv:1510.03055). A scorer gets `texts`, prompts and what stands behind them, on the rank that speaks; others
    find 0. Errors: `UserError` where a score is no finite number.
    """
    if by not in WAYS:
        return [scorer_of(by)(*text) if speaks else 0.0 for text in texts]
    given = [each.total for each in writer.log_odds([(list(row.request.prompt), row.new) for row in rows])]
    if by == MUTUAL:
        alone = writer.log_odds([([writer.tokeniser.eos_token_id], row.new) for row in rows])
        given = [one - other.total for one, other in zip(given, alone, strict=True)]
    if not all(map(math.isfinite, given)):
        raise UserError(NOT_FINITE)
    return [score / len(row.new) for score, row in zip(given, rows, strict=True)]


def diversity(texts: Sequence[str]) -> JsonObject:
    """How much texts differ: distinct n-grams of words, and each text's BLEU against the others."""
    words = [text.split() for text in texts]
    return {**{f"distinct_{n}": distinct(words, n) for n in (1, 2, 3)}, "self_bleu": self_bleu(words)}


def distinct(texts: Sequence[Sequence[str]], n: int) -> float | None:
    """Different n-grams over all n-grams of the texts, None where there is none (Li et al. 2016)."""
    counts: Counter[tuple[str, ...]] = sum((_ngrams(text, n) for text in texts), Counter())
    return len(counts) / counts.total() if counts else None


def self_bleu(texts: Sequence[Sequence[str]]) -> float | None:
    """The mean BLEU-4 of each text against the others, None for one text (Zhu et al. 2018, arXiv:1802.01886)."""
    if len(texts) < 2:
        return None
    return sum(bleu(text, [*texts[:at], *texts[at + 1 :]]) for at, text in enumerate(texts)) / len(texts)


def bleu(text: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of a text (Papineni et al. 2002), smoothed where no n-gram of a length is found (Chen and Cherry 2014,
    method 1); 0 where it shares no word."""
    logs = 0.0
    for n in range(1, LONGEST + 1):
        mine, theirs = _ngrams(text, n), Counter[tuple[str, ...]]()
        for reference in references:
            theirs |= _ngrams(reference, n)
        found = (mine & theirs).total()
        if n == 1 and not found:
            return 0.0
        logs += math.log((found or NONE_FOUND) / max(1, mine.total())) / LONGEST
    nearest = min((abs(len(each) - len(text)), len(each)) for each in references)[1]
    return math.exp(logs + min(0.0, 1 - nearest / len(text)))


def _ngrams(words: Sequence[str], n: int) -> "Counter[tuple[str, ...]]":
    return Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
