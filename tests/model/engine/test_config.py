import json
from pathlib import Path
from typing import Any

import pytest

from model.engine import config as engine_config
from model.engine.resolve import resolve
from recipes.registry import ROOT

VALUES = {
    "train_batch_size": 16,
    "train_micro_batch_size_per_gpu": 4,
    "optimizer.params.lr": 1e-3,
    "optimizer.params.betas": [0.9, 0.95],
    "optimizer.params.eps": 1e-8,
    "optimizer.params.weight_decay": 0.1,
}
SHIPPED = sorted((ROOT / "ds_configs").glob("*.json"))


def write(folder: Path, config: Any) -> Path:
    path = folder / "engine.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_json_resolves(path: Path) -> None:
    config = engine_config.read(path)
    resolved = resolve(config, VALUES, 2, str(path))
    assert '"auto"' not in json.dumps(resolved.json)
    assert resolved.json["gradient_accumulation_steps"] == 2
    assert resolved.deviations == ()
    kind, _, dtype = path.stem.rpartition("_")
    stage = config["zero_optimization"]["stage"]
    assert dtype == resolved.dtype
    assert kind.startswith(f"zero{stage}") or (kind, stage) in (("pipeline", 1), ("long_sequence", 3))
    assert config["gradient_clipping"] == 1.0
    sums = "fp32" if dtype == "bf16" else dtype
    assert resolved.json["data_types"] == {"grad_accum_dtype": sums}
    assert resolved.json["communication_data_type"] == (sums if stage < 2 else dtype)


LOW = {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
BF16 = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}


@pytest.mark.parametrize(
    ("more", "sums", "sent", "said"),
    [
        ({}, "fp32", "fp32", []),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "bf16", "bf16", ["data_types.grad_accum_dtype is bf16"]),
        ({"communication_data_type": "bf16"}, "fp32", "bf16", ["communication_data_type is bf16 (usual here: fp32)"]),
        ({"zero_optimization": {"stage": 2}}, "fp32", "bf16", []),
        ({"zero_optimization": {"stage": 3}, "communication_data_type": "fp32"}, "fp32", "fp32", []),
        ({"bf16": {"enabled": True, **LOW}}, "bf16", "bf16", []),
        ({"bf16": {}, "fp16": {"enabled": True}}, "fp16", "fp16", []),
        ({"bf16": {}, "communication_data_type": "bf16"}, "fp32", "bf16", ["communication_data_type is bf16"]),
    ],
)
def test_gradients_are_summed_and_sent_in_fp32_or_a_line_says_so(
    more: dict[str, Any], sums: str, sent: str, said: list[str]
) -> None:
    engine_config.check({**BF16, **more}, "x")
    resolved = resolve({**BF16, **more}, VALUES, 1, "x")
    assert resolved.json["data_types"]["grad_accum_dtype"] == sums
    assert resolved.json["communication_data_type"] == sent
    assert len(resolved.deviations) == len(said)
    assert all(line.startswith(words) for line, words in zip(resolved.deviations, said, strict=True))


def test_defaults_of_deepspeed_that_act_are_written_down() -> None:
    assert resolve({}, VALUES, 1, "x").json["gradient_clipping"] == 1.0
    assert resolve({"gradient_clipping": 0}, VALUES, 1, "x").json["gradient_clipping"] == 0


@pytest.mark.parametrize("peak", [{}, {"warmup_max_lr": "auto"}])
@pytest.mark.parametrize("kind", ["WarmupLR", "WarmupDecayLR"])
def test_a_warm_up_leads_to_the_rate_of_the_optimizer(kind: str, peak: dict[str, Any]) -> None:
    """Left to itself WarmupDecayLR takes 0.001."""
    steps = {"total_num_steps": 2000} if kind == "WarmupDecayLR" else {}
    config = {"scheduler": {"type": kind, "params": {**steps, **peak}}, "optimizer": {"params": {"lr": 3e-4}}}
    engine_config.check(config, "x")
    resolved = resolve(config, VALUES, 1, "x")
    assert resolved.json["scheduler"]["params"]["warmup_max_lr"] == 3e-4
    assert resolved.deviations[1:] == (f"scheduler is {kind} (recipe: its own warm-up and decay)",)


