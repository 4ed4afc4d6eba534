"""Beam search: the likeliest text that is found with several of them in view."""

import torch
from torch import Tensor

from inference.decode.decoder import Decoder
from inference.decode.draw import Odds
from inference.decode.rows import Request, Row


def search(decoder: Decoder, odds: Odds, request: Request, beams: int) -> Row:
    """The best text that goes on from a prompt, by the mean log-probability of its tokens, its end included.

    In each step the likeliest `beams` unfinished texts stay. It ends where none of them is as good as the worst of
    `beams` finished ones, as transformers' search does. Prompt and new tokens fit into the decoder's columns.
    """
    row, texts, totals = Row(request), [list(request.prompt)], [0.0]
    logits_BV = decoder.read([list(request.prompt)])
    finished: list[tuple[float, list[int]]] = []
    for new in range(1, request.most + 1):
        open_: list[tuple[float, int, int]] = []
        for place, (total, beam, token) in enumerate(_likeliest(decoder, odds, texts, totals, logits_BV, 2 * beams)):
            if token != odds.end and new < request.most:
                open_.append((total, beam, token))
            elif place < beams:
                finished.append((total / new, [*texts[beam], token]))
        finished = sorted(finished, key=lambda one: -one[0])[:beams]
        open_ = open_[:beams]
        if not open_ or (len(finished) == beams and open_[0][0] / new <= finished[-1][0]):
            break
        texts = [[*texts[beam], token] for _, beam, token in open_]
        totals = [total for total, _, _ in open_]
        decoder.reorder([beam for _, beam, _ in open_])
        logits_BV = decoder.step([token for _, _, token in open_])
    row.tokens = finished[0][1] if finished else [*texts[0], odds.end]
    return row


def _likeliest(
    decoder: Decoder, odds: Odds, texts: list[list[int]], totals: list[float], logits_BV: Tensor | None, count: int
) -> list[tuple[float, int, int]]:
    """The likeliest ways to go on, the best first: log-probability of all new tokens, beam, token; on all ranks."""
    entries = len(odds.silent)
    best_2K = torch.zeros(2, min(count, len(texts) * entries), dtype=torch.float64, device=decoder.device)
    if logits_BV is not None:
        log_odds_BE = odds.scores(logits_BV[:, :entries].float().log_softmax(-1), texts)
        total_B1 = torch.tensor(totals, device=decoder.device).unsqueeze(1)
        found = (log_odds_BE + total_B1).flatten().topk(best_2K.size(1))
        best_2K[0], best_2K[1] = found.values, found.indices
    values, places = decoder.line.from_last(best_2K).tolist()
    ways = [(value, *divmod(int(place), entries)) for value, place in zip(values, places, strict=True)]
    return [way for way in ways if way[0] > -torch.inf]
