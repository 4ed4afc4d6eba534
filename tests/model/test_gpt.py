import math

import pytest
import torch

from model.config import GPTConfig
from model.gpt import GPT, document_mask, places_in_documents, prefix_mask
from model.init import init_weights, initial_value

CONFIG = GPTConfig(num_layers=2, hidden_size=32, num_attention_heads=4, seq_length=16, vocab_size=100)


def build(seed: int = 1, config: GPTConfig = CONFIG) -> GPT:
    model = GPT(config)
    init_weights({p: name for name, p in model.named_parameters()}, config, seed)
    return model.eval()


def test_a_token_sees_none_after_it() -> None:
    model, tokens = build(), torch.randint(0, 100, (2, 16))
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % 100
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_a_shorter_sequence_is_a_prefix() -> None:
    model, tokens = build(), torch.randint(0, 100, (2, 16))
    torch.testing.assert_close(model(tokens[:, :5]), model(tokens)[:, :5])


def test_weights_depend_on_seed_and_name_alone() -> None:
    shallow = build(config=GPTConfig(1, 32, 4, 16, 100))
    deep = build(config=CONFIG)
    names = dict(deep.named_parameters())
    for name, parameter in shallow.named_parameters():
        if not name.endswith(("attention.out.weight", "mlp.down.weight")):  # these shrink with the depth
            assert torch.equal(parameter, names[name]), name
    assert not torch.equal(deep.embed.weight, build(seed=2).embed.weight)
    assert not torch.equal(names["blocks.0.mlp.up.weight"], names["blocks.1.mlp.up.weight"])


def test_initial_scale() -> None:
    config = GPTConfig(8, 256, 4, 16, 100, init_method_std=0.03)
    shape = torch.Size((256, 256))
    # The deviation of n samples of a normal has a relative error of 1/sqrt(2n); five of those are allowed.
    tolerance = 5 / math.sqrt(2 * shape.numel())
    plain = initial_value("blocks.0.mlp.up.weight", shape, config, 1).std().item()
    residual = initial_value("blocks.0.mlp.down.weight", shape, config, 1).std().item()
    assert math.isclose(plain, 0.03, rel_tol=tolerance)
    assert math.isclose(residual, 0.03 / math.sqrt(16), rel_tol=tolerance)
    assert initial_value("blocks.0.norm1.weight", torch.Size((4,)), config, 1).tolist() == [1, 1, 1, 1]
    assert initial_value("blocks.0.norm1.bias", torch.Size((4,)), config, 1).tolist() == [0, 0, 0, 0]


def test_dropout_only_while_training() -> None:
    model, tokens = build(config=GPTConfig(1, 32, 4, 16, 100, dropout=0.5)), torch.randint(0, 100, (1, 8))
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_bidirectional_attention_sees_everything() -> None:
    model, tokens = build(config=GPTConfig(1, 32, 4, 16, 100, objective="masked")), torch.randint(0, 100, (1, 16))
    changed = tokens.clone()
    changed[:, 15] = (changed[:, 15] + 1) % 100
    assert not torch.allclose(model(tokens)[:, 0], model(changed)[:, 0])


def test_a_prefix_sees_itself_and_the_rest_what_is_before() -> None:
    assert prefix_mask(torch.tensor([2]), 4)[0].int().tolist() == [
        [1, 1, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 1],
    ]
    model, tokens = build(config=GPTConfig(1, 32, 4, 16, 100, objective="prefix")), torch.randint(0, 100, (1, 16))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 100
    inside, outside = torch.tensor([6]), torch.tensor([5])
    assert not torch.allclose(model(tokens, inside)[:, 0], model(changed, inside)[:, 0])
    assert torch.equal(model(tokens, outside)[:, :5], model(changed, outside)[:, :5])


def test_packed_documents_by_hand() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0]])
    assert places_in_documents(documents).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5]]
    assert document_mask(documents, causal=True)[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert document_mask(documents, causal=False)[0, 0].int().tolist() == [1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize("objective", ["causal", "masked"])
def test_a_packed_document_gives_the_logits_that_it_gives_alone(objective: str) -> None:
    model = build(config=GPTConfig(2, 32, 4, 16, 100, objective=objective))
    one, two = torch.randint(0, 100, (1, 7)), torch.randint(0, 100, (1, 9))
    packed = model(torch.cat([one, two], 1), None, torch.tensor([[0] * 7 + [1] * 9]))
    assert torch.allclose(packed, torch.cat([model(one), model(two)], 1), atol=1e-6)
