"""The loss. Axes as in `model/gpt.py`."""

import torch.nn.functional as F
from torch import Tensor


def token_losses(logits_BSV: Tensor, labels_BS: Tensor, vocab_size: int) -> Tensor:
    """Cross entropy of every label in nats [B, S], fp32; the padding columns past `vocab_size` take no part."""
    scores = logits_BSV[..., :vocab_size].float().flatten(0, 1)
    return F.cross_entropy(scores, labels_BS.flatten(), reduction="none").view_as(labels_BS)


def mean_loss(logits_BSV: Tensor, labels_BS: Tensor, vocab_size: int) -> Tensor:
    """Mean cross entropy over all labels, in nats: what is trained on."""
    scores = logits_BSV[..., :vocab_size].float().flatten(0, 1)
    return F.cross_entropy(scores, labels_BS.flatten())
