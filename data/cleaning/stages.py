"""The stages by which a corpus can be cleaned, their order, and how they are written, such as "near:0.8"."""

import difflib
from dataclasses import dataclass
from functools import partial

from data.cleaning import duplicates, filters
from support.errors import UserError
from support.nearest import hint

STAGES = {
    "unicode": "repair mojibake, entities, control characters",
    "language:en+de": "keep documents in these languages",
    "c4": "keep lines that are sentences, drop pages with code or filler (C4's rules)",
    "gopher-quality": "drop by length, word length, symbols, bullets, stop words (Gopher's rules)",
    "gopher-repetition": "drop by repeated lines, paragraphs and n-grams (Gopher's rules)",
    "exact": "drop documents equal to an earlier one",
    "near:0.8": "drop documents whose word 5-grams are so similar to an earlier one's",
    "decontaminate:evals.jsonl": "cut out what shares a 13-gram with these evaluation texts",
}  # in the order in which they run; a stage that takes an argument has an example of it
ORDER = tuple(stage.partition(":")[0] for stage in STAGES)
TAKES_ARGUMENT = tuple(stage.partition(":")[0] for stage in STAGES if ":" in stage)
DEFAULT = ("unicode", "gopher-quality", "gopher-repetition", "exact", "near")


@dataclass(frozen=True)
class Settings:
    """What to clean and how: stages such as "unicode" or "language:en+de". "default" stands for those of `DEFAULT`.

    After `__init__`, `stages` are those that run, in their order. `skip` says what happens to input that cannot be
    read: with True it is skipped and counted, with False it is an error. With None it is an error too, but an existing
    folder that lacks such input is taken. Errors: `UserError` for an unknown stage or argument.
    """

    corpus: str
    stages: tuple[str, ...] = ("default",)
    skip: bool | None = False

    def __post_init__(self) -> None:
        chosen = dict.fromkeys(DEFAULT, "") if "default" in self.stages else {}
        given = [stage.partition(":")[::2] for stage in self.stages if stage != "default"]
        for stage, argument in given:
            _check_stage(stage, argument)
            if [name for name, _ in given].count(stage) > 1:
                raise UserError(f"cleaning stage {stage} is given twice; give it once")
            chosen[stage] = argument
        if not chosen:
            raise UserError(f"no cleaning stage is given; choose from default, {', '.join(STAGES)}")
        ordered = tuple(f"{stage}:{chosen[stage]}".rstrip(":") for stage in ORDER if stage in chosen)
        object.__setattr__(self, "stages", ordered)

    @property
    def arguments(self) -> dict[str, str]:
        """The stages that run, in their order, each with its argument, or "" where it has none."""
        return dict(stage.partition(":")[::2] for stage in self.stages)

    @property
    def threshold(self) -> float:
        """Jaccard similarity from which documents are near duplicates."""
        return float(self.arguments["near"] or duplicates.THRESHOLD)

    @property
    def against(self) -> str:
        """The corpus of evaluation texts, "" where there is none."""
        return self.arguments.get("decontaminate", "")

    def filters(self) -> dict[str, filters.Filter]:
        """The stages that look at one document at a time."""
        known: dict[str, filters.Filter] = {
            "unicode": filters.repair,
            "language": partial(filters.language, wanted=frozenset(self.arguments.get("language", "").split("+"))),
            "c4": filters.c4,
            "gopher-quality": filters.gopher_quality,
            "gopher-repetition": filters.gopher_repetition,
        }
        return {stage: known[stage] for stage in self.arguments if stage in known}


def _check_stage(stage: str, argument: str) -> None:
    if stage not in ORDER:
        raise UserError(f"there is no cleaning stage {stage!r}; {hint(stage, ('default', *ORDER), most=1)}")
    if argument and stage not in TAKES_ARGUMENT:
        raise UserError(f"cleaning stage {stage} takes no argument; write {stage}, not {stage}:{argument}")
    if stage == "language":
        known = filters.languages()
        unknown = [code for code in argument.split("+") if code not in known]
        if unknown:
            close = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
            raise UserError(
                f"cleaning stage language: {unknown[0]!r} is no code of a language that the model knows; write for "
                f"example language:{close[0] if close else 'en+de'}"
            )
    if stage == "near" and argument:
        least = duplicates.LEAST_THRESHOLD
        try:
            within = least <= float(argument) <= 1
        except ValueError:
            within = False
        if not within:
            raise UserError(f"cleaning stage near:{argument}: write a similarity from {least} to 1, as in near:0.8")
    if stage == "decontaminate" and not argument:
        raise UserError("cleaning stage decontaminate needs evaluation texts: write decontaminate:evals.jsonl")
