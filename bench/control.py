"""Do named prefixes move the sentiment of what a model writes?

`python -m bench.control --control RUN --classifier RUN` has a model that `recipes/tune_control.py` tuned go on from the
first words of held-out reviews, once behind each prefix. Two judges say which reviews are positive: a model that
`recipes/tune_sentiment.py` tuned, and naive Bayes of words. It prints the shares of positive ones and their difference,
and the same of the held-out reviews themselves, which is what could be reached.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from bench.taught import naive_bayes, rows
from commands import cli
from data.taught.pypi import ASKED, SENTIMENTS, STEERED
from inference.generate import load, requests, stops, text_of
from inference.named import HELP, model_of
from inference.sampling import Sampling
from inference.writers import Writer
from support.errors import UserError
from support.json_object import JsonObject

WORDS = 3  # of a review that are given
DRAWN = Sampling(max_new_tokens=40, stop=("\n",))  # as `generate` draws by default
Judge = Callable[[Sequence[str]], list[bool]]  # whether each review is positive


def held_out(count: int) -> tuple[list[str], list[bool]]:
    """The first reviews for testing that are longer than what is given of them, and whether each is positive.

    Errors: `UserError` where there are not so many, or so few that all are of one kind.
    """
    found = [(row["completion"].strip(), bool(row["gold"])) for row in rows("tune_control", "test")]
    reviews, gold = zip(*[(review, kind) for review, kind in found if len(review.split()) > WORDS], strict=True)
    least = 1 + max(gold.index(True), gold.index(False))
    if not least <= count <= len(reviews):
        raise UserError(f"--starts {count} is out of range; give {least} to {len(reviews)}")
    return [*reviews[:count]], [*gold[:count]]


def written(writer: Writer, starts: Sequence[str], prefix: str) -> list[str]:
    """A review that goes on from each start behind a prefix. What is drawn follows from prompt and number."""
    wanted = []
    for number, start in enumerate(starts):
        wanted += requests(writer, f"{prefix} {start}", replace(DRAWN, seed=number), special=False, first=number)
    done = {row.request.number: text_of(writer, row)[1] for row in writer.write(wanted, DRAWN, stops(writer, DRAWN))}
    return [start + DRAWN.finished(done[number]) for number, start in enumerate(starts)]


def likelier(writer: Writer, reviews: Sequence[str]) -> list[bool]:
    """Whether a tuned model finds "positive" likelier than "negative", as the task `tune_sentiment` asks it."""
    from lm_eval.api.instance import Instance

    from inference.tasks.model import TaskModel

    asked = [
        Instance("loglikelihood", {}, (ASKED.format(review), each), 0) for review in reviews for each in SENTIMENTS
    ]
    odds = [total for total, _ in TaskModel(writer).loglikelihood(asked)]
    return [positive > negative for negative, positive in zip(odds[::2], odds[1::2], strict=True)]


def shares(positive: Sequence[bool], negative: Sequence[bool]) -> JsonObject:
    """The share that is judged positive of reviews that should be and of those that should not, what lies between, and
    its standard error."""
    p, q = sum(positive) / len(positive), sum(negative) / len(negative)
    error = math.sqrt(p * (1 - p) / len(positive) + q * (1 - q) / len(negative))
    return {"positive_when_positive": p, "positive_when_negative": q, "moved": p - q, "error": error}


def measure(control: Writer, classifier: Writer, count: int) -> list[JsonObject]:
    """What both judges say of written and of held-out reviews."""
    reviews, gold = held_out(count)
    starts = [" ".join(review.split()[:WORDS]) for review in reviews]
    negative, positive = (written(control, starts, prefix) for prefix in STEERED)
    judges: dict[str, Judge] = {"tuned model": partial(likelier, classifier), "naive Bayes of words": naive_bayes(1)}
    found: list[JsonObject] = []
    for name, judge in judges.items():
        found.append({"reviews": "written", "judge": name, **shares(judge(positive), judge(negative))})
        told = judge(reviews)
        parted = [[each for each, kind in zip(told, gold, strict=True) if kind is wanted] for wanted in (True, False)]
        found.append({"reviews": "held out", "judge": name, **shares(*parted)})
    return found


def main() -> None:
    parser = cli.Parser("Write reviews behind named prefixes, and print how far these move their sentiment.")
    parser.add_argument("--control", required=True, metavar="RUN", help=f"what writes: {HELP}")
    parser.add_argument("--classifier", required=True, metavar="RUN", help="what judges: the same")
    parser.add_argument("--starts", type=int, default=200, help="held-out reviews that are gone on from")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    args = parser.parse_args()

    def job() -> list[JsonObject]:
        held_out(args.starts)  # before anything is loaded
        found = measure(load(model_of(args.control))[0], load(model_of(args.classifier))[0], args.starts)
        for each in () if args.json else found:
            numbers = "  ".join(f"{key} {value:.3f}" for key, value in each.items() if isinstance(value, float))
            print(f"{each['reviews']:9s} {each['judge']:21s} {numbers}")
        return found

    cli.run_job(job, args.json)


if __name__ == "__main__":
    main()
