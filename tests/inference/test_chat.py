"""A conversation: what the model reads, what is remembered, and what has to go."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.tokens import tokenisers
from inference import generate
from inference.chat import Conversation
from inference.decode.rows import Request, Row, Stopped
from inference.sampling import Sampling
from inference.writers import decode, encode
from support.errors import UserError
from tests.inference.conftest import WORDS, write_untrained

TEMPLATE = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDY = "the cat sat on the mat, the rat sat on the cat"


class Scripted:
    """Writes what it is told to, and notes what it reads."""

    slides, framed = True, False

    def __init__(self, context: int, *answers: str, template: str | None = None) -> None:
        self.tokeniser, self.context = tokenisers.train_bpe([WORDS] * 9, 300), context
        self.tokeniser.chat_template = template
        self.answers, self.read = iter(answers), list[Request]()

    def write(self, requests: list[Request], sampling: Sampling, stopped: Stopped) -> Iterator[Row]:
        (request,) = requests
        self.read.append(request)
        row = Row(request)
        for token in encode(self.tokeniser, next(self.answers))[: request.most]:
            row.tokens.append(token)
            if stopped(row):
                break
        yield row

    @property
    def seen(self) -> list[str]:
        return [self.tokeniser.decode(request.prompt) for request in self.read]


def say(conversation: Conversation, message: str, **how: Any) -> str:
    return conversation.answer(conversation.begin(message), **how)


def test_without_a_template_a_transcript_goes_on_and_ends_before_the_next_message() -> None:
    writer = Scripted(1000, " a mat\nUser: and now", " a rat, said the cat\n", " no")
    conversation = Conversation(writer, Sampling(), system="A talk of cats.")
    assert not conversation.template
    assert [say(conversation, text) for text in ("on what?", "with whom?")] == ["a mat", "a rat, said the cat"]
    conversation.restart()
    assert say(conversation, "what?") == "no"
    assert writer.seen == [
        "A talk of cats.\n\nUser: on what?\nAssistant:",
        "A talk of cats.\n\nUser: on what?\nAssistant: a mat\nUser: with whom?\nAssistant:",
        "A talk of cats.\n\nUser: what?\nAssistant:",
    ]


def test_with_a_template_the_model_reads_what_the_template_says() -> None:
    writer = Scripted(1000, " a mat\nUser: I", "a rat", template=TEMPLATE)
    conversation = Conversation(writer, Sampling(stop=("rat",)), system="cats")
    assert conversation.template
    assert [say(conversation, text) for text in ("on what?", "with whom?")] == ["a mat\nUser: I", "a"]
    first, second = writer.seen
    assert first == "<system>cats<|endoftext|><user>on what?<|endoftext|><assistant>"
    assert second == first + "a mat\nUser: I<|endoftext|><user>with whom?<|endoftext|><assistant>"
    said = [{"role": "system", "content": "cats"}, {"role": "user", "content": "on what?"}]
    theirs = writer.tokeniser.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    assert list(writer.read[0].prompt) == theirs
    assert writer.read[0].prompt.count(writer.tokeniser.eos_token_id) == 2  # the special token, not its letters


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_the_oldest_exchanges_go_where_the_context_is_full(template: str | None) -> None:
    writer = Scripted(240, *([f" {WORDY}"] * 9), template=template)
    conversation = Conversation(writer, Sampling(max_new_tokens=60), system="A talk.")
    dropped = []
    for number in range(9):
        turn = conversation.begin(f"{number} {WORDY}")
        dropped.append(turn.dropped)
        assert len(turn.request.prompt) + turn.request.most <= 240 and turn.request.most == 60
        assert len(turn.kept) + turn.dropped == len(conversation.exchanges)
        conversation.answer(turn)
    assert dropped[0] == 0 and set(dropped[-3:]) == {1}  # as one comes, one goes
    assert "A talk." in writer.seen[-1] and "8 the cat" in writer.seen[-1] and "0 the cat" not in writer.seen[-1]
    assert conversation.exchanges[-1] == (f"8 {WORDY}", WORDY)


def test_one_more_exchange_fits_to_the_token() -> None:
    def dropped(context: int) -> int:
        conversation = Conversation(Scripted(context, " a mat"), Sampling(max_new_tokens=10))
        say(conversation, "on what?")
        return conversation.begin("with whom?").dropped

    text = "User: on what?\nAssistant: a mat\nUser: with whom?\nAssistant:"
    needed = len(encode(Scripted(1).tokeniser, text)) + 10
    assert (dropped(needed), dropped(needed - 1)) == (0, 1)


def test_a_message_that_cannot_fit_is_refused_and_nothing_is_forgotten() -> None:
    conversation = Conversation(Scripted(100, " a mat"), Sampling())
    say(conversation, "on what?")
    with pytest.raises(UserError, match=r"the message makes \d+ tokens, but a context of 100 has room for 75 beside"):
        conversation.begin(WORDY * 9)
    assert conversation.exchanges == [("on what?", "a mat")]
    with pytest.raises(UserError, match="--max-new-tokens 100 leaves no room for a message in a context of 100"):
        Conversation(Scripted(100), Sampling(max_new_tokens=100))


def test_a_template_that_refuses_is_one_line() -> None:
    template = "{{ raise_exception('System role not supported') }}"
    conversation = Conversation(Scripted(100, template=template), Sampling())
    with pytest.raises(UserError, match="the chat template does not take this conversation: System role"):
        conversation.begin("a")


def test_an_answer_grows_and_may_be_ended() -> None:
    conversation = Conversation(Scripted(1000, f" {WORDY}"), Sampling())
    grown: list[str] = []
    answer = say(conversation, "what?", grown=grown.append, ended=lambda: len(grown) == 3)
    assert len(grown) == 3 and grown[-1].strip() == answer and all(WORDY.startswith(text.strip()) for text in grown)
    assert 0 < len(answer) < len(WORDY) and conversation.exchanges == [("what?", answer)]


def test_a_run_answers_as_it_goes_on_from_the_transcript(tmp_path: Path) -> None:
    write_untrained(tmp_path, "seq_length=256")
    writer, _ = generate.load(tmp_path)

    def talk(seed: int) -> list[str]:
        conversation = Conversation(writer, Sampling(seed=seed, max_new_tokens=12))
        return [say(conversation, text) for text in ("the cat", "the rat")]

    first, second = talk(3)
    text = "User: the cat\nAssistant:"
    sampling = Sampling(seed=3, max_new_tokens=12, stop=("\nUser:",))
    assert generate.generate(tmp_path, text, sampling)["samples"][0][len(text) :].strip() == first
    text += f" {first}\nUser: the rat\nAssistant:"
    assert generate.generate(tmp_path, text, sampling)["samples"][0][len(text) :].strip() == second
    assert talk(3) == [first, second] != talk(4)
    assert decode(writer.tokeniser, encode(writer.tokeniser, first)) == first
