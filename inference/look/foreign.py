"""Looking into a model of transformers, an export or any causal one, with its eager attention."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inference.look.measure import guesses
from inference.look.seen import Guesses, Seen, labels
from support.errors import UserError

NO_LENS = "this model's head cannot be asked for the guesses of its layers: there is no logit lens"


@torch.inference_mode()
def look(model: PreTrainedModel, tokens: list[int], entries: int) -> Seen:
    """What a causal model does with tokens, at least one and at most its context; see `Seen`.

    Errors: `UserError` where a layer has no attention that can be shown.
    """
    model.set_attn_implementation("eager")
    tail = _Tail(model)
    inputs = torch.tensor([tokens], device=model.device)
    output = model(
        inputs,
        attention_mask=torch.ones_like(inputs),
        use_cache=False,
        output_attentions=True,
        output_hidden_states=True,
    )
    tail.leave()
    maps = getattr(output, "attentions", None) or ()
    layers = model.config.get_text_config().num_hidden_layers
    if len(maps) != layers or any(each is None or each.shape[-2:] != (len(tokens),) * 2 for each in maps):
        raise UserError(
            f"{model.config.model_type} has layers without attention over all tokens: they cannot be shown; give "
            "another model"
        )
    wanted = labels(tokens, 1)

    def guessed(scores_SV: Tensor) -> Guesses:
        return guesses(scores_SV[:, :entries], wanted)

    own_SV = output.logits[0]
    before = output.hidden_states[:layers]
    asked = tail.explains(own_SV)
    inner = [guessed(tail.scores(state_BSH)[0]) for state_BSH in before] if asked else []
    return Seen(
        tokens=tokens,
        attention=torch.cat([each.float() for each in maps]).cpu().numpy(),
        lens=[*inner, guessed(own_SV)],
        ahead=1,
        both_sides=False,
        entries=entries,
        notes=() if asked else (NO_LENS,),
    )


class _Tail:
    """What a model does behind its last layer: the norm, which hooks find as it is used, and the head."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.head: Any = model.get_output_embeddings()
        self.norm: Any = None
        self.normed: Tensor | None = None
        norms = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
        self.handles = [module.register_forward_hook(self._note) for module in norms]

    def _note(self, module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        self.norm, self.normed = module, output

    def leave(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()

    def scores(self, state_BSH: Tensor) -> Tensor:
        """The scores that the head gives to the residual stream of a layer."""
        return self.head(self.norm(state_BSH))

    def explains(self, scores_SV: Tensor) -> bool:
        """Whether norm and head alone made these scores: some models scale them, or have no norm there."""
        if self.head is None or self.normed is None or self.normed.shape[-1] != self.head.weight.shape[-1]:
            return False
        return torch.allclose(self.head(self.normed)[0].float(), scores_SV.float(), rtol=1e-4, atol=1e-4)
