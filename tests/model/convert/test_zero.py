"""Checkpoints that DeepSpeed itself wrote, of models with the names of Megatron-DeepSpeed and gpt-neox."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model.convert import detect, flat, megatron
from support.errors import UserError
from tests.distributed import run_ranks
from tests.model.alone import config
from tests.model.convert.test_megatron import ARGS, known, same
from tests.model.convert.test_pickles import Harmful
from tests.model.convert.test_universal import their_name


class Squares(nn.Module):
    """Its own parameters, squared and summed."""

    def forward(self, x: Tensor) -> Tensor:
        return sum((((value * x) ** 2).sum() for value in self.parameters(recurse=False)), x * 0)


class Named(nn.Module):
    """Parameters under names with dots; its state is nested as Megatron-DeepSpeed nests it."""

    def __init__(self, weights: dict[str, Tensor], nested: bool = False) -> None:
        super().__init__()
        self.nested = nested
        for name, value in weights.items():
            *path, last = name.split(".")
            where: nn.Module = self
            for part in path:
                if part not in where._modules:
                    where.add_module(part, Squares())
                where = where.get_submodule(part)
            where.register_parameter(last, nn.Parameter(value.clone()))

    def forward(self, x: Tensor) -> Tensor:
        return sum((module(x) for module in self.modules() if isinstance(module, Squares)), x * 0)

    def state_dict(self, *args: Any, **more: Any) -> dict[str, Any]:
        state = super().state_dict(*args, **more)
        if not self.nested:
            return state
        model = self.get_submodule("language_model")
        parts = ("embedding.word_embeddings", "embedding.position_embeddings", "encoder")
        word, position, encoder = (dict(model.get_submodule(part).state_dict()) for part in parts)
        embedding = {"word_embeddings": word, "position_embeddings": position}
        return {"language_model": {"embedding": embedding, "encoder": encoder}}


def cut(name: str, value: Tensor, rank: int, ranks: int) -> Tensor:
    """What a tensor rank has of one of our parameters."""
    dim = next((dim for end, dim in megatron.CUT.items() if name.endswith(end)), None)
    return value if dim is None else value.chunk(ranks, dim)[rank].clone()


def shard(style: str, rank: int, ranks: int) -> dict[str, Tensor]:
    """What a tensor rank has of the known model, by the names of a program."""
    return {their_name(name, style): cut(name, value, rank, ranks) for name, value in known().state_dict().items()}


def arguments(style: str, tensor: int, stages: int = 1) -> argparse.Namespace | dict[str, Any]:
    """What a program keeps of its arguments."""
    if style == "neox":
        return {"num_layers": 2, "num_attention_heads": 2, "model_parallel_size": tensor}
    told = {**ARGS, "normalization": "layernorm", "num_experts": [1], "num_layers": 2}
    return argparse.Namespace(**{**told, "tensor_model_parallel_size": tensor, "pipeline_model_parallel_size": stages})


def train(root: Path, style: str, stage: int, ranks: int) -> list[dict[str, Tensor]]:
    """Train a step with DeepSpeed and save, one tensor rank after the other; the fp32 weights of each."""
    import deepspeed

    told = []
    for rank in range(ranks):
        model = Named(shard(style, rank, ranks), nested=style == "megatron")
        groups: list[list[nn.Parameter]] = [[], []]
        for value in model.parameters():
            groups[value.dim() > 1].append(value)
        parameters = [{"params": group, "weight_decay": number / 10} for number, group in enumerate(groups)]
        subject = deepspeed.initialize(model=model, model_parameters=parameters, config=config(stage, "bf16"))[0]
        subject.backward(subject(torch.ones((), dtype=torch.bfloat16)))
        subject.step()
        full = deepspeed.utils.safe_get_full_fp32_param if stage else lambda value: value.detach().float()
        told.append({name: full(value).clone() for name, value in model.named_parameters()})
        state = {"args": arguments(style, ranks)}
        subject.save_checkpoint(str(root / f"tensor{rank}"), tag="global_step1", client_state=state)
    return told


def lay_pipeline(root: Path, ranks: int) -> None:
    """Save a pipeline of two stages with DeepSpeed, one tensor rank after the other."""
    import deepspeed
    from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec

    for rank in range(ranks):
        layers: dict[str, dict[str, Tensor]] = {}
        for name, value in shard("pipeline", rank, ranks).items():
            stem, _, inner = name.removeprefix("tied_modules.").partition(".")
            layers.setdefault(stem, {})[inner] = value
        embedding = ("embed", Named, layers["embed"])
        tie = {"tied_weight_attr": "word_embeddings.weight"}
        blocks = [LayerSpec(Named, layers[number]) for number in "34"]
        specs = [
            torch.nn.Identity(), TiedLayerSpec(*embedding, **tie), torch.nn.Identity(), *blocks, torch.nn.Identity(),
            LayerSpec(Named, layers["6"]), TiedLayerSpec(*embedding, forward_fn=lambda module, x: x, **tie),
        ]  # fmt: skip
        model = PipelineModule(specs, num_stages=2, loss_fn=lambda x, y: x, partition_method="uniform")
        if torch.distributed.get_rank():  # of which the last stage makes no use
            model.tied_modules["embed"].get_submodule("position_embeddings").weight.data.zero_()
        parameters = [value for value in model.parameters() if value.requires_grad]
        subject = deepspeed.initialize(model=model, model_parameters=parameters, config=config(1))[0]
        state = {"args": arguments("pipeline", ranks, 2)}
        subject.save_checkpoint(str(root / f"tensor{rank}"), tag="global_step1", client_state=state)


def gather(root: Path, ranks: int) -> Path:
    """One checkpoint of those of all tensor ranks, with the names that DeepSpeed gives its files then."""
    folder = root / "global_step1"
    folder.mkdir()
    for rank in range(ranks):
        for file in (root / f"tensor{rank}" / "global_step1").glob("*.pt"):
            name = file.name.replace("mp_rank_01", f"mp_rank_{ranks + rank:02d}")
            name = name.replace("mp_rank_00", f"mp_rank_{rank:02d}")
            file.rename(folder / re.sub(r"^(layer_\d+)", rf"\1-model_{rank:02d}", name))
    (root / "latest").write_text("global_step1\n")
    return root


def ours(told: list[dict[str, Tensor]], style: str) -> dict[str, Tensor]:
    """The weights of all tensor ranks by our names, whole."""
    result = {}
    for name in known().state_dict():
        parts = [rank[their_name(name, style)] for rank in told]
        dim = next((dim for end, dim in megatron.CUT.items() if name.endswith(end)), None)
        result[name] = parts[0] if dim is None else torch.cat(parts, dim)
    return result


CASES = (
    ("megatron", 0, 1),
    ("megatron", 1, 2),
    ("megatron", 2, 1),
    ("neox", 3, 2),
)  # program, stage, tensor ranks


def all_cases(root: Path) -> list[list[dict[str, Tensor]]]:
    """What each case trained; beside them a pipeline, which comes last, for DeepSpeed keeps its grid."""
    told = [train(root / f"{style}{stage}", style, stage, ranks) for style, stage, ranks in CASES]
    lay_pipeline(root / "pipeline", 2)
    return told


def test_what_deepspeed_wrote_is_read_to_the_bit(tmp_path: Path) -> None:
    for (style, stage, ranks), told in zip(CASES, run_ranks(2, all_cases, tmp_path)[0], strict=True):
        foreign = detect.opened(gather(tmp_path / f"{style}{stage}", ranks))
        found, expected = dict(foreign.weights()), ours(told, style)
        assert found.keys() == expected.keys() and not any(value.requires_grad for value in found.values())
        assert all(value.equal(expected[name]) for name, value in found.items()), (style, stage)
        assert 0 < (found["embed.weight"] - known().embed.weight).abs().max() < 0.1  # it moved, a step far
        if stage:  # more precise than what was trained with
            assert not found["embed.weight"].bfloat16().float().equal(found["embed.weight"])
        assert foreign.form == "ZeRO checkpoint of DeepSpeed's"
        assert foreign.notes == {
            0: ("its weights are bfloat16, as in training: no fp32 ones are there to take",),
            3: ("the tanh form of the GELU is assumed: it does not say which",),
        }.get(stage, ())
    root = gather(tmp_path / "pipeline", 2)
    folder = root / "global_step1"
    assert (folder / "layer_03-model_01-model_states.pt").exists() and (folder / "mp_rank_03_model_states.pt").exists()
    assert same(known(), dict(detect.opened(root).weights()))
    for file in folder.glob("layer_*"):
        file.rename(root / file.name)
    assert same(known(), dict(detect.opened(folder).weights()))  # of the optimizer's files alone
    for file in (*folder.glob("*optim_states.pt"), *root.glob("layer_*")):
        file.rename((root if "optim" in file.name else folder) / file.name)
    assert same(known(), dict(detect.opened(folder).weights()))  # of the layers' files alone
    refuse_damaged(root, folder)


def refuse_damaged(root: Path, folder: Path) -> None:
    """A checkpoint of a pipeline, damaged in each way; all of its optimizer's files are put back first."""

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as raised:
            list(detect.opened(root).weights())
        assert "\n" not in str(raised.value)

    for file in root.glob("*optim_states.pt"):
        file.rename(folder / file.name)
    for name, words in (
        ("mp_rank_01_model_states.pt", "lacks the states of model rank 1"),
        ("mp_rank_00_model_states.pt", "lacks the model states of its first rank"),
        ("zero_pp_rank_0_mp_rank_02_optim_states.pt", "has 0 of 1 optimizer states of model rank 2"),
        ("layer_03-model_01-model_states.pt", ""),  # the optimizer's files have it
    ):
        (folder / name).rename(root / "kept")
        if words:
            refused(words)
        else:
            assert same(known(), dict(detect.opened(root).weights()))
        (root / "kept").rename(folder / name)
    file = folder / "mp_rank_03_model_states.pt"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused("mp_rank_03_model_states.pt cannot be read")
    file.write_bytes(whole)
    held = torch.load(file, weights_only=False)
    for change, words in (
        ({"global_steps": 9}, r"model states of several steps \(0, 9\)"),
        ({"harm": Harmful(root / "harm")}, "it asks for eval"),
        ({"param_shapes": [{"3.x": torch.Size([7])}]}, "are of several models or layouts"),
    ):
        torch.save({**held, **change}, file)
        refused(words)
        assert not (root / "harm").exists()
    file.write_bytes(whole)
    (root / "latest").write_text("global_step7")
    refused("names global_step7, which is not there")


