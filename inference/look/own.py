"""Looking into a run's model: hooks read what its layers compute; the layers are those of training."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from data.samples.objectives import documents
from inference.look.measure import guesses
from inference.look.seen import Guesses, Seen, labels
from model.gpt import GPT, Attention

READ = 2**12  # tokens that are read in one pass where each is masked in turn
MASKED = "each token is guessed while it alone is masked; the attention is that of the text without a mask"
PREFIX = "each token is guessed from those before it; the attention is that of a text which is all prefix"

Keep = Callable[[Tensor], Tensor]


@torch.inference_mode()
def look(model: GPT, tokens: list[int], entries: int, end: int, separate: bool) -> Seen:
    """What a run's model does with tokens, at least one and at most its context.

    `entries` is the number of ids of the tokeniser. With `separate` the documents that `end` closes do not see each
    other. A masked model guesses each token while it alone is masked. A prefix model guesses each one from those before
    it; its attention is that of a text which is all prefix, as when it goes on from one.
    """
    objective, device = model.config.objective, next(model.parameters()).device
    ahead = 0 if objective == "masked" else 1
    tokens_1S = torch.tensor([tokens], device=device)
    apart_1S = torch.from_numpy(documents(tokens_1S.cpu().numpy(), end)).to(device) if separate else None
    attention: list[Tensor] = []
    with _hooked([block.attention for block in model.blocks], lambda *found: attention.append(weights(*found)[0])):
        model(tokens_1S, _prefix(model, len(tokens), device), apart_1S)
    read = _masked_in_turn if objective == "masked" else _read
    states = read(model, tokens_1S, apart_1S)
    return Seen(
        tokens=tokens,
        attention=torch.stack(attention).float().cpu().numpy(),
        lens=[_guessed(model, state_SH, entries, labels(tokens, ahead)) for state_SH in states],
        ahead=ahead,
        both_sides=objective != "causal",
        entries=entries,
        notes={"causal": (), "masked": (MASKED,), "prefix": (PREFIX,)}[objective],
    )


def weights(attention: Attention, x_BSH: Tensor, visible_BSS: Tensor | None = None, *_: object) -> Tensor:
    """How much each token (rows) looks at each one [B, N, S, S]: what the fused attention computes and keeps to itself.

    The arguments are those of its `forward`.
    """
    B, S, _H = x_BSH.shape
    qkv_BNS3D = attention.qkv(x_BSH).view(B, S, attention.num_heads, 3, attention.head_size).transpose(1, 2)
    q_BNSD, k_BNSD, _v = qkv_BNS3D.unbind(3)
    scores_BNSS = q_BNSD @ k_BNSD.transpose(-1, -2) / math.sqrt(attention.head_size)
    if visible_BSS is None and attention.causal:
        visible_BSS = torch.ones(1, S, S, dtype=torch.bool, device=x_BSH.device).tril()
    if visible_BSS is not None:
        scores_BNSS = scores_BNSS.masked_fill(~visible_BSS.unsqueeze(1), -torch.inf)
    return scores_BNSS.softmax(-1)


def _prefix(model: GPT, length: int, device: torch.device) -> Tensor | None:
    return torch.tensor([length], device=device) if model.config.objective == "prefix" else None


def _read(model: GPT, tokens_1S: Tensor, apart_1S: Tensor | None) -> list[Tensor]:
    """The residual stream [S, H] from the embedding and from each layer."""
    return _states(model, tokens_1S, apart_1S, itemgetter(0))


def _masked_in_turn(model: GPT, tokens_1S: Tensor, apart_1S: Tensor | None) -> list[Tensor]:
    """The same where each token alone is masked while its place is read."""
    S = tokens_1S.size(1)
    found: list[list[Tensor]] = []
    for some in torch.arange(S, device=tokens_1S.device).split(max(1, READ // S)):
        row = torch.arange(len(some), device=some.device)
        tokens_BS = tokens_1S.repeat(len(some), 1)
        tokens_BS[row, some] = model.config.vocab_size - 1  # the mask token, as in training
        apart_BS = None if apart_1S is None else apart_1S.expand(len(some), -1)
        found.append(_states(model, tokens_BS, apart_BS, itemgetter((row, some))))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _states(model: GPT, tokens_BS: Tensor, apart_BS: Tensor | None, keep: Keep) -> list[Tensor]:
    states: list[Tensor] = []
    with _hooked([model.position, *model.blocks], lambda module, *found: states.append(keep(found[-1])), result=True):
        model(tokens_BS, _prefix(model, 1, tokens_BS.device), apart_BS)
    return states


def _guessed(model: GPT, state_SH: Tensor, entries: int, wanted: list[int | None]) -> Guesses:
    return guesses(model.embed.logits(model.final_norm(state_SH))[:, :entries], wanted)


@contextmanager
def _hooked(modules: list[Any], note: Callable[..., None], result: bool = False) -> Iterator[None]:
    """Call `note` with each module and its arguments, and its `result` where that is asked, after it has computed."""

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        note(module, *arguments, *([output] if result else []))

    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
