"""Whose fault it is, said on purpose, and the exit statuses that a supervisor and a scheduler act on."""

from collections.abc import Sequence

from support.secrets import without_passwords

DONE = 0
CRASHED = 1  # anything that is not below: try again
WRONG_INPUT = 2  # never try again
WEIGHTS_LOST = 3  # never go on from the newest checkpoint
STOPPED = 75  # stopped on request and saved: queue it again
BAD_NODE = 76  # a node breaks or computes wrongly: queue it again without that node
GAVE_UP = 77  # crashed over and over: look at it before it is tried again


class UserError(ValueError):
    """What its user can mend, in one line: what is wrong, where, and the remedy.

    It is a `ValueError` so that pydantic wraps it where a field is checked. Any other error is a bug of ours and keeps
    its traceback.
    """

    status = WRONG_INPUT

    @property
    def lines(self) -> list[str]:
        """What is shown of it: one line, or one for each thing that is wrong."""
        return [str(self)]


class WeightsLostError(UserError):
    """Training went where no step leads back from."""

    status = WEIGHTS_LOST


class StoppedError(UserError):
    """A run was asked to stop; it saved first."""

    status = STOPPED


class CrashedError(UserError):
    """A process ended before its work did, and nobody knows why: try again."""

    status = CRASHED


class BadNodeError(UserError):
    """Ranks of one node fail over and over, or it computes wrongly: go on elsewhere."""

    status = BAD_NODE


class GaveUpError(UserError):
    """A run crashed several times and came no further. `more` are lines that tell each time."""

    status = GAVE_UP

    def __init__(self, line: str, more: Sequence[str] = ()) -> None:
        super().__init__(line)
        self.more = tuple(more)

    @property
    def lines(self) -> list[str]:
        """What is shown of it."""
        return [str(self), *self.more]


def in_lines(*messages: str) -> str:
    """Errors as they are shown: a line each, without passwords."""
    return "\n".join(f"error: {' '.join(without_passwords(message).split())}" for message in messages)


def before_traceback(error: Exception, is_rank: bool) -> str:
    """The line before a traceback, of an error that is no wrong input.

    A rank whose peer dies loses its connection: gloo's words say so, and torch's errors of its own for NCCL's.
    """
    if is_rank and (type(error).__name__.startswith("Dist") or "gloo" in str(error)):
        return (
            "another rank has ended or does not answer; where stagecraft launched the ranks, the fault in events.jsonl "
            "says which one; below is where this rank waited for it"
        )
    doubt = ", unless another rank was killed" if is_rank else ""
    return f"this is a bug of Stagecraft{doubt}; please report it with the lines below"
