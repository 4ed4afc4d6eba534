"""A conversation with a model: by its tokeniser's chat template, or as a plain transcript where there is none."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data.corpus.chat import ASSISTANT, SAID, SYSTEM, USER, Message, templated, transcript
from inference.sampling import DEFAULT_NEW_TOKENS, Sampling, is_text
from support.errors import UserError

if TYPE_CHECKING:
    from inference.decode.rows import Request, Row
    from inference.writers import Writer

Exchange = tuple[str, str]  # what was said, and the answer


@dataclass(frozen=True)
class Turn:
    """A message that is to be answered: the exchanges before it that are kept, and how many had to go."""

    message: str
    kept: tuple[Exchange, ...]
    dropped: int
    request: "Request"


class Conversation:
    """What was said so far, and how it is put to a model. `template` says whether its tokeniser has a template.

    Without one the model goes on from `User: …`, `Assistant: …`, and an answer ends before the next `User:`.
    Errors: `UserError` where no message fits beside an answer of as many tokens as asked for, or `system` is no UTF-8.
    """

    def __init__(self, writer: "Writer", sampling: Sampling, system: str = "") -> None:
        if not is_text(system):
            raise UserError("--system is not UTF-8; convert it")
        self.writer, self.system = writer, system
        self.template = bool(writer.tokeniser.chat_template)
        stop = sampling.stop if self.template else (*sampling.stop, f"\n{SAID[USER]}")
        self.sampling = dataclasses.replace(sampling, stop=stop)
        self.exchanges: list[Exchange] = []
        # What is kept free for an answer. A short context is not to be all question, nor all answer.
        self.room = sampling.max_new_tokens or max(1, min(DEFAULT_NEW_TOKENS, writer.context // 4))
        if self.room >= writer.context:
            raise UserError(
                f"--max-new-tokens {self.room} leaves no room for a message in a context of {writer.context}; give less"
            )

    def restart(self) -> None:
        """Forget what was said."""
        self.exchanges = []

    def begin(self, message: str) -> Turn:
        """Make room for a message and its answer: the oldest exchanges go.

        Errors: `UserError` where it is too long even alone, or the template does not take it.
        """
        from inference.decode.rows import Request

        kept, most = list(self.exchanges), self.writer.context - self.room
        while len(tokens := self._tokens(kept, message)) > most:
            if not kept:
                raise UserError(
                    f"the message makes {len(tokens)} tokens, but a context of {self.writer.context} has room for "
                    f"{most} beside an answer of {self.room}; write a shorter one, or give --max-new-tokens"
                )
            kept.pop(0)
        new = self.sampling.max_new_tokens or min(DEFAULT_NEW_TOKENS, self.writer.context - len(tokens))
        request = Request(0, tuple(tokens), self.sampling.seed, new)
        return Turn(message, tuple(kept), len(self.exchanges) - len(kept), request)

    def answer(
        self, turn: Turn, grown: Callable[[str], None] = lambda text: None, ended: Callable[[], bool] = lambda: False
    ) -> str:
        """Write the answer, tidied where that is asked for, and remember it; it ends where `ended` says so. `grown`
        gets what there is of it after each token, and may get what turns out to be the beginning of a stop string."""
        from inference.generate import text_of

        def stopped(row: "Row") -> bool:
            new = text_of(self.writer, row)[1]
            cut = self.sampling.cut(new)
            grown(cut.lstrip())
            return len(cut) < len(new) or ended()

        (row,) = self.writer.write([turn.request], self.sampling, stopped)
        answer = self.sampling.finished(text_of(self.writer, row)[1]).strip()
        self.exchanges = [*turn.kept, (turn.message, answer)]
        return answer

    def _tokens(self, kept: list[Exchange], message: str) -> list[int]:
        """What the model reads. Names of special tokens are these tokens in a template, and plain text without one."""
        said = self._messages(kept, message)
        found: list[int] = self.writer.tokeniser(
            self._templated(said) if self.template else transcript(said),
            add_special_tokens=self.writer.framed and not self.template,  # a template writes them itself
            split_special_tokens=not self.template,
            verbose=False,  # it would warn of a text that is longer than the context, and then made shorter
        )["input_ids"]
        return found

    def _messages(self, kept: list[Exchange], message: str) -> list[Message]:
        found = [{"role": SYSTEM, "content": self.system}] if self.system else []
        for one, other in kept:
            found += [{"role": USER, "content": one}, {"role": ASSISTANT, "content": other}]
        return [*found, {"role": USER, "content": message}]

    def _templated(self, messages: list[Message]) -> str:
        tokeniser = self.writer.tokeniser
        return templated(messages, tokeniser.get_chat_template(), tokeniser.special_tokens_map, asks=True)
