"""Adapters are read merged into the weights that they lie on, whatever layout wrote those, and on no others."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from inference.decode.stage import load_stage
from model.checkpoint import format
from model.checkpoint.base import Base
from model.checkpoint.index import Fragment
from model.checkpoint.overlay import fingerprint, reader_of
from model.checkpoint.weights import write_weights
from model.config import LAYERS, LoRA
from model.gpt import GPT
from model.lora import Adapter, adapt
from model.parallel import Axis, Parallel, slice_of
from support.errors import UserError
from tests.inference import written
from tests.model import training

LORA = LoRA(rank=4, alpha=8.0, targets=LAYERS)


def adapted(seed: int = 5) -> GPT:
    """A plain model with adapters of random values."""
    plain = training.model()
    adapt(plain, LORA)
    generator = torch.Generator().manual_seed(seed)
    for module in plain.modules():
        if isinstance(module, Adapter):
            for parameter in module.parameters():
                torch.nn.init.normal_(parameter, 0, 0.1, generator=generator)
    return plain.eval()


@pytest.fixture
def checkpoints(tmp_path: Path) -> tuple[Path, Path]:
    """A base that two tensor ranks wrote, and a checkpoint of adapters on it."""
    base = written.checkpoint(tmp_path / "base", training.model(), 3, tp=2, data=3)
    return base, write_adapters(tmp_path / "adapters", base)


def write_adapters(root: Path, base: Path) -> Path:
    weights = [(name, p.detach()) for name, p in adapted().named_parameters() if p.requires_grad]
    known = Base(str(base), fingerprint(base), LORA.scale)
    return write_weights(root, weights, {}, {"step": 5, "consumed_samples": 0}, base=known)


def test_what_is_read_computes_what_adapters_do(checkpoints: tuple[Path, Path]) -> None:
    """Merging rounds a weight of size w to w 2^-24; sums over 256 of them pass on less than 1e-6 of logits near 1."""
    model = GPT(training.CONFIG)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    model.load_state_dict(reader_of(checkpoints[1]).weights(shapes))
    tokens = torch.arange(32).view(1, 32)
    with torch.no_grad():
        right, base = adapted()(tokens), training.model()(tokens)
        assert (model(tokens) - right).abs().max() < 5e-6 < 0.1 < (base - right).abs().max()


@pytest.mark.parametrize(("size", "rank"), [(1, 0), (2, 0), (2, 1), (4, 3)])
def test_a_tensor_rank_reads_its_slice(size: int, rank: int, checkpoints: tuple[Path, Path]) -> None:
    """Whatever the tensor degree of the base is: adapters are merged once."""
    whole = reader_of(checkpoints[1])
    with torch.device("meta"):
        part = GPT(training.CONFIG, Parallel(Axis(size, rank)))
    for name, parameter in part.named_parameters():
        cut = slice_of(parameter)
        wanted = Fragment(name, 0, math.prod(parameter.shape), 0, tuple(parameter.shape), cut)
        right = cut.of(whole.whole(name)) if cut else whole.whole(name)
        assert torch.allclose(whole.read(wanted).view(parameter.shape), right, rtol=0, atol=1e-7), name
    stage = load_stage(training.CONFIG, checkpoints[1])
    up = stage.blocks["1"].mlp.up.weight  # type: ignore[union-attr]
    assert torch.allclose(up, whole.whole("blocks.1.mlp.up.weight"), rtol=0, atol=1e-7)  # type: ignore[arg-type]
    assert torch.equal(stage.blocks["1"].mlp.up.bias, training.model().blocks[1].mlp.up.bias)  # type: ignore[union-attr]


def test_the_fingerprint_is_that_of_the_weights(tmp_path: Path) -> None:
    model = training.model()
    found = {
        fingerprint(written.checkpoint(tmp_path / f"{tp}{n}", model, n, tp, n)) for tp, n in [(1, 1), (2, 1), (4, 3)]
    }
    assert len(found) == 1 and all(map(str.isalnum, found))
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[0, -1] += 1e-6  # type: ignore[union-attr,index]
    assert fingerprint(written.checkpoint(tmp_path / "other", model, 1, tp=2)) not in found


def test_another_base_and_none_are_one_line(checkpoints: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapters = checkpoints
    shutil.rmtree(base)
    with pytest.raises(
        UserError, match=r"step-00000003 is gone, on which the adapters of .*step-00000005 lie; restore"
    ):
        reader_of(adapters)
    written.checkpoint(tmp_path / "base", trained_on(), 3)
    with pytest.raises(
        UserError, match=r"lie on another base: its fingerprint is [0-9a-f]{16}, that of .* give the base"
    ):
        reader_of(adapters)
    value = json.loads((adapters / format.FILE).read_text())["manifest"]
    format.write_manifest(adapters, {**value, "base": {"path": 3}})
    with pytest.raises(UserError, match="the manifest of step 5 names no base"):
        reader_of(adapters)


def trained_on() -> GPT:
    model = training.model()
    with torch.no_grad():
        model.blocks[0].mlp.up.weight += 1e-3  # type: ignore[union-attr,operator]
    return model