def test_onecycle_says_that_it_takes_the_betas() -> None:
    section = {"type": "OneCycle", "params": {"cycle_min_lr": 1e-4, "cycle_max_lr": 1e-3}}
    said = resolve({"scheduler": section}, VALUES, 1, "x").deviations
    assert said[1] == "OneCycle sets the betas to 0.8 … 0.9 and 0.99 (recipe: [0.9, 0.95])"
    section["params"]["cycle_momentum"] = False
    assert len(resolve({"scheduler": section}, VALUES, 1, "x").deviations) == 1


def test_an_explicit_value_beats_the_recipe_and_is_listed() -> None:
    config = {"optimizer": {"params": {"lr": 2e-3}}, "train_micro_batch_size_per_gpu": 2}
    resolved = resolve(config, VALUES, 1, "x")
    assert resolved.json["optimizer"]["params"]["lr"] == 2e-3
    assert resolved.json["gradient_accumulation_steps"] == 8
    assert resolved.deviations == (
        "train_micro_batch_size_per_gpu is 2 (recipe: 4)",
        "optimizer.params.lr is 0.002 (recipe: 0.001)",
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"zero_optimisation": {}}, "unknown key zero_optimisation; did you mean zero_optimization"),
        ({"zero_optimization": {"stag": 1}}, r"unknown key zero_optimization\.stag; did you mean stage"),
        ({"zero_optimization": {"offload_param": {"devise": "cpu"}}}, r"offload_param\.devise; did you mean device"),
        ({"optimizer": {"params": {"learning_rate": 1}}}, r"unknown key optimizer\.params\.learning_rate"),
        ({"optimizer": {"type": "Adamm"}}, 'optimizer.type is "Adamm"; it must be Adam or AdamW'),
        ({"gradient_clipping": "one"}, 'gradient_clipping is "one"; it must be a number of at least 0'),
        ({"bf16": {"enabled": 1}}, r"bf16\.enabled is 1; it must be true or false"),
        ({"bf16": True}, "bf16 is true; it must be an object"),
        ({"prescale_gradients": "auto"}, 'prescale_gradients cannot be "auto"'),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "both enabled"),
        ({"bf16": {"enabled": True}}, "bf16 with ZeRO stage 0"),
        ({"fp16": {"enabled": True}, "zero_optimization": {"stage": 0}}, "fp16 with ZeRO stage 0"),
        ({"bf16": None}, "bf16 is null"),
        ({"optimizer": {"params": {"lr": -1}}}, "lr is -1; it must be a number of at least 0"),
        ({"optimizer": {"params": {"betas": [0.9]}}}, r"betas is \[0.9\]; it must be a list of two numbers"),
        ({"scheduler": {"type": "WarmupRL"}}, 'scheduler.type is "WarmupRL"; did you mean WarmupLR'),
        ({"scheduler": {"params": {}}}, "scheduler has no type; add one of WarmupLR"),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_step": 5}}},
            r"unknown key scheduler\.params\.warmup_step; did you mean warmup_",
        ),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_type": "lin"}}}, 'is "lin"; it must be log or linear'),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 0.5}}}, "must be a whole number"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": -1}}}, "must be a number of at least 0"),
        ({"scheduler": {"type": "WarmupDecayLR"}}, r"WarmupDecayLR needs scheduler\.params\.total_num_steps"),
        (
            {"scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 10}}},
            "total_num_steps 10 is below warmup_num_steps 1000",
        ),
        ({"steps_per_print": 0}, "steps_per_print is 0; it must be a whole number of at least 1"),
        (
            {"fp16": {"initial_scale_power": 500}},
            "initial_scale_power is 500; it must be a whole number of at least 0 and at most 32",
        ),
        ({"gradient_clipping": -1}, "gradient_clipping is -1; it must be a number of at least 0"),
        ('{"gradient_clipping": NaN}', "NaN is no number in JSON"),
        ('{"gradient_clipping": 1e999}', "gradient_clipping is infinite; it must be a number of at least 0"),
        ({"gradient_predivide_factor": 0}, "gradient_predivide_factor is 0; it must be a number of at least 1"),
        (
            {"gradient_predivide_factor": 2.0, "zero_optimization": {"stage": 3, "reduce_scatter": False}},
            "gradient_predivide_factor need ZeRO stage 0 or 1",
        ),
        ({"activation_checkpointing": {"interval": 0}}, "interval is 0; it must be a whole number of at least 1"),
        ({"communication_data_type": "fp8"}, 'communication_data_type is "fp8"; it must be fp32 or bf16 or fp16'),
        (
            {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}, "data_types": {"grad_accum_dtype": "fp16"}},
            "grad_accum_dtype is fp16; with bf16 it must be bf16 or fp32",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.3}}},
            "ratio is 0.3; below 1 leaves a second optimizer on the GPU",
        ),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            'device is "nvme"; it must be none or cpu',
        ),
        ({"zero_optimization": {"stage": 4}}, "stage is 4; it must be one of 0, 1, 2, 3"),
        ({"scheduler": {"type": "WarmupLR", "params": "auto"}}, r'scheduler\.params cannot be "auto".*take it out'),
        ({"optimizer": {"params": "auto"}}, r'optimizer\.params cannot be "auto"'),
        ({"optimizer": {"params": {"torch_adam": "yes"}}}, 'torch_adam is "yes"; it must be true or false'),
        ({"optimizer": {"params": {"fused": True, "foreach": True}}}, "fused and foreach exclude each other"),
        ({"zero_optimization": {"stage3_prefetch_bucket_size": 0.5}}, "is 0.5; it must be a whole number"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "offload_optimizer needs ZeRO stage 1 or"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "offload_param needs ZeRO stage 3"),
        ('{"gradient_clipping": 1' + "0" * 400 + "}", "a number of 401 digits is too large"),
        ('{"optimizer": {"params": {"lr": 1' + "0" * 400 + "}}}", "a number of 401 digits is too large"),
        ("[" * 100_000, "must hold a JSON object"),
        ('{"a": ' * 1000, "more than 50 objects stand in each other"),
        ('{"a": 1, "a": 2}', "key a stands twice"),
        ('{"a": ', "line 1: the JSON is not finished"),
        ("[1]", "must hold a JSON object"),
    ],
)
def test_a_wrong_json_is_refused_with_key_and_remedy(tmp_path: Path, config: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        engine_config.read(write(tmp_path, config))
    assert str(tmp_path / "engine.json") in str(caught.value)


def test_a_folder_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: Is a directory; give a DeepSpeed JSON"):
        engine_config.read(tmp_path)
    with pytest.raises(ValueError, match="does not exist; give a DeepSpeed JSON, for example"):
        engine_config.read(tmp_path / "mine.json")


def test_a_missing_json_names_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"zero1_bf61\.json does not exist; did you mean .*zero1_bf16\.json"):
        engine_config.read(ROOT / "ds_configs" / "zero1_bf61.json")


@pytest.mark.parametrize(
    ("batch", "micro", "degree", "words"),
    [
        (30, 4, 2, r"30 does not divide by micro-batch 4 x data degree 2 = 8; .* do: 24, 32; .* for 30: 3, 5"),
        (3, 4, 2, "nearest global batches that do: 8"),
        (0, 4, 2, "the global batch is 0"),
    ],
)
def test_a_batch_that_does_not_divide_names_the_nearest(batch: int, micro: int, degree: int, words: str) -> None:
    values = {**VALUES, "train_batch_size": batch, "train_micro_batch_size_per_gpu": micro}
    with pytest.raises(ValueError, match=words):
        resolve({}, values, degree, "x")


def test_an_explicit_accumulation_must_multiply_out() -> None:
    with pytest.raises(ValueError, match="16 is not micro-batch 4 x accumulation 3 x data degree 1 = 12"):
        resolve({"gradient_accumulation_steps": 3}, VALUES, 1, "x")
