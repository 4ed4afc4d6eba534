"""The loss of a model that was tuned, on the answers of examples, and which answers of pairs it finds likelier."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.corpus import corpora
from data.corpus.document import Problems, read_pieces
from data.corpus.examples import PAIRS
from data.corpus.sources import SPLITS
from data.samples import mixture
from data.samples.packing import Packed, PackedStream, sizes
from data.tokens import prepare
from data.tokens.encode import Tokens
from data.tokens.examples import Weights, fitting
from inference.measuring.texts import Words, check_tokeniser
from run.directory import read_data, read_recipe
from run.prepared import form_of
from support.errors import UserError

if TYPE_CHECKING:
    from inference.measuring.losses import Loss, Measured

ROWS = 64  # of a file are read together


@dataclass(frozen=True)
class Answers:
    """Samples of examples, `batch` at a time, and of their answers the size in bytes; the share beside others.

    `left_out` are rows of a file that are longer than the context.
    """

    name: str
    stream: "PackedStream | list[Packed]"
    num_tokens: int
    size: int
    share: int = 1
    left_out: int = 0

    def samples(self, batch: int) -> Iterator[Packed]:
        """All samples."""
        if isinstance(self.stream, list):
            yield from self.stream
            return
        for first in range(0, self.stream.samples_per_epoch, batch):
            indices = range(first, min(first + batch, self.stream.samples_per_epoch))
            yield self.stream.read([self.stream.of(index) for index in indices])


def answers_of(words: Words, data: str) -> list[Answers]:
    """The validation set of a run that was tuned, a split of a prepared folder, or rows that its template is for.

    Errors: `UserError` where there are none, or a row is no example.
    """
    context = read_recipe(words.path).model.seq_length
    if data == "validation":
        opened = mixture.reopened(read_data(words.path))
        return [_prepared(part.corpus, part.folder, data, context, part.share) for part in opened.parts]
    folder, split = Path(data).parent, Path(data).name
    if split in SPLITS and (folder / "manifest.json").exists():
        found = prepare.check(folder)
        if "answer_tokens" not in found[split]:
            raise UserError(f"{folder} holds texts, and {words.path} was tuned on answers; give rows")
        if (PAIRS in found["source"]["form"]) != bool(read_recipe(words.path).dpo.beta):
            raise UserError(f"of {folder} and {words.path} one is of pairs, and the other of answers; give other rows")
        check_tokeniser(words, folder)
        return [_prepared(data, folder, split, context)]
    return [_of_rows(words, data)]


def _prepared(name: str, folder: Path, split: str, context: int, share: int = 1) -> Answers:
    facts = prepare.manifest(folder)[split]
    if not facts["tokens"]:
        raise UserError(f"{folder} holds no {split} examples; give another split")
    stream = PackedStream(prepare.shards(folder, split), context, seed=0)
    return Answers(name, stream, facts["answer_tokens"], facts["answer_bytes"], share)


def _of_rows(words: Words, data: str) -> Answers:
    """Rows that the template of the run is for, each a sample of its own."""
    home, recipe = words.path / "tokeniser", read_recipe(words.path)
    form = form_of(replace(recipe, data=replace(recipe.data, tokeniser=str(home))))
    assert form
    problems, found, size = Problems(), list[Packed](), 0
    rules = (words.encode, home, words.tokeniser.eos_token_id, form, problems)
    for document in read_pieces(corpora.pieces(data, form), problems):
        kept, tokens, _, weights = fitting([document], *rules)
        if kept:
            found.append(_padded(tokens, weights, form.most_tokens))
            size += document.answer_bytes
    if not found:
        longer = f" that fit into the context: {problems.left_out:,} are longer" if problems.left_out else ""
        raise UserError(f"{data} holds no examples{longer}; give another file")
    together = [
        Packed(*map(np.concatenate, zip(*found[at : at + ROWS], strict=True))) for at in range(0, len(found), ROWS)
    ]
    answer_tokens = sum(int((each.weights > 0).sum()) for each in together)
    return Answers(data, together, answer_tokens, size, left_out=problems.left_out)


def _padded(tokens: Tokens, weights: Weights, width: int) -> Packed:
    more, each = (0, width - len(tokens)), sizes(weights)
    examples = np.repeat(np.arange(len(each) + 1), [*each, more[1]])
    return Packed(np.pad(tokens.astype(np.int64), more)[None], np.pad(weights, more)[None], examples[None])


def answer_loss(model: "Measured", answers: Answers) -> "Loss":
    """The mean loss over the tokens of answers. Errors: `UserError` as `losses.mean_loss`."""
    import torch

    from inference.measuring.losses import Loss, finite

    total = torch.zeros(2, dtype=torch.float64, device=model.device)
    for each in answers.samples(model.rows):
        model.check(answers.name, each.tokens)
        losses = model.losses(each.tokens[:, :-1], each.tokens[:, 1:], None, each.examples[:, :-1])
        counted = torch.from_numpy(each.weights[:, 1:].astype(np.float64)).to(model.device)
        total += torch.stack(((losses.double() * counted).sum(), counted.sum()))
    return Loss(finite(answers.name, float(total[0] / total[1])), int(total[1]))


def likelier(model: "Measured", answers: Answers) -> tuple[float, int]:
    """The share of pairs whose chosen answer is likelier to the model than the rejected one, and of how many pairs.

    Errors: `UserError` as `answer_loss`.
    """
    from inference.measuring.losses import finite

    right = pairs = 0
    for each in answers.samples(model.rows):
        model.check(answers.name, each.tokens)
        losses = model.losses(each.tokens[:, :-1], each.tokens[:, 1:], None, each.examples[:, :-1])
        weights, place = each.weights[:, 1:], (np.arange(len(losses))[:, None], each.examples[:, 1:] // 2)
        margins, asked = np.zeros(losses.shape), np.zeros(losses.shape, bool)
        np.add.at(margins, place, losses.double().cpu().numpy() * np.array([0, -1, 1])[weights])
        np.logical_or.at(asked, place, weights > 0)
        finite(answers.name, float(margins.sum()))
        right, pairs = right + int((margins[asked] > 0).sum()), pairs + int(asked.sum())
    return right / pairs, pairs