def neox_layers(root: Path, ranks: int, told: str = "") -> Path:
    """What a pipeline of gpt-neox leaves in fp16, without ZeRO; beside it a file of its configuration."""
    folder = root / "global_step8"
    (folder / "configs").mkdir(parents=True)
    for rank in range(ranks):
        layers: dict[str, dict[str, Tensor]] = {}
        for name, value in shard("neox", rank, ranks).items():
            _, number, inner = name.split(".", 2)
            layers.setdefault(number, {})[inner] = value.half()
        layers["9"] = {name: value + 1 for name, value in layers["0"].items()}  # the head's copy, of no account
        for number, tensors in layers.items():
            torch.save(tensors, folder / f"layer_{int(number):02d}-model_{rank:02d}-model_states.pt")
        state = {"module": None, "global_steps": 8, "args": arguments("neox", ranks)}
        torch.save(state, folder / f"mp_rank_{rank:02d}_model_states.pt")
    (folder / "configs" / "small.yml").write_text(f'{{"pos-emb": "learned", "bias-gelu-fusion": true, {told}}}')
    (root / "latest").write_text("global_step8")
    return folder


def test_layers_of_gpt_neox_are_read_by_what_they_hold(tmp_path: Path) -> None:
    neox_layers(tmp_path, 2, '"attention-config": [[["flash"], 2]]')
    foreign = detect.opened(tmp_path)
    halves = {name: value.half().float() for name, value in known().state_dict().items()}
    found = dict(foreign.weights())
    assert found.keys() == halves.keys() and all(value.equal(halves[name]) for name, value in found.items())
    assert foreign.notes == ("its weights are float16, as in training: no fp32 ones are there to take",)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ('"pos-emb": "rotary"', "pos_emb='rotary'; this model has 'learned'"),
        ('"gpt-j-residual": true', "gpt_j_residual=True"),
        ('"no-weight-tying": true', "no_weight_tying=True"),
        ('"attention_config": [[["global", "local"], 1]]', "has a model with local attention"),
        ('"sliding_window_width": 8', "sliding_window_width=8; this model has None"),
        ('"norm": "rmsnorm"', "norm='rmsnorm'"),
        ('"activation": "swiglu"', "activation='swiglu'"),
        ('"bias-gelu-fusion": false', "exact GELU"),
        ("[", "small.yml cannot be read"),
    ],
)
def test_a_gpt_neox_of_another_kind_is_one_line(tmp_path: Path, told: str, words: str) -> None:
    neox_layers(tmp_path, 1, told)
    with pytest.raises(UserError, match=words) as raised:
        detect.opened(tmp_path)
    assert "\n" not in str(raised.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    folder = neox_layers(tmp_path, 2)

    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words) as raised:
            list(detect.opened(tmp_path).weights())
        assert "\n" not in str(raised.value)

    (folder / "layer_03-model_01-model_states.pt").rename(tmp_path / "kept")
    refused(r"lacks the tensor language_model.transformer.layers.1.\S+")
    (tmp_path / "kept").rename(folder / "layer_03-model_01-model_states.pt")
    (folder / "layer_02-model_01-model_states.pt").unlink()
    refused("layers")
    for file in folder.glob("layer_*-model_01-*"):
        file.unlink()
    refused("is of 2 tensor ranks, and 1 are there")
    for file in folder.glob("layer_*"):
        file.unlink()
    refused("holds no weights: with ZeRO-3 they are in")
    torch.save({"module": {}}, folder / "layer_3_expert_1_mp_rank_00_model_states.pt")
    refused("is a part of an expert")
    (folder / "layer_3_expert_1_mp_rank_00_model_states.pt").unlink()
    torch.save([1], folder / "mp_rank_00_model_states.pt")
    refused("is no state of DeepSpeed's")


