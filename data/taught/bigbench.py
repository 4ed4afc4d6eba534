"""Tasks out of BIG-bench's package: reading, facts, common sense, dialogue, stories, and its tasks with instructions.

They are asked for in the words of the `bb_` tasks. Who trains on them must not score `bb_` tasks of the same source as
if they were new to the model: BIG-bench asks that its data stay out of what models are trained on.
"""

import json
import re
from collections.abc import Iterator
from itertools import takewhile

from data.corpus.bigbench import examples, rows_file
from data.taught.pypi import conversation
from data.taught.rows import Row, written
from support.json_object import JsonObject

INSTRUCTIONS = "natural_instructions"
# What the tasks with instructions are made of. Common sense and stories have recipes of their own, so none of it is
# trained on here: these tasks are all new to the model.
HELD_OUT = {"cosmosqa": "test", "qasc": "test", "winogrande": "test", "ropes": "test", "essential": "validation"}
FACT = re.compile(r"(The .+?) of (.+) is")


def _given(task: str) -> Iterator[JsonObject]:
    with open(rows_file(task), encoding="utf-8") as stream:
        yield from map(json.loads, stream)


def read() -> Iterator[Row]:
    """Questions on paragraphs of Wikipedia, each to be answered in its words; articles stay together."""
    for row in _given("bb_squad"):
        question = f"Title: {row['title']}\nBackground: {row['context']}\nQ: {row['question']}\nA:"
        yield written(question, f" {row['answers'][0]}", row["title"], answers=row["answers"])


def facts() -> Iterator[Row]:
    """Facts to be written on; what is said of one thing stays together."""
    for row in _given("bb_wikidata"):
        subject = relation(row["input"])[1]
        yield written(row["input"], f" {row['answers'][0]}", subject, answers=row["answers"])


def relation(text: str) -> tuple[str, str]:
    """The relation and the subject of a fact: "The country of X is", or the last three words and all before them."""
    found = FACT.fullmatch(text)
    words = text.split()
    return (found[1], found[2]) if found else (" ".join(words[-3:]), " ".join(words[:-3]) or text)


def choose(task: str) -> Iterator[Row]:
    """Questions with several answers, behind what they are about; what is about the same stays together."""
    for row in _given(task):
        choices, gold = [f" {choice}" for choice in row["choices"]], row["gold"]
        prompt = f"{row['context']}\nQ: {row['question']}\nA:"
        yield written(prompt, choices[gold], row["context"], choices=choices, gold=gold)


def winogrande() -> Iterator[Row]:
    """Sentences with a blank, to be filled with one of two things; sentences on the same two stay together."""
    for row in _given("bb_winogrande"):
        both = takewhile(lambda pair: pair[0] == pair[1], zip(*row["choices"], strict=False))
        start = "".join(letter for letter, _ in both).rpartition(" ")[0] + " "
        choices = [f" {choice.removeprefix(start)}" for choice in row["choices"]]
        sentence = f"{start}_{row['rest']}"
        prompt = f"{sentence}\nThe blank is:"
        group = " ".join(sorted(choices)).lower()
        yield written(prompt, choices[row["gold"]], group, sentence, choices=choices, gold=row["gold"])


def coqa() -> Iterator[Row]:
    """Conversations on a passage, a row each."""
    stories: dict[str, list[str]] = {}
    for row in _given("bb_coqa"):
        asked = row["question"] if row["context"] in stories else f"{row['context']}\n\n{row['question']}"
        stories.setdefault(row["context"], []).extend((asked, row["answers"][0]))
    for story, turns in stories.items():
        yield conversation(turns, story)


def shortened(task: str, ask: str) -> Iterator[Row]:
    """Articles to be said in short."""
    for row in _given(task):
        answers = row["answers"]
        yield written(f"{row['input']}\n{ask}:", f" {answers[0]}", row["input"], row["input"], answers=answers)


def story() -> Iterator[Row]:
    """Stories to be written to what a textbook says; what is told of the same text stays together."""
    for name, task in examples(INSTRUCTIONS):
        if "ropes_story_generation" in name:
            for row in task["examples"]:
                given = row["input"].removeprefix("Background Paragraph:").strip()
                yield written(f"{given}\nA story of it:", f" {row['target'][0].strip()}", given)


def instructions() -> Iterator[Row]:
    """Tasks that are told in words; the split goes by what a task was made of."""
    for name, task in examples(INSTRUCTIONS):
        split = next((split for source, split in HELD_OUT.items() if f"_{source}" in name), "train")
        told = " ".join(task["task_prefix"].split())
        for number, row in enumerate(task["examples"]):
            target = row["target"] if isinstance(row["target"], list) else [row["target"]]
            answers = [text for text in map(str.strip, target) if text]  # one row has an empty one
            if answers:
                prompt = f"{told}\n\n{row['input'].strip()}\nAnswer:"
                content = {"prompt": prompt, "completion": f" {answers[0]}", "answers": answers, "task": name}
                yield Row(content, f"{name} {number}", f"{name} {row['input']}", split)
