"""Checkpoints of Megatron-LM built by hand from known weights, in each of its orders and over tensor ranks."""

import argparse
import dataclasses
import itertools
import re
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import GPTConfig
from model.convert import detect, megatron
from model.gpt import GPT
from support.errors import UserError
from tests.distributed import run_ranks
from tests.model.convert.test_pickles import Harmful
from tests.model.test_huggingface import LOGIT_TOLERANCE, randomise

CONFIG = GPTConfig(2, 128, 2, 16, 256, ffn_hidden_size=192)  # heads of 64, as are assumed where none are told
STEMS = {
    "norm1": "input_layernorm", "norm2": "post_attention_layernorm", "attention.qkv": "ATTENTION.query_key_value",
    "attention.out": "ATTENTION.dense", "mlp.up": "mlp.dense_h_to_4h", "mlp.down": "mlp.dense_4h_to_h",
}  # fmt: skip
CORE = {
    "norm1.": "self_attention.linear_qkv.layer_norm_", "norm2.": "mlp.linear_fc1.layer_norm_",
    "attention.qkv.": "self_attention.linear_qkv.", "attention.out.": "self_attention.linear_proj.",
    "mlp.up.": "mlp.linear_fc1.", "mlp.down.": "mlp.linear_fc2.",
}  # fmt: skip
ARGS = {
    "num_attention_heads": 2, "hidden_dropout": 0.0, "bias_gelu_fusion": True, "layernorm_epsilon": 1e-5,
    "position_embedding_type": "learned_absolute", "params_dtype": torch.float16, "tensor_model_parallel_size": 1,
}  # fmt: skip


def known() -> GPT:
    model = GPT(CONFIG).eval()
    randomise(model)
    return model


def ordered(qkv: Tensor, version: float) -> Tensor:
    """Our rows, grouped by head, as a version has them: row by row."""
    if version >= 2:
        return qkv
    heads, width = len(qkv) // (3 * 64), 64
    rows = [
        (head, which, place)
        for head, which, place in {
            0: [(h, w, p) for w in range(3) for h in range(heads) for p in range(width)],
            1: [(h, w, p) for h in range(heads) for p in range(width) for w in range(3)],
        }[int(version)]
    ]
    return torch.stack([qkv[(head * 3 + which) * width + place] for head, which, place in rows])


def nested(model: GPT, version: float, rank: int, ranks: int) -> dict[str, Any]:
    """The `model` of a rank's file, as Megatron-LM nests it."""
    layers: dict[str, Tensor] = {}
    attention, encoder = ("attention", "transformer") if version < 2 else ("self_attention", "encoder")
    outer: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        dim = next((dim for end, dim in megatron.CUT.items() if name.endswith(end)), None)
        part = value if dim is None else value.chunk(ranks, dim)[rank].clone()
        if ".qkv." in name:
            part = ordered(part, version)
        if name.startswith("blocks."):
            _, number, inner = name.split(".", 2)
            stem, _, kind = inner.rpartition(".")
            layers[f"layers.{number}.{STEMS[stem].replace('ATTENTION', attention)}.{kind}"] = part
        elif name.startswith("final_norm"):
            layers[name.replace("final_norm", "final_layernorm")] = part
        else:
            outer[name] = part
    embedding = {
        "word_embeddings": {"weight": outer["embed.weight"]},
        "position_embeddings": {"weight": outer["position.weight"]},
    }
    return {"language_model": {"embedding": embedding, encoder: layers}}


def write(root: Path, model: GPT, version: float, ranks: int = 1, **args: Any) -> None:
    """A checkpoint as `--load` takes it."""
    (root / megatron.LATEST).write_text("release" if version < 2 else "1000")
    folder = root / ("release" if version < 2 else "iter_0001000")
    for rank in range(ranks):
        content: dict[str, Any] = {"iteration": 1000, "model": nested(model, version, rank, ranks)}
        if version:
            told = {**ARGS, "tensor_model_parallel_size": ranks, **args}
            content |= {"checkpoint_version": version, "args": argparse.Namespace(**told)}
        (folder / f"mp_rank_{rank:02d}").mkdir(parents=True, exist_ok=True)
        torch.save(content, folder / f"mp_rank_{rank:02d}" / megatron.FILE)


def same(model: GPT, found: dict[str, Tensor]) -> bool:
    theirs = model.state_dict()
    return found.keys() == theirs.keys() and all(value.equal(theirs[name]) for name, value in found.items())


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("version", [0, 1.0, 2.0])
def test_each_version_is_read_to_the_bit(tmp_path: Path, version: float, ranks: int) -> None:
    model = known()
    write(tmp_path, model, version, ranks)
    foreign = detect.opened(tmp_path)
    assert same(model, dict(foreign.weights()))
    assert (foreign.config.num_attention_heads, foreign.config.ffn_hidden_size) == (2, 192)
    assert foreign.form == f"Megatron-LM checkpoint of version {version:g}"
    assert foreign.notes == (() if version else ("2 heads of 64 are assumed: it says no number",))
    folder = tmp_path / ("release" if version < 2 else "iter_0001000")
    assert detect.opened(folder).config == foreign.config
    assert ranks > 1 or same(model, dict(detect.opened(folder / "mp_rank_00").weights()))


