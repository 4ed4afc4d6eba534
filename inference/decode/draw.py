"""Which token comes next: the rules in their order, then the likeliest token or one by chance."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from inference.decode import rules
from inference.sampling import NOT_FINITE, Sampling
from support.errors import UserError

TINY = np.finfo(np.float32).tiny


def chance(seed: int, prompt: Sequence[int]) -> np.random.Generator:
    """The random numbers of one text: a function of the seed and the prompt alone, whatever is decoded beside it."""
    digest = hashlib.sha256(f"{seed}/{','.join(map(str, prompt))}".encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


@dataclass(frozen=True)
class Odds:
    """What is drawn from: which ids may be, and how `sampling` changes their scores.

    `silent` is added to the scores [E] of the ids below the tokeniser's `entries`: minus infinity for those that it
    cannot read. `bias` has the tokens of each biased text.
    """

    sampling: Sampling
    silent: Tensor
    bias: dict[tuple[int, ...], float]
    end: int

    def scores(self, logits_BV: Tensor, histories: Sequence[rules.History]) -> Tensor:
        """The scores [B, E] after all rules."""
        how = self.sampling
        scores_BE = logits_BV[:, : len(self.silent)].float() + self.silent
        if self.bias:
            scores_BE = rules.add_bias(scores_BE, histories, self.bias)
        if how.repetition_penalty != 1:
            scores_BE = rules.penalise_repetition(scores_BE, histories, how.repetition_penalty)
        if how.no_repeat_ngram:
            scores_BE = rules.forbid_ngrams(scores_BE, histories, how.no_repeat_ngram)
        if how.greedy or how.beams > 1:
            return scores_BE
        scores_BE = scores_BE / how.temperature
        if how.top_k:
            scores_BE = rules.keep_top_k(scores_BE, how.top_k)
        if how.top_p < 1:
            scores_BE = rules.keep_top_p(scores_BE, how.top_p)
        return rules.keep_min_p(scores_BE, how.min_p) if how.min_p else scores_BE

    def draw(
        self, logits_BV: Tensor, histories: Sequence[rules.History], chances: Sequence[np.random.Generator]
    ) -> Tensor:
        """The next id of each row [B]; the end of a text where every id is forbidden.

        An id wins by its score plus noise of its own (Gumbel's: Maddison et al. 2014, arXiv:1411.0030). Another batch
        or layout moves a score in its last bits. That changes a winner only where two are as close as that, while the
        running sum of the odds would move for all ids at once. Errors: `UserError` for scores that are no numbers.
        """
        scores_BE = self.scores(logits_BV, histories)
        if not self.sampling.greedy:
            size = scores_BE.size(1)
            waits = np.stack([chance.standard_exponential(size, np.float32) for chance in chances])
            noise_BE = torch.from_numpy(np.maximum(waits, TINY, out=waits)).log_()
            scores_BE = scores_BE - noise_BE.to(scores_BE.device)
        best_B = scores_BE.amax(-1)
        if not bool((best_B < torch.inf).all()):
            raise UserError(NOT_FINITE)
        # numpy finds the place of the largest ten times as fast as torch does on a CPU.
        at_cpu = scores_BE.device.type == "cpu"
        id_B = torch.from_numpy(scores_BE.numpy().argmax(1)) if at_cpu else scores_BE.argmax(-1)
        return id_B.masked_fill(best_B == -torch.inf, self.end)
