"""Rows as examples: what stands before an answer, what is learned, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.corpus import corpora
from data.corpus.document import Document, Problems
from data.corpus.examples import AUTO, Form
from support.errors import UserError

REVIEW = "Review: {text}\nSentiment: {label}\n"
CHAT = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "Me. "},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "So."},
]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, form: Form, skip: bool = False) -> list[Document]:
    problems = Problems(skip)
    return [document for piece in corpora.pieces(str(path), form) for document in piece.documents(problems)]


def parts_of(path: Path, form: Form, row: object) -> tuple[tuple[str, bool], ...]:
    (document,) = read(write(path / "rows.jsonl", row), form)
    assert document.text == "".join(text for text, _ in document.parts)
    return document.parts


@pytest.mark.parametrize(
    ("template", "row", "parts"),
    [
        # The space before an answer belongs to it, as it does to the tokens of words; a line end does not.
        (REVIEW, {"text": "Fine.", "label": "good"}, (("Review: Fine.\nSentiment:", False), (" good\n", True))),
        (REVIEW, {"text": "Fine.", "label": 1}, (("Review: Fine.\nSentiment:", False), (" 1\n", True))),
        ("{a}\n{b}", {"a": " x ", "b": "y"}, ((" x \n", False), ("y", True))),
        ("{a.b}", {"a": {"b": "y"}}, (("", False), ("y", True))),
        ("{{{a}}} = {b}!", {"a": "x", "b": "y"}, (("{x} =", False), (" y!", True))),
        (AUTO, {"prompt": "1 + 1 =", "completion": " 2"}, (("1 + 1 =", False), (" 2", True))),
        (AUTO, {"prompt": "1 + 1 = ", "completion": "2"}, (("1 + 1 =", False), (" 2", True))),
    ],
)
def test_a_row_becomes_a_prompt_and_an_answer(template: str, row: Any, parts: Any, tmp_path: Path) -> None:
    assert parts_of(tmp_path, Form(template, 100), row) == parts


def test_every_answer_of_a_conversation_is_learned_up_to_its_end(tmp_path: Path) -> None:
    assert parts_of(tmp_path, Form(AUTO, 100), {"messages": TALK}) == (
        ("Be brief.\n\nUser: Who?\nAssistant:", False),
        (" Me.\n", True),
        ("User: Why?\nAssistant:", False),
        (" So.\n", True),
    )
    special = (("eos_token", "<end>"),)
    assert parts_of(tmp_path, Form(AUTO, 100, CHAT, special), {"messages": TALK}) == (
        ("<system>Be brief.<end>\n<user>Who?<end>\n<assistant>", False),
        ("Me.<end>\n", True),
        ("<user>Why?<end>\n<assistant>", False),
        ("So.<end>", True),
    )


@pytest.mark.parametrize(
    ("chat", "words"),
    [
        (
            "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
            "put without its answ",
        ),
        ("{{ messages[-1].content }}", "put in another way once it is answered"),
        ("{% for m in", "the chat template does not take this conversation"),
    ],
)
def test_a_chat_template_that_gives_no_example_is_one_line(chat: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as error:
        parts_of(tmp_path, Form(AUTO, 100, chat), {"messages": TALK})
    assert "line 1 " in str(error.value) and "\n" not in str(error.value)


def test_a_table_and_named_splits_are_read_as_lines_are(tmp_path: Path) -> None:
    rows = [{"text": f"t{n}", "label": "good", "split": ("train", "val")[n % 2]} for n in range(300)]
    lines = read(write(tmp_path / "rows.jsonl", *rows), Form(REVIEW, 100))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    table = read(tmp_path / "rows.parquet", Form(REVIEW, 100))
    assert [(each.parts, each.split) for each in table] == [(each.parts, each.split) for each in lines]
    assert [each.split for each in table[:3]] == ["train", "validation", "train"]
    assert table[2].where and table[2].where() == f"corpus file {tmp_path / 'rows.parquet'} row 3"


@pytest.mark.parametrize(
    ("template", "row", "words"),
    [
        (REVIEW, {"text": "x"}, 'has no field "label" (it has text); mend it, or change data.template'),
        (REVIEW, {"text": None, "label": "x"}, 'has null in "text", not a text'),
        (REVIEW, {"text": "x", "label": " "}, 'has an empty answer in "label"; fill it in, or go on with --on-error'),
        (AUTO, {"prompt": "x", "completion": ""}, 'has an empty answer in "completion"'),
        (AUTO, {"text": "x"}, 'has neither "messages", or "prompt" and "completion" (it has text); give data.template'),
        (AUTO, {"messages": []}, 'has no messages in "messages"'),
        (AUTO, {"messages": "x"}, 'has a text in "messages"; give a list'),
        (
            AUTO,
            {"messages": TALK[:2]},
            'has no answer to its last message in "messages"; end it with one of role assistant',
        ),
        (AUTO, {"messages": [TALK[1], {"role": "robot", "content": ""}]}, "has message 2 of role 'robot'"),
        (
            AUTO,
            {"messages": [TALK[1], TALK[0], TALK[2]]},
            "has message 2 of role 'system' in \"messages\"; give system (in front)",
        ),
        (AUTO, {"messages": [TALK[1], {"role": "assistant"}]}, 'has null in "messages[1].content", not a text'),
        (AUTO, {"messages": [TALK[1], {**TALK[2], "content": "\n"}]}, 'has an empty answer in "messages[1].content"'),
        (REVIEW, {"text": "x", "label": "y", "split": "odd"}, 'has "odd" in "split", none of train'),
        (REVIEW, ["x"], "is no object"),
    ],
)
def test_a_row_that_is_no_example_is_named_by_file_and_line(
    template: str, row: object, words: str, tmp_path: Path
) -> None:
    good = {"text": "x", "label": "y", "prompt": "x", "completion": "y"}
    path = write(tmp_path / "rows.jsonl", good, good, row, good)
    with pytest.raises(UserError) as error:
        read(path, Form(template, 100))
    assert str(error.value).startswith(f"corpus file {path} line 3 {words}") and "\n" not in str(error.value)
    assert len(read(path, Form(template, 100), skip=True)) == 3


def said(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


PAIRS = Form(AUTO, 100, pairs=True)
FIRST = ("Be brief.\n\nUser: Who?\nAssistant:", False)


def test_a_pair_has_two_sides_with_one_prompt(tmp_path: Path) -> None:
    (text,) = read(write(tmp_path / "a.jsonl", {"prompt": "1 + 1 = ", "chosen": "2", "rejected": "3"}), PAIRS)
    assert (text.parts, text.against) == ((("1 + 1 =", False), (" 2", True)), (("1 + 1 =", False), (" 3", True)))
    assert text.text == "1 + 1 = 21 + 1 = 3" and text.answer_bytes == 4 and not text.special
    talk = {"prompt": TALK[:2], "chosen": said("Me."), "rejected": said("You. ")}
    implied = {"chosen": TALK[:2] + said("Me."), "rejected": TALK[:2] + said("You.")}
    found = read(write(tmp_path / "b.jsonl", talk, implied), PAIRS)
    assert [each.parts for each in found] == [(FIRST, (" Me.\n", True))] * 2
    assert [each.against for each in found] == [(FIRST, (" You.\n", True))] * 2
    (put,) = read(tmp_path / "b.jsonl", Form(AUTO, 100, CHAT, (("eos_token", "<end>"),), pairs=True))[:1]
    assert put.special and put.against[-1] == ("You.<end>", True)
    assert PAIRS.identity() == [*Form(AUTO, 100).identity(), "pairs"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "x", "chosen": "a", "rejected": "a"}, 'has the same in "chosen" and "rejected"; give another, or'),
        ({"prompt": "x", "chosen": "a", "rejected": " "}, 'has an empty answer in "rejected"; fill it in'),
        ({"prompt": "x", "chosen": "", "rejected": "a"}, 'has an empty answer in "chosen"; fill it in'),
        ({"prompt": "x", "chosen": "a"}, 'has no field "rejected" (it has prompt, chosen); give pairs, or leave dpo'),
        ({"chosen": "a", "rejected": "b"}, 'has no field "prompt" (it has chosen, rejected)'),
        ({"prompt": "x", "completion": "a"}, 'has no field "chosen" (it has prompt, completion); give pairs, or leave'),
        ({"prompt": "x", "chosen": "a", "rejected": None}, 'has null in "rejected", not a text'),
        ({"prompt": "x", "chosen": said("a"), "rejected": said("b")}, 'has a text in "prompt"; give a list'),
        ({"prompt": TALK[:2], "chosen": said("a"), "rejected": "b"}, 'has a text in "rejected"; give a list'),
        ({"prompt": TALK[:2], "chosen": "a", "rejected": "b"}, 'has a list in "prompt", not a text'),
        ({"chosen": said("a"), "rejected": []}, 'has no messages in "rejected"'),
        ({"prompt": TALK[:2], "chosen": said("a"), "rejected": said(" ")}, 'has an empty answer in "rejected[0].cont'),
        (
            {"prompt": TALK[:2], "chosen": TALK[:1], "rejected": said("b")},
            "has message 1 of role 'system' in \"chosen\"",
        ),
        ({"prompt": TALK[:2], "chosen": TALK[1:2], "rejected": said("b")}, 'has no answer to its last message in "cho'),
        ({"prompt": TALK[:2], "chosen": said("a"), "rejected": said(" a")}, 'has the same in "chosen" and "rejected"'),
    ],
)
def test_a_row_that_is_no_pair_is_named_by_file_and_line(row: object, words: str, tmp_path: Path) -> None:
    good = {"prompt": "x", "chosen": "a", "rejected": "b"}
    path = write(tmp_path / "rows.jsonl", good, row, good)
    with pytest.raises(UserError) as error:
        read(path, PAIRS)
    assert str(error.value).startswith(f"corpus file {path} line 2 {words}") and "\n" not in str(error.value)
    assert len(read(path, PAIRS, skip=True)) == 2


def test_a_pair_is_no_example(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "x", "chosen": "a", "rejected": "b"})
    with pytest.raises(UserError, match=r'line 1 has "chosen", as pairs of answers have; set dpo.beta, or rename'):
        read(path, Form(AUTO, 100))
    assert read(path, Form("{prompt}{chosen}", 100))[0].parts[1] == ("a", True)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("Say it.", "'Say it.' has no place such as {text}"),
        ("{a} {b} {a}", r"'{a} {b} {a}' shows the answer {a} before it is asked for; write it last alone"),
        ("{text!r}", "a place is the name of a field and nothing else"),
        ("{text:>3}", "a place is the name of a field and nothing else"),
        ("{}", "a place is the name of a field and nothing else"),
        ("{text", "write {{ and }} for braces that are no place"),
    ],
)
def test_a_template_that_is_none_is_refused(template: str, words: str) -> None:
    with pytest.raises(UserError, match=r"data\.template") as error:
        Form(template, 100)
    assert words in str(error.value)


def test_texts_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("Once upon a time.")
    with pytest.raises(UserError, match=r"plain.txt is a text, and a template is filled from rows; give JSON lines"):
        read(tmp_path / "plain.txt", Form(REVIEW, 100))
    with pytest.raises(UserError, match="corpus shakespeare has texts and no rows"):
        corpora.pieces("shakespeare", Form(REVIEW, 100))
    with pytest.raises(UserError, match="leave ::body out"):
        corpora.pieces(f"{tmp_path / 'plain.txt'}::body", Form(REVIEW, 100))
