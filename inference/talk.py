"""A conversation on a terminal, or with lines from a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress

from data.corpus.chat import ASSISTANT, SAID, USER
from inference.chat import Conversation
from inference.shown import Shown
from support.errors import UserError
from support.json_object import JsonObject
from support.signals import on_ctrl_c

PROMPT = "> "
HELP = """\
/new    forget what was said
/quit   end; so do Ctrl-D and, here, Ctrl-C
/help   this list
Ctrl-C stops an answer. A message that begins with / gets a space in front."""


class Talk:
    """Reads messages from standard input and prints the answers.

    On a terminal a wrong message is said and the next one is read. In a pipe each line is a message, and a wrong one is
    an error. `quiet` prints no answer; `turns` has all of them, as docs/json.md says.
    """

    def __init__(self, conversation: Conversation, quiet: bool = False) -> None:
        self.conversation, self.quiet, self.number = conversation, quiet, 1
        self.terminal = not quiet and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
        self.turns: list[JsonObject] = []

    def welcome(self, who: str) -> None:
        """Say whom one talks to, and in which form."""
        if self.terminal:
            print(f"{who}, context {self.conversation.writer.context:,} tokens; see /help")
        if not self.conversation.template:
            self._note(
                f"no chat template: it goes on from a transcript ({SAID[USER]} …, {SAID[ASSISTANT]} …), as a base "
                "model can"
            )

    def run(self) -> None:
        """Talk until the input ends, or /quit."""
        commands: dict[str, Callable[[], None]] = {"/new": self._restart, "/help": lambda: self._note(HELP)}
        for line in self._typed() if self.terminal else _piped():
            word = line.rstrip()
            if word == "/quit":
                return
            try:
                if word in commands:
                    commands[word]()
                elif word.startswith("/"):
                    raise UserError(f"there is no {word.split()[0]}; /help lists what there is, and a space in front "
                                    "makes it a message")  # fmt: skip
                elif word.strip():
                    self._turn(word.strip())
            except UserError as error:
                if not self.terminal:
                    raise
                print(f"error: {error}")

    def _restart(self) -> None:
        self.conversation.restart()
        self.number += 1
        if self.terminal:
            print("forgotten")

    def _turn(self, message: str) -> None:
        """Answer a message. Ctrl-C on a terminal ends the answer after the token in hand, a second one the command."""
        turn = self.conversation.begin(message)
        if turn.dropped:
            self._note(f"the context is full: the oldest turns are forgotten ({turn.dropped})")
        shown = None if self.quiet else Shown(self.conversation.sampling)
        asked: list[bool] = []

        def stop() -> None:
            if asked:
                raise KeyboardInterrupt
            asked.append(True)

        with on_ctrl_c(stop) if self.terminal else nullcontext():
            grows = shown if not self.conversation.sampling.tidy else None  # else it is shown when it is tidied
            grown = (lambda text: grows.grown(0, text)) if grows else (lambda text: None)
            answer = self.conversation.answer(turn, grown, lambda: bool(asked))
        if shown:
            shown.done(0, answer)
        self.turns.append(
            {"conversation": self.number, "user": message, "assistant": answer, "forgotten": turn.dropped}
        )

    def _note(self, text: str) -> None:
        """What is no answer: in a pipe it goes beside them."""
        print(text, file=sys.stdout if self.terminal else sys.stderr, flush=True)

    def _typed(self) -> Iterator[str]:
        with suppress(ImportError):  # not every build of Python has it
            import readline  # noqa: F401  # input() then edits its line and knows the ones before
        while True:
            try:
                with on_ctrl_c(_end):
                    line = input(PROMPT)
            except UnicodeDecodeError:
                print("error: this is not UTF-8; set the terminal to it")
                continue
            except EOFError:
                print()
                return
            yield line


def _end() -> None:
    raise EOFError


def _piped() -> Iterator[str]:
    """The lines of standard input. Errors: `UserError` for one that is not UTF-8."""
    for number, line in enumerate(sys.stdin.buffer if sys.stdin else (), 1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"line {number} of standard input is not UTF-8 at byte {error.start}; convert it") from None
