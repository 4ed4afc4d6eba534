"""Texts on a terminal while they are written: the first that is not finished grows, those behind it wait."""

from inference.sampling import Sampling
from support.json_object import JsonObject

UNFINISHED = "\ufffd"  # what the first bytes of a character decode to


class Shown:
    """Prints texts in the order of their numbers, each with a heading where there are several."""

    def __init__(self, sampling: Sampling) -> None:
        self.seeds = list(sampling.seeds)
        self.held_back = max(map(len, sampling.stop), default=1) - 1  # may be the beginning of a stop string
        self.now, self.printed = 0, ""
        self.finished: dict[int, str] = {}

    def wants(self, number: int) -> bool:
        """Whether this is the text that grows."""
        return number == self.now

    def grown(self, number: int, text: str) -> None:
        """A text is so long by now."""
        if self.wants(number):
            self._print(text[: len(text) - self.held_back].rstrip(UNFINISHED))

    def done(self, number: int, text: str) -> None:
        """A text is finished."""
        self.finished[number] = text
        while self.now in self.finished:
            self._print(self.finished.pop(self.now))
            print(flush=True)
            self.now, self.printed = self.now + 1, ""

    def _print(self, text: str) -> None:
        if not self.printed and len(self.seeds) > 1:
            print(f"--- sample {self.now + 1} (seed {self.seeds[self.now]})")
        if text.startswith(self.printed):
            print(text[len(self.printed) :], end="", flush=True)
            self.printed = text


def show_ranked(values: JsonObject) -> None:
    """Print texts, the best first, and how much they differ."""
    for text, score, seed in zip(values["samples"], values["scores"], values["seeds"], strict=True):
        print(f"--- seed {seed}, score {score:.4f}\n{text}")
    names = ("distinct_1", "distinct_2", "distinct_3", "self_bleu")
    print("--- " + ", ".join(f"{name} {'-' if values[name] is None else f'{values[name]:.3f}'}" for name in names))