def test_optimizer_states_of_several_steps_are_one_line(tmp_path: Path) -> None:
    weights = {their_name(name, "megatron"): value for name, value in known().state_dict().items()}
    whole = torch.cat([value.flatten() for value in weights.values()])
    shapes = [{name: value.shape for name, value in weights.items()}]
    told = {"module": {}, "param_shapes": shapes, "args": arguments("megatron", 1)}
    torch.save(told, tmp_path / "mp_rank_00_model_states.pt")

    def write(*steps: int) -> None:
        for rank, (step, part) in enumerate(zip(steps, whole.chunk(len(steps)), strict=True)):
            adam = {"state": {0: {"step": torch.tensor(float(step)), "exp_avg": torch.zeros(3)}}, "param_groups": [{}]}
            state = {flat.GROUPS: [part.clone()], "partition_count": [2], "base_optimizer_state": adam}
            file = tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
            torch.save({"optimizer_state_dict": state}, file)

    write(5, 5)
    assert same(known(), dict(detect.opened(tmp_path).weights()))
    write(5, 6)
    with pytest.raises(UserError, match=r"optimizer states of several steps \(5, 6\)"):
        detect.opened(tmp_path)
    write(5, 5, 5)
    with pytest.raises(UserError, match="has 3 of 2 optimizer states of model rank 0"):
        detect.opened(tmp_path)


@pytest.mark.parametrize("key", ["module", "param_shapes", "global_steps", "args"])
@pytest.mark.parametrize("value", [7, "x", [1], torch.ones(2)], ids=["number", "text", "list", "tensor"])
def test_a_state_with_anything_in_any_place_is_one_line(tmp_path: Path, key: str, value: object) -> None:
    state = {"module": {}, "param_shapes": [{}], "global_steps": 1, "args": arguments("megatron", 1)}
    torch.save({**state, key: value}, tmp_path / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {flat.GROUPS: []}}, tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    with pytest.raises(UserError) as raised:
        detect.opened(tmp_path)
    assert "\n" not in str(raised.value)
