"""Rows as examples to tune on: what stands in front of an answer, and the answer, which alone is learned."""

import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeGuard

from data.corpus.chat import ASSISTANT, SYSTEM, USER, Message, templated, transcript
from data.corpus.document import (
    JSON_TYPES,
    KIND,
    MISSING,
    SKIP,
    SPLIT_FIELD,
    Document,
    Problems,
    fault,
    split_said,
    value,
)
from support.errors import UserError

AUTO = "auto"  # a row says by its fields what it is
PROMPT, COMPLETION, MESSAGES = "prompt", "completion", "messages"  # such fields; the names are those of trl
CHOSEN, REJECTED = SIDES = "chosen", "rejected"  # of a pair
PAIRS = "pairs"  # ends the identity of their form
Parts = list[tuple[str, bool]]


class Unfit(Exception):  # noqa: N818
    """A row that is no example: a key of `KIND`, and words that continue "line 3 …"."""


@dataclass(frozen=True)
class Form:
    """How rows become examples of at most `most_tokens` tokens; longer ones are left out, or an error. It is pickled.

    `template` is a text with places, `Review: {text}\\nSentiment: {label}`. What is filled into the last place is the
    answer, with what stands behind it. Or it is "auto": rows with `messages`, or with `prompt` and `completion`.
    Messages are put as `chat` says, the chat template of the tokeniser, whose special tokens are `special`; without
    one they are a transcript. With `whole` they are texts to read, as they stand there, and no examples. With `pairs`
    rows are pairs of answers instead: `prompt`, `chosen` and `rejected`, texts or messages; `chosen` and `rejected` may
    begin with the messages of the prompt. Errors: `UserError` for a template that has no place, shows its answer, or
    cannot be read.
    """

    template: str
    most_tokens: int
    chat: str = ""
    special: tuple[tuple[str, str], ...] = ()
    skip_longer: bool = False
    whole: bool = False
    pairs: bool = False

    def __post_init__(self) -> None:
        if self.template != AUTO:
            places(self.template)

    def identity(self) -> list[object]:
        """All that its examples depend on, as JSON."""
        alone = [self.template, self.most_tokens, self.chat, [*map(list, self.special)], self.skip_longer]
        return [*alone, *([PAIRS] if self.pairs else []), *(["whole"] if self.whole else [])]

    def document(
        self, name: str, record: object, split: str, problems: Problems, where: Callable[[], str]
    ) -> Iterator[Document]:
        """The example of a row that was read from `where`, of a file of the split; none where the row is reported."""
        said = value(record, SPLIT_FIELD)
        try:
            if not isinstance(record, dict):
                raise Unfit("field", f"is no object; write one a line, {SKIP}")
            parts, against = self._pair(record) if self.pairs else (self._parts(record), [])
            talks = _is_list(record[CHOSEN]) if self.pairs else self.template == AUTO and MESSAGES in record
            if wrong := fault("", said, SPLIT_FIELD):
                raise Unfit(*wrong)
        except Unfit as wrong:
            kind, what = wrong.args
            problems.report(KIND[kind], f"{where()} {what}")
        else:
            text, special = "".join(part for part, _ in (*parts, *against)), talks and bool(self.chat)
            learned = () if self.whole else tuple(parts)
            yield Document(name, text, split_said(split, said), learned, special, tuple(against), where)

    def _parts(self, record: dict[str, object]) -> Parts:
        if self.template != AUTO:
            return _filled(self.template, record)
        if MESSAGES in record:
            return self._conversation(_messages(record[MESSAGES]))
        if PROMPT in record and COMPLETION in record:
            return _apart(_text(record, PROMPT), _text(record, COMPLETION), COMPLETION)
        if CHOSEN in record:
            raise Unfit("field", f'has "{CHOSEN}", as pairs of answers have; set dpo.beta, or rename its fields')
        known = f'"{MESSAGES}", or "{PROMPT}" and "{COMPLETION}"'
        raise Unfit(
            "field", f"has neither {known} (it has {_fields(record)}); give data.template, or rename its fields"
        )

    def _pair(self, record: dict[str, object]) -> tuple[Parts, Parts]:
        """The chosen side and the rejected one, each with the prompt that they share."""
        talks = _is_list(record.get(CHOSEN))
        for name in SIDES if talks else (PROMPT, *SIDES):
            if name not in record:
                raise Unfit(
                    "field", f'has no field "{name}" (it has {_fields(record)}); give pairs, or leave dpo.beta out'
                )
        chosen, rejected = (
            self._conversation(_messages(record[name], name, record.get(PROMPT, [])))
            if talks
            else _apart(_text(record, PROMPT), _text(record, name), name)
            for name in SIDES
        )
        if chosen == rejected:
            raise Unfit("pair", f'has the same in "{CHOSEN}" and "{REJECTED}"; give another, {SKIP}')
        return chosen, rejected

    def _conversation(self, messages: list[Message]) -> Parts:
        """Every answer is learned up to its end, by which the model knows that it is over."""
        parts: Parts = []
        done = ""
        for number, message in enumerate(messages):
            if message["role"] != ASSISTANT:
                continue
            asked, answered = self._put(messages[: number + 1])
            if not (asked.startswith(done) and answered.startswith(asked)):
                raise Unfit("messages", f"is put in another way once it is answered by the chat template, {SKIP}")
            if not answered[len(asked) :].strip():
                raise Unfit("messages", f"is put without its answer by the chat template, {SKIP}")
            parts += [(asked[len(done) :], False), (answered[len(asked) :], True)]
            done = answered
        parts[-1] = parts[-1][0].rstrip() if self.chat else parts[-1][0], True  # the end of the document ends it
        return parts

    def _put(self, messages: list[Message]) -> tuple[str, str]:
        """What a model goes on from to say the last of the messages, and what stands there when it has said it."""
        if not self.chat:
            asked = transcript(messages[:-1])
            return asked, f"{asked} {messages[-1]['content']}\n"
        try:
            asked, answered = (
                templated(given, self.chat, dict(self.special), asks)
                for given, asks in ((messages[:-1], True), (messages, False))
            )
        except UserError as error:
            raise Unfit("messages", f"does not go: {error}; mend it, {SKIP}") from None
        return asked, answered