def test_the_names_of_megatron_core_are_read(tmp_path: Path) -> None:
    model, flat = known(), {}
    for name, value in model.state_dict().items():
        theirs = name.replace("embed.", "embedding.word_embeddings.").replace(
            "position.", "embedding.position_embeddings."
        )
        theirs = theirs.replace("blocks.", "decoder.layers.").replace("final_norm", "decoder.final_layernorm")
        for old, new in CORE.items():
            theirs = theirs.replace(old, new)
        flat[theirs] = value
    flat["output_layer.weight"] = flat["embedding.word_embeddings.weight"].clone()  # of a last stage
    flat["decoder.layers.0.mlp.linear_fc1._extra_state"] = torch.ones(3)
    torch.save({"model": flat, "checkpoint_version": 3.0, "args": argparse.Namespace(**ARGS)}, tmp_path / megatron.FILE)
    assert same(model, dict(detect.opened(tmp_path).weights()))


def write_stages(root: Path, model: GPT, ranks: int, stages: int, turns: int) -> None:
    """A pipeline's checkpoint, of several parts a stage where the pipeline comes by `turns` times."""
    (root / megatron.LATEST).write_text("7")
    layers = model.config.num_layers // (stages * turns)
    for rank, stage in itertools.product(range(ranks), range(stages)):
        parts = []
        for part in range(stage, stages * turns, stages):
            whole = nested(model, 2.0, rank, ranks)["language_model"]
            encoder = {
                f"layers.{int(found[1]) - part * layers}.{found[2]}": value
                for name, value in whole["encoder"].items()
                if (found := re.fullmatch(r"layers\.(\d+)\.(.+)", name)) and int(found[1]) // layers == part
            }
            if last := part == stages * turns - 1:
                encoder |= {name: value for name, value in whole["encoder"].items() if name.startswith("final")}
            first = {} if part else {"embedding": whole["embedding"]}
            head = {"word_embeddings_for_head": whole["embedding"]["word_embeddings"]} if last else {}
            parts.append({"language_model": {**first, "encoder": encoder}, **head})
        told = {**ARGS, "tensor_model_parallel_size": ranks, "pipeline_model_parallel_size": stages}
        told["num_layers"] = model.config.num_layers
        content = {"iteration": 7, "checkpoint_version": 3.0, "args": argparse.Namespace(**told)}
        content |= {"model": parts[0]} if turns == 1 else {f"model{turn}": part for turn, part in enumerate(parts)}
        folder = root / "iter_0000007" / f"mp_rank_{rank:02d}_{stage:03d}"
        folder.mkdir(parents=True)
        torch.save(content, folder / megatron.FILE)


@pytest.mark.parametrize(("ranks", "stages", "turns"), [(1, 4, 1), (2, 2, 1), (1, 2, 2)])
def test_the_stages_of_a_pipeline_are_put_together(tmp_path: Path, ranks: int, stages: int, turns: int) -> None:
    model = GPT(dataclasses.replace(CONFIG, num_layers=4)).eval()
    randomise(model)
    write_stages(tmp_path, model, ranks, stages, turns)
    assert same(model, dict(detect.opened(tmp_path).weights()))

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words):
            detect.opened(tmp_path)

    file = tmp_path / "iter_0000007" / "mp_rank_00_001" / megatron.FILE
    held = torch.load(file, weights_only=False)
    torch.save({**held, "iteration": 8}, file)
    refused(r"several iterations \(7, 8\)")
    torch.save({**held, "harm": Harmful(tmp_path / "harm")}, file)
    refused("mp_rank_00_001.*it asks for eval")
    file.write_bytes(file.read_bytes()[:999])
    refused("mp_rank_00_001.*model_optim_rng.pt")
    file.unlink()
    refused("mp_rank_00_001 is not there; fetch all mp_rank folders")
    assert not (tmp_path / "harm").exists()


