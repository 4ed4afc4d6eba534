"""BIG-bench's package in little: the files that we read, in their form, with a row or two each."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from data.corpus import bigbench
from data.corpus.fetch import file_sha256


def squad(*questions: tuple[str, list[str]]) -> dict[str, Any]:
    asked = [
        {"question": question, "id": "1", "answers": [{"text": text, "answer_start": 0} for text in answers]}
        for question, answers in questions
    ]
    return {"version": "1.1", "data": [{"title": "Bowls", "paragraphs": [{"context": " Denver won. ", "qas": asked}]}]}


def examples(*rows: tuple[str, Any]) -> dict[str, Any]:
    return {"name": "x", "examples": [{"input": given, "target": target} for given, target in rows]}


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"input_text": text, "turn_id": number} for number, text in enumerate(texts, 1)]


PAIR = "Sentence 1: {}. \nAnswer1: {}. \nSentence 2: {}. \nAnswer2: {}."
FILES: dict[str, Any] = {
    "squad_shifts/squaddev_v1.1.json": squad(
        ("Who won?", ["Denver Broncos", "the Broncos"]), ("Where?", ["Paris", "France now"])
    ),
    **{
        f"squad_shifts/{name}_v1.0.json": squad((f"Who of {name}?", ["Ann"]))
        for name in ("new_wiki", "nyt", "reddit", "amazon_reviews")
    },
    "coqa_conversational_question_answering/coqa.test.json": {
        "data": [
            {
                "source": "race",
                "story": "Tom has a cat. ",
                "questions": turns("Who?", "A dog?"),
                "answers": turns("Tom", "no"),
                "additional_answers": {"0": turns("Tom does", "No."), "1": turns("Tom", "a cat")},
            }
        ]
    },
    "qa_wikidata/task.json": examples(("The genre of X is", ["comedy", "parody"]), ("The country of Y is", "Spain")),
    "strategyqa/task.json": {
        "examples": [
            {"input": "Is it cold?", "target_scores": {"Yes": 1, "No": 0}, "target": "Yes. It is."},
            {"input": "Is it hot?", "target_scores": {"Yes": 0, "No": 1}, "target": "No."},
        ]
    },
    "natural_instructions/subtask025_cosmosqa_incorrect_answer_generation/task.json": examples(
        ("Context: I ran . \nQuestion: Why ? \nCorrect Answer: For fun .", ["No .", "No .", "For fun .", "Never ."])
    ),
    "natural_instructions/subtask029_winogrande_full_object/task.json": examples(
        (
            "Context Word: rats.",
            [
                PAIR.format(
                    "Rats fled holes for fields as the _ were full", "holes", "Rats stay as the _ is dry", "hut"
                ),
                PAIR.format("The _ and the _ fell", "cup", "The _ fell", "mug"),  # two blanks
                PAIR.format("The _ fell", "cup", "The _ stood", "cup"),  # one answer
                "Sentence 1: PersonX ran as _ was late. \nSentence 2: PersonX ran as _ was early.",  # no answers
            ],
        )
    ),
    "natural_instructions/subtask042_qasc_incorrect_option_generation/task.json": examples(
        ("Fact: sun warms. \nQuestion: What warms? \nCorrect Answer: sun.", ["ice.", "fog.", "rain."]),
        ("Fact: ice cools. \nQuestion: What cools? \nCorrect Answer: ice.", ["sun.", "fire.", "oil."]),
    ),
    "gem/xsum/task.json": examples(("A long article.\nIt goes on.", "the cat sat")),
    "gem/wikilingua_en/task.json": examples(("Do this.", "Do it.")),
    "gem/wikilingua_multilingual/task.json": examples(("Tu das.", "Do it.")),
    "gem/webnlg_en/task.json": examples(("(A | is | B)", ["A is B.", "It is B, and A is it."])),
    "gem/webnlg_ru/task.json": examples(("(A | is | B)", ["Это Б."])),
}


def archive(folder: Path, files: Mapping[str, Any] = FILES) -> Path:
    """Write the package as a source archive; beside the files, as there, much that nobody asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "bigbench-1.0.0.tar.gz"
    with tarfile.open(path, "w:gz") as members:
        for name, content in {"setup.py": "raise SystemExit('nobody may run this')", **files}.items():
            raw = (content if isinstance(content, str) else json.dumps(content)).encode()
            place = "bigbench-1.0.0/" if name == "setup.py" else bigbench.INSIDE
            member = tarfile.TarInfo(place + name)
            member.size = len(raw)
            members.addfile(member, io.BytesIO(raw))
    return path


def cached(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a cache that holds the little package."""
    monkeypatch.setenv("STAGECRAFT_CACHE", str(folder))
    monkeypatch.setattr(bigbench, "SHA256", file_sha256(archive(folder)))