def places(template: str) -> list[tuple[str, str | None]]:
    """The template as texts, each with the field behind it; None behind the last. Errors: `UserError`."""
    try:
        found = [(text, name, how, kind) for text, name, how, kind in string.Formatter().parse(template)]
    except ValueError as error:
        raise UserError(f"data.template: {error}; write {{{{ and }}}} for braces that are no place") from None
    names = [name for _, name, _, _ in found if name is not None]
    if not names:
        raise UserError(f"data.template {template!r} has no place such as {{text}}; write one for each field of a row")
    if any(not name or how or kind for _, name, how, kind in found if name is not None):
        raise UserError(
            f"data.template {template!r}: a place is the name of a field and nothing else, such as {{text}}"
        )
    if names[-1] in names[:-1]:
        raise UserError(
            f"data.template {template!r} shows the answer {{{names[-1]}}} before it is asked for; write it last alone"
        )
    return [(text, name) for text, name, _, _ in found]


def _filled(template: str, record: dict[str, object]) -> Parts:
    texts = places(template)
    last = max(number for number, (_, name) in enumerate(texts) if name is not None)
    filled = [(text, "" if name is None else _text(record, name)) for text, name in texts]
    prompt = "".join(chain.from_iterable(filled[:last])) + filled[last][0]
    answer, behind = filled[last][1], "".join(text for text, _ in filled[last + 1 :])
    name = texts[last][1]
    assert name
    return _apart(prompt, answer, name, behind)


def _apart(prompt: str, answer: str, name: str, behind: str = "") -> Parts:
    """Spaces at the end of a prompt belong to the answer: words carry the space before them into their tokens."""
    if not answer.strip():
        raise Unfit("answer", f'has an empty answer in "{name}"; fill it in, {SKIP}')
    kept = prompt.rstrip(" ")
    return [(kept, False), (prompt[len(kept) :] + answer + behind, True)]


def _text(record: dict[str, object], name: str) -> str:
    """The text of a field; a number as JSON writes it."""
    found = value(record, name, MISSING)
    if found is MISSING:
        raise Unfit("field", f'has no field "{name}" (it has {_fields(record)}); mend it, or change data.template')
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        return str(found)
    if wrong := fault(found, None, name):
        raise Unfit(*wrong)
    return str(found)


def _is_list(given: object) -> TypeGuard[Sequence[object]]:
    return isinstance(given, Sequence) and not isinstance(given, str)


def _messages(given: object, name: str = MESSAGES, prompt: object = ()) -> list[Message]:
    """Messages of known roles, the last one an answer: those of the field `name`, behind those of a prompt."""
    found = list[tuple[str, int, object]]()
    for field, each in ((PROMPT, prompt), (name, given)):
        if not _is_list(each) or (not each and field == name):
            what = JSON_TYPES.get(type(each), "an object" if isinstance(each, dict) else "a text")
            raise Unfit("messages", f'has {"no messages" if each == [] else what} in "{field}"; give a list, {SKIP}')
        found += [(field, number, message) for number, message in enumerate(each)]
    messages = [_message(each, field, number, front=not at) for at, (field, number, each) in enumerate(found)]
    if messages[-1]["role"] != ASSISTANT:
        raise Unfit(
            "answer", f'has no answer to its last message in "{name}"; end it with one of role {ASSISTANT}, {SKIP}'
        )
    return messages


def _message(given: object, field: str, number: int, front: bool) -> Message:
    role = given.get("role") if isinstance(given, dict) else None
    if role not in (SYSTEM, USER, ASSISTANT) or (role == SYSTEM and not front):
        roles = f"{SYSTEM} (in front), {USER} or {ASSISTANT}"
        raise Unfit("messages", f'has message {number + 1} of role {role!r} in "{field}"; give {roles}, {SKIP}')
    assert isinstance(given, dict)
    content = given.get("content", MISSING)
    place = f"{field}[{number}].content"
    if wrong := fault(None if content is MISSING else content, None, place):
        raise Unfit(*wrong)
    if role == ASSISTANT and not content.strip():
        raise Unfit("answer", f'has an empty answer in "{place}"; fill it in, {SKIP}')
    # What stands around an answer is no part of it: a conversation with a model keeps it so too.
    return {"role": role, "content": content.strip() if role == ASSISTANT else content}


def _fields(record: dict[str, object]) -> str:
    return ", ".join(map(str, record)) or "none"