def core_model(root: Path) -> tuple[Tensor, Tensor]:
    """A model of megatron-core's over two tensor ranks, in both of its forms; tokens, and its logits. All on a CPU."""
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer.transformer_config import TransformerConfig

    parallel_state.initialize_model_parallel(2)
    torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = lambda *_: None  # type: ignore[assignment]
    tensor_parallel.get_cuda_rng_tracker().fork = lambda *_: nullcontext()
    config = TransformerConfig(
        num_layers=2, hidden_size=32, num_attention_heads=4, ffn_hidden_size=96, hidden_dropout=0.0,
        attention_dropout=0.0, use_cpu_initialization=True, masked_softmax_fusion=False, bias_dropout_fusion=False,
        gradient_accumulation_fusion=False, activation_func=partial(F.gelu, approximate="tanh"),
        tensor_model_parallel_size=2,
    )  # fmt: skip
    how = {"position_embedding_type": "learned_absolute", "share_embeddings_and_output_weights": True}
    spec = get_gpt_layer_local_spec()
    model = GPTModel(config, spec, vocab_size=256, max_sequence_length=16, parallel_output=False, **how).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():  # what ranks share must be the same on both
            part = parallel_state.get_tensor_model_parallel_rank() if getattr(value, "tensor_model_parallel", 0) else 0
            generator = torch.Generator().manual_seed(len(name) * 2 + part)
            value.copy_(torch.empty(value.shape).normal_(0, 0.1, generator=generator) + (name.endswith("norm.weight")))
    tokens, places = torch.arange(32).view(2, 16) * 7 % 256, torch.arange(16).expand(2, 16)
    with torch.no_grad():
        logits = model(tokens, places, torch.ones(16, 16, dtype=torch.bool).triu(1)[None, None])
    told = {**ARGS, "num_attention_heads": 4, "tensor_model_parallel_size": 2}
    about = {"checkpoint_version": 3.0, "args": argparse.Namespace(**told), "iteration": 5}
    folder = root / "ranks" / f"mp_rank_{torch.distributed.get_rank():02d}"
    for new in (folder, root / "dist" / "iter_0000005"):
        new.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.state_dict_for_save_checkpoint(), **about}, folder / megatron.FILE)
    torch.distributed.barrier()
    dist_checkpointing.save({"model": model.sharded_state_dict(), **about}, str(root / "dist" / "iter_0000005"))
    (root / "dist" / megatron.LATEST).write_text("5")
    return tokens, logits


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="megatron-core has no wheel for this Python")
def test_megatron_core_and_the_imports_of_its_model_have_the_same_logits(tmp_path: Path) -> None:
    tokens, logits = run_ranks(2, core_model, tmp_path)[0]
    ranks, dist = detect.opened(tmp_path / "ranks"), detect.opened(tmp_path / "dist")
    assert dist.form == "distributed checkpoint of megatron-core" and dist.config == ranks.config
    model = GPT(dist.config).eval()
    model.load_state_dict(dict(dist.weights()))
    assert same(model, dict(ranks.weights()))
    with torch.no_grad():
        assert (model(tokens) - logits).abs().max() <= LOGIT_TOLERANCE


def test_what_cannot_be_taken_is_one_line(tmp_path: Path) -> None:
    model = known()

    def refused(words: str, version: float = 2.0, ranks: int = 1, **args: Any) -> None:
        write(tmp_path, model, version, ranks, **args)
        with pytest.raises(UserError, match=words) as raised:
            list(detect.opened(tmp_path).weights())
        assert "\n" not in str(raised.value)

    refused("swiglu=True; this model has False", swiglu=True)
    refused("position_embedding_type='rope'", position_embedding_type="rope")
    refused("exact GELU", bias_gelu_fusion=False)
    refused("untie_embeddings_and_output_weights=True", untie_embeddings_and_output_weights=True)
    refused("of 4 tensor ranks and 1 pipeline stages, and mp_rank_01 is not there", tensor_model_parallel_size=4)
    refused("of 1 tensor ranks and 2 pipeline stages, and mp_rank_00_001 is not", pipeline_model_parallel_size=2)
    refused("says 3 layers, and 2 are there", num_layers=3)
    refused("3 heads over 2 tensor ranks, which do not divide them", ranks=2, num_attention_heads=3)
    refused("use_rotary_position_embeddings=True", use_rotary_position_embeddings=True)
    (tmp_path / "iter_0001000" / "mp_rank_01" / megatron.FILE).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.model.convert.test_megatron.STEMS", {**STEMS, "mlp.up": "mlp.experts"})
        refused(r"lacks the tensor language_model.transformer.layers.0.mlp.dense_h_to_4h.weight")
    (tmp_path / "iter_0001000" / "mp_rank_00").rename(tmp_path / "iter_0001000" / "mp_rank_00_000_001")
    with pytest.raises(UserError, match="mp_rank_00_000_001 is a part of an expert"):
        detect.opened(tmp_path)
    torch.save({"optimizer": 1}, tmp_path / megatron.FILE)
    with pytest.raises(UserError, match="holds no model"):
        detect.opened(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "language_model.embedding.tokentype_embeddings.weight",  # a BERT
        "language_model.encoder.layers.0.self_attention.q_layernorm.weight",
        "lm_head.dense.weight",
    ],
)
def test_a_tensor_that_this_model_has_not_is_named(name: str) -> None:
    held = dict(megatron.flat_names(nested(known(), 2.0, 0, 1)))
    copy = {"word_embeddings_for_head.weight": held["language_model.embedding.word_embeddings.weight"]}
    megatron.model_of("x", Path("here"), [{**held, **copy}], 2.0, ARGS)
    with pytest.raises(UserError, match=f"^here has the tensor {re.escape(name)}, which this model has not"):
        megatron.model_of("x", Path("here"), [{**held, name: torch.ones(2)}], 2.0, ARGS)


def test_an_argument_of_several_lines_is_one_line(tmp_path: Path) -> None:
    write(tmp_path, known(), 2.0, activation=np.zeros((3, 2)))
    with pytest.raises(UserError) as raised:
        detect.opened(tmp_path)
    assert "\n" not in str(raised.value)
