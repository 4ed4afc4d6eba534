"""Our decoder as lm-eval's model. Ranks that hold the same weights share the requests and exchange the answers."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch.distributed as dist
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from inference.decode.decoder import Scored
from inference.decode.rows import Request, Row
from inference.sampling import NOT_FINITE, Sampling
from inference.writers import Text, Writer, decode, encode
from support.errors import UserError
from support.json_object import JsonObject
from support.terminal import Say

NEW_TOKENS = 256  # where a task does not say how many, as lm-eval has it
# What tasks call a field of `Sampling`: where a text is drawn, and always.
SAMPLED = {name: name for name in ("temperature", "top_k", "top_p", "min_p")}
ALWAYS = {"repetition_penalty": "repetition_penalty", "no_repeat_ngram_size": "no_repeat_ngram", "num_beams": "beams"}
PART_TOKENS = 2**16  # of the requests that each rank answers between two looks up: some seconds
SHOWN = 40  # letters of a text in an error
T = TypeVar("T")


class _RefusedError(Exception):
    """A request that cannot be answered: its number, and why."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number = number


class TaskModel(TemplateLM):
    """A `Writer` that answers lm-eval's requests as its own `HFLM` does with the export.

    Each of the ranks that hold the same weights answers every n-th request. All ranks call the same methods with the
    same requests, and get all answers. `say` hears how many there are so far. `look_up` is called by all ranks
    together, before and behind each part of the work; what it raises ends that.
    """

    def __init__(
        self, writer: Writer, say: Say = lambda line: None, look_up: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.writer, self.names, self.say, self.look_up = writer, writer.tokeniser, say, look_up

    @property
    def eot_token_id(self) -> int:
        return int(self.names.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands in front of a text without a beginning."""
        first = self.names.bos_token_id
        return self.eot_token_id if first is None else int(first)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text; in a task's text the name of a special token is that token."""
        framed = self.writer.framed if add_special_tokens is None else add_special_tokens
        if add_special_tokens is None and string.startswith(self.names.decode([self.prefix_token_id])):
            framed = False
        return encode(self.names, string, special=True, framed=framed)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """The log-probability of each candidate, and whether it is what greedy decoding writes.

        Errors: `UserError` with the task and the document of a candidate that has no token, or too many.
        """
        try:
            for number, request in enumerate(requests):
                if not "".join(request.args):
                    raise _RefusedError(number, "neither its text nor its candidate has a letter; give it one")
            found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
            return found
        except _RefusedError as error:
            raise UserError(f"{where(requests[error.number])}: {error}") from None

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        texts = [self._fitted(number, *request) for number, request in enumerate(requests)]
        return [(each.total, each.greedy) for each in self._scored(texts)]

    def _fitted(self, number: int, words: tuple[str, str], before: list[int], after: list[int]) -> Text:
        """A text that the model can read: of a long one the last tokens, as `HFLM` does."""
        most = self.writer.context
        shown = f"candidate {words[1][:SHOWN]!r}"
        if not after:
            raise _RefusedError(number, f"{shown} has no token of its own; make it longer")
        if len(after) > most:
            raise _RefusedError(
                number, f"{shown} has {len(after)} tokens, more than the model's context of {most}; make it shorter"
            )
        before = before or [self.prefix_token_id]  # of blanks alone, which belong to the candidate, nothing is left
        return (before + after)[-(most + 1) : -len(after)], after

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The log-probability of all of each text, in windows that do not overlap."""
        texts: list[Text] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.writer.context, context_len=1
            )
            texts += map(make_disjoint_window, windows)
            owners += [number] * (len(texts) - len(owners))
        totals = [0.0] * len(requests)
        for number, scored in zip(owners, self._scored(texts), strict=True):
            totals[number] += scored.total
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """What is written behind each prompt, up to the first of its stop texts.

        Errors: `UserError` for settings of a task that we do not know, and where the new tokens leave no room.
        """
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        result = [""] * len(requests)
        for numbers in groups.values():
            sampling = sampling_of(requests[numbers[0]], self.writer.context)
            wanted = [self._request(number, requests[number].args[0], sampling) for number in numbers]
            sizes = [len(request.prompt) + request.most for request in wanted]
            found = self._shared(wanted, sizes, partial(self._written, sampling))
            for number, text in zip(numbers, found, strict=True):
                result[number] = text
        return result

    def _request(self, number: int, prompt: str, sampling: Sampling) -> Request:
        most = sampling.max_new_tokens
        assert most is not None
        tokens = self.tok_encode(prompt) or [self.prefix_token_id]
        return Request(number, tuple(tokens[-(self.writer.context - most) :]), number, most)

    def _written(self, sampling: Sampling, wanted: Sequence[Request]) -> list[str]:
        def text(row: Row) -> str:
            return decode(self.names, row.new)

        def stopped(row: Row) -> bool:
            return bool(sampling.stop) and len(sampling.cut(new := text(row))) < len(new)

        rows = self.writer.write(list(wanted), sampling, stopped)
        texts = {row.request.number: sampling.cut(text(row)) for row in rows}
        return [texts[request.number] for request in wanted]

    def _scored(self, texts: list[Text]) -> list[Scored]:
        """Long texts first, so that each rank gets as many of each length. Errors: `UserError` for scores of a model
        that has none: lm-eval would take the first of them for the best."""
        order = sorted(range(len(texts)), key=lambda at: -sum(map(len, texts[at])))
        sizes = [sum(map(len, texts[at])) for at in order]
        found = self._shared([texts[at] for at in order], sizes, lambda mine: self.writer.log_odds(list(mine)))
        if not all(math.isfinite(each.total) for each in found):
            raise UserError(NOT_FINITE)
        places = sorted(range(len(order)), key=order.__getitem__)
        return [found[at] for at in places]

    def _shared(
        self, asked: Sequence[Any], sizes: Sequence[int], answers: Callable[[Sequence[Any]], list[T]]
    ) -> list[T]:
        """The answers to all that is asked, with the tokens of each: this rank finds its share, and gets the others'.

        All ranks take as many parts.
        """
        rank, size = self.writer.shares.rank, self.writer.shares.size
        found = list[T]()
        self.look_up()
        for part in _parts(sizes, size * PART_TOKENS, size):
            mine = asked[part][rank::size]
            found += answers(mine) if mine else []
            self.say(f"{part.stop:,} of {len(asked):,} answers")
            self.look_up()
        if size == 1:
            return found
        parts: list[Any] = [None] * size
        dist.all_gather_object(parts, found, group=self.writer.shares.group)
        return [parts[at % size][at // size] for at in range(len(asked))]


def _parts(sizes: Sequence[int], most: int, times: int) -> Iterator[slice]:
    """Cut what has these sizes into parts of about `most`, each a multiple of `times` in number but for the last."""
    first = total = 0
    for at, size in enumerate(sizes, 1):
        total += size
        if at == len(sizes) or (total >= most and at % times == 0):
            yield slice(first, at)
            first, total = at, 0


class Checked(TaskModel):
    """The same without the work: it finds what the model will refuse, before anything is trained."""

    def _scored(self, texts: list[Text]) -> list[Scored]:
        return [Scored(0.0, False)] * len(texts)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        for request in requests:
            sampling_of(request, self.writer.context)
        return [""] * len(requests)


def where(request: Instance) -> str:
    """Which task and document a request belongs to."""
    return f"task {request.task_name}, document {request.doc_id}"


def sampling_of(request: Instance, context: int) -> Sampling:
    """How a task wants its texts written. Errors: `UserError` for what we do not know, and where nothing would fit."""
    given: JsonObject = normalize_gen_kwargs(request.args[1], NEW_TOKENS)
    stop = handle_stop_sequences(given.pop("until", None), eos=None)
    most, drawn = given.pop("max_gen_toks"), given.pop("do_sample")
    task = f"task {request.task_name}: generation_kwargs"
    if unknown := sorted(given.keys() - SAMPLED.keys() - ALWAYS.keys()):
        known = ", ".join(("until", "max_gen_toks", "do_sample", *SAMPLED, *ALWAYS))
        raise UserError(f"{task} has {unknown[0]}, which is not known here; leave it out, there are {known}")
    if not 1 <= most < context:
        raise UserError(
            f"{task}: {most} new tokens leave no room for a prompt in the model's context of {context}; set "
            f"max_gen_toks to 1 to {context - 1}"
        )
    named = {**ALWAYS, **(SAMPLED if drawn else {})}
    values: JsonObject = {"temperature": 1.0} if drawn else {}  # transformers' default
    values |= {ours: given[theirs] for theirs, ours in named.items() if given.get(theirs) is not None}
    try:
        return Sampling(greedy=not drawn, stop=tuple(filter(None, stop)), max_new_tokens=most, **values)
    except UserError as error:
        raise UserError(f"{task}: {str(error).removeprefix('--')}") from None
