"""Edits of the shipped JSONs, as people make them: each gives checked values, or one line with line, key and remedy."""

import copy
import json
import logging
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from model.engine.reading import JsonFile, parse_text
from model.engine.resolve import Resolved, resolve
from model.engine.table import ROWS
from planner.resolve import engine_values
from recipes.recipe import Recipe
from recipes.registry import ROOT, load
from support.errors import UserError
from support.json_object import JsonObject
from tests.model.engine.test_real_jsons import World

OUT = object()  # the key is taken out
RECIPES = {name: load(name) for name in ("345m", "530b")}
VALUES = {name: engine_values(recipe) for name, recipe in RECIPES.items()}
TEXTS = {path.stem: path.read_text() for path in (ROOT / "ds_configs").glob("*.json")}
WARMUP = {"type": "WarmupLR", "params": {"warmup_num_steps": 5}}
ADAM = {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}
ZERO = "zero_optimization"

# The JSON, the key, its new value, and what comes of it: the value that is resolved, or the words of the one line.
EDITS: list[tuple[str, str, Any, Any]] = [
    # The batch
    ("zero1_bf16", "train_batch_size", 256, 256),
    ("zero1_bf16", "train_batch_size", 2.56e2, 256),
    ("zero1_bf16", "train_batch_size", 100, "global batch 100 does not divide by micro-batch 16 x data degree 8"),
    ("zero1_bf16", "train_batch_size", 0, "is 0; it must be a whole number of at least 1"),
    ("zero1_bf16", "train_batch_size", "512", 'is "512"; it must be a whole number of at least 1'),
    ("zero1_bf16", "train_batch_size", None, 512),
    ("zero1_bf16", "train_micro_batch_size_per_gpu", 4, 4),
    ("zero1_bf16", "train_micro_batch_size_per_gpu", 3, "global batch 512 does not divide by .* for 512: 2, 4"),
    ("zero1_bf16", "train_micro_batch_size_per_gpu", True, "is true; it must be a whole number"),
    ("zero1_bf16", "train_micro_batch_size_per_gpu", OUT, 16),
    ("zero1_bf16", "gradient_accumulation_steps", 4, 4),
    ("zero1_bf16", "gradient_accumulation_steps", 5, "512 is not micro-batch 16 x accumulation 5 x data degree"),
    ("zero1_bf16", "gradient_accumulation_steps", 1.5, "is 1.5; it must be a whole number"),
    ("zero1_bf16", "gradient_acumulation_steps", 4, "unknown key .*; did you mean gradient_accumulation_steps"),
    # The optimizer
    ("zero1_bf16", "optimizer.type", "adamw", "AdamW"),
    ("zero1_bf16", "optimizer.type", "Lion", 'is "Lion"; it must be Adam or AdamW'),
    ("zero1_bf16", "optimizer.type", 3, "is 3; it must be Adam or AdamW"),
    ("zero1_bf16", "optimizer.params.lr", 3e-4, 3e-4),
    ("zero1_bf16", "optimizer.params.lr", "3e-4", 'is "3e-4"; it must be a number of at least 0'),
    ("zero1_bf16", "optimizer.params.lr", OUT, 1.5e-4),
    ("zero1_bf16", "optimizer.params.betas", [0.9, 1.0], "it must be a list of two numbers of at least 0 and below 1"),
    ("zero1_bf16", "optimizer.params.betas", [0.8, 0.9], [0.8, 0.9]),
    ("zero1_bf16", "optimizer.params.eps", -1e-8, "is -1e-08; it must be a number of at least 0"),
    ("zero1_bf16", "optimizer.params.weight_decay", 0, 0),
    ("zero1_bf16", "optimizer.params.wd", 0.1, "unknown key optimizer.params.wd"),
    ("zero1_bf16", "optimizer.params.foreach", True, "fused and foreach exclude each other; switch one off"),
    ("zero1_bf16", "optimizer.params.torch_adam", False, "fused belongs to torch's Adam; set torch_adam to true"),
    ("zero1_bf16", "optimizer.params.bias_correction", False, "torch's Adam always corrects; take it out"),
    ("zero1_bf16", "optimizer.params.bias_correction", True, OUT),
    ("zero1_bf16", "optimizer.params.max_grad_norm", 1.0, OUT),
    ("zero1_bf16", "optimizer.params.max_grad_norm", 0.5, "stands beside gradient_clipping, its newer spelling"),
    ("zero1_bf16", "optimizer.params", ADAM, {**ADAM, **{k: VALUES["345m"][f"optimizer.params.{k}"] for k in ADAM}}),
    ("zero1_bf16", "optimizer", "AdamW", 'is "AdamW"; it must be an object'),
    # The scheduler
    ("zero1_bf16", "scheduler", WARMUP, {**WARMUP, "params": {"warmup_num_steps": 5, "warmup_max_lr": 1.5e-4,
                                                              "warmup_min_lr": 0, "warmup_type": "log"}}),
    ("zero1_bf16", "scheduler", {"params": {"warmup_num_steps": 5}}, "scheduler has no type; add one of WarmupLR"),
    ("zero1_bf16", "scheduler", {}, "scheduler has no type; add one of WarmupLR"),
    ("zero1_bf16", "scheduler.type", "WarmupDecayLr", "did you mean WarmupDecayLR"),
    ("zero1_bf16", "scheduler", {"type": "OneCycleLR"}, "did you mean OneCycle"),
    ("zero1_bf16", "scheduler", {"type": "WarmupDecayLR"}, r"needs scheduler\.params\.total_num_steps; add it"),
    ("zero1_bf16", "scheduler", {"type": "WarmupLR", "params": {"total_num_steps": 9}}, "unknown key .* of WarmupLR"),
    ("zero1_bf16", "scheduler", {"type": "WarmupLR", "params": {"warmup_num_steps": 0}}, "is 0; it must be a whole"),
    ("zero1_bf16", "scheduler", {"type": "WarmupLR", "params": {"warmup_type": "cosine"}}, "must be log or linear"),
    ("zero1_bf16", "scheduler", {"type": "WarmupLR", "params": {"warmup_min_lr": 1}}, "is above warmup_max_lr"),
    ("zero1_bf16", "scheduler", {"type": "OneCycle", "params": {"cycle_min_lr": 1, "cycle_max_lr": 0.1}}, "is above"),
    ("zero1_bf16", "scheduler", {"type": "WarmupLR", "params": {"last_batch_iteration": 7}}, "a checkpoint says where"),
    # Clipping
    ("zero1_bf16", "gradient_clipping", 0.5, 0.5),
    ("zero1_bf16", "gradient_clipping", 0, 0),
    ("zero1_bf16", "gradient_clipping", -1, "is -1; it must be a number of at least 0"),
    ("zero1_bf16", "gradient_clipping", math.nan, "NaN is no number in JSON; give a finite one"),
    ("zero1_bf16", "gradient_clipping", None, "is null; give it a value or take it out"),
    ("zero1_bf16", "gradient_clipping", OUT, 1.0),
    ("zero1_bf16", "gradient_cliping", 1.0, "unknown key gradient_cliping; did you mean gradient_clipping"),
    # Precision
    ("zero1_bf16", "bf16.enabled", "true", 'is "true"; it must be true or false'),
    ("zero1_bf16", "bf16.enabled", "auto", True),
    ("zero1_bf16", "bf16.enabled", False, False),
    ("zero1_bf16", "bf16", True, "is true; it must be an object"),
    ("zero1_bf16", "fp16", {"enabled": True}, "bf16 and fp16 are both enabled; switch one off"),
    ("zero1_bf16", "fp16", {"enabled": "auto"}, {"enabled": False}),
    ("zero1_bf16", "bf16.bf16_optimizer_states", True, "needs bf16.bf16_master_weights_and_grads; set that to true"),
    ("zero2_bf16", "bf16.bf16_master_weights_and_grads", True, "needs bf16.bf16_optimizer_states, or DeepSpeed's own"),
    ("zero1_fp16", "fp16.initial_scale_power", 500, "is 500; it must be a whole number of at least 0 and at most 32"),
    ("zero1_fp16", "fp16.initial_scale_power", 12, 12),
    ("zero1_fp16", "fp16.loss_scale_window", 0, "is 0; it must be a whole number of at least 1"),
    ("zero1_fp16", "fp16.hysteresis", 0, "is 0; it must be a whole number of at least 1"),
    ("zero1_fp16", "fp16.min_loss_scale", 0, "is 0; it must be a whole number of at least 1"),
    ("zero1_fp16", "fp16.min_loss_scale", 2**17, "is above the first loss scale, .* = 65536; lower it"),
    ("zero1_fp16", "fp16.loss_scale", -1, "is -1; it must be a number of at least 0"),
    ("zero1_fp16", "fp16.loss_scale", 1024, 1024),
    ("zero1_fp16", "fp16.opt_level", "O2", OUT),
    ("zero1_fp16", "fp16.fp16_master_weights_and_grads", True, "needs DeepSpeed's own Adam on the CPU"),
    ("zero1_fp16", "communication_data_type", "fp17", 'is "fp17"; it must be fp32 or bf16 or fp16'),
    ("zero1_bf16", "communication_data_type", "fp16", "is fp16; with bf16 it must be bf16 or fp32"),
    ("zero2_bf16", "communication_data_type", "FP32", "fp32"),
    ("zero2_bf16", "communication_data_type", "bfp16", "bf16"),  # as Megatron-DeepSpeed spells it
    ("zero1_bf16", "data_types.grad_accum_dtype", "bfloat16", "bf16"),
    ("zero1_bf16", "data_types.grad_accum_dtype", "fp8", 'is "fp8"; it must be fp32 or bf16 or fp16'),
    ("zero1_bf16", "data_types.param_dtype", "fp32", "trains in bf16; it must be bf16, or taken out"),
    # ZeRO
    ("zero1_bf16", f"{ZERO}.stage", 0, "bf16 with ZeRO stage 0 takes a hidden optimizer step"),
    ("zero1_bf16", f"{ZERO}.stage", 2, 2),
    ("zero1_bf16", f"{ZERO}.stage", 4, "is 4; it must be one of 0, 1, 2, 3"),
    ("zero1_bf16", f"{ZERO}.stage", "2", 'is "2"; it must be one of 0, 1, 2, 3'),
    ("zero1_bf16", f"{ZERO}.stag", 2, "unknown key zero_optimization.stag; did you mean stage"),
    ("zero1_bf16", ZERO, OUT, "bf16 with ZeRO stage 0 takes a hidden optimizer step"),
    ("zero1_bf16", "zero_optimisation", {"stage": 2}, "unknown key zero_optimisation; did you mean zero_optimization"),
    ("zero2_bf16", f"{ZERO}.reduce_bucket_size", 0, "is 0; it must be a whole number of at least 1"),
    ("zero2_bf16", f"{ZERO}.reduce_bucket_size", 2e8, 200_000_000),
    ("zero2_bf16", f"{ZERO}.reduce_bucket_size", "auto", 1024 * 1024),
    ("zero2_bf16", f"{ZERO}.allgather_bucket_size", 500_000_001, "of at least 2 and a multiple of 2"),
    ("zero2_bf16", f"{ZERO}.overlap_comm", "yes", 'is "yes"; it must be true or false'),
    ("zero2_bf16", f"{ZERO}.cpu_offload", True, OUT),
    ("zero2_bf16", f"{ZERO}.offload_optimizer", "auto", OUT),
    ("zero3_bf16", f"{ZERO}.offload_param", {"device": "nvme"}, "here only the optimizer's states go to NVMe"),
    ("zero2_bf16", f"{ZERO}.offload_param", {"device": "cpu"}, "offload_param needs ZeRO stage 3 or more; raise stage"),
    ("zero2_bf16", f"{ZERO}.offload_optimizer", {"device": "gpu"}, "it must be one of none, cpu, nvme"),
    ("zero2_offload_bf16", f"{ZERO}.offload_optimizer.ratio", 0.3, "below 1 leaves a second optimizer on the GPU"),
    ("zero2_offload_bf16", f"{ZERO}.offload_optimizer.pin_memory", OUT, True),
    ("zero3_bf16", f"{ZERO}.stage3_prefetch_bucket_size", 0.5, "is 0.5; it must be a whole number of at least 0"),
    ("zero3_bf16", f"{ZERO}.stage3_param_persistence_threshold", "auto", 10_240),
    ("zero3_bf16", f"{ZERO}.stage3_gather_16bit_weights_on_model_save", True, OUT),
    ("zero3_bf16", f"{ZERO}.zenflow", {"topk_ratio": 0.1}, "is switched on; its steps use old gradients; take it out"),
    ("zero3_bf16", f"{ZERO}.compute_grad_norm", False, "every step of a run is judged by its norm; take it out"),
    ("zero3_bf16", "gradient_predivide_factor", 2.0, "in stage 3 a factor of 2 halves the gradients"),
    ("zero3_bf16", "prescale_gradients", True, "gradient_predivide_factor need ZeRO stage 0 or 1"),
    ("zero3_bf16", "gradient_allreduce_op", "sum", "is as many times too large as there are data ranks; take it out"),
    ("zero3_hpz_bf16", f"{ZERO}.zero_hpz_partition_size", 3, "3 does not divide 8 ranks; take .*: 2, 4, 8"),
    ("zero3_hpz_bf16", f"{ZERO}.zero_hpz_partition_size", 0, "is 0; it must be a whole number of at least 1"),
    ("zero3_nvme_bf16", f"{ZERO}.offload_optimizer.nvme_path", OUT, "offload_optimizer needs nvme_path; give a folder"),
    ("zero2_bf16", f"{ZERO}.offload_optimizer", {"device": "nvme", "nvme_path": "/x"}, "nvme needs ZeRO stage 3"),
    ("zero3_nvme_bf16", "aio.queue_depth", 0, "is 0; it must be a whole number of at least 1"),
    ("zero3_nvme_bf16", "aio.use_gds", True, "the states are on the CPU here; take it out"),
    ("pipeline_bf16", f"{ZERO}.stage", 2, "ZeRO stage 2 does not go with layout.pp 35"),
    ("pipeline_bf16", f"{ZERO}.offload_optimizer", {"device": "cpu"}, "offload does not go with layout.pp 35"),
    ("pipeline_bf16", "pipeline", {"stages": 4, "partition": "best"}, OUT),
    ("pipeline_bf16", "activation_checkpointing.interval", 0, "is 0; it must be a whole number of at least 1"),
    ("pipeline_bf16", "activation_checkpointing.granularity", "half", 'is "half"; it must be full or selective'),
    ("pipeline_bf16", "activation_checkpointing.partition_activations", True, OUT),
    ("pipeline_bf16", "wall_clock_breakdown", True, "wall_clock_breakdown does not go with layout.pp 35"),
    ("pipeline_bf16", "flops_profiler", {"enabled": True}, "flops_profiler does not go with layout.pp 35"),
    ("zero2_bf16", f"{ZERO}.round_robin_gradients", True, "a checkpoint would hold the weights in another order"),
    # In the wrong section
    ("zero1_bf16", "stage", 2, r"unknown key stage; did you mean zero_optimization\.stage\?"),
    ("zero1_bf16", "optimizer.lr", 1e-4, r"unknown key optimizer\.lr; did you mean optimizer\.params\.lr\?"),
    ("zero1_bf16", f"{ZERO}.bf16", {"enabled": True}, r"unknown key zero_optimization\.bf16; did you mean bf16\?"),
    ("zero1_bf16", "max_grad_norm", 1.0, r"unknown key max_grad_norm; did you mean gradient_clipping\?"),
    ("zero1_bf16", "num-layers", 24, r"unknown key num-layers; take it out; docs/ds_config\.schema\.json lists"),
    ("zero1_bf16", "a\n\x1b[31m", 1, r"unknown key a\\n\\u001b\[31m; take it out"),
    # What is said and what is elsewhere
    ("zero1_bf16", "steps_per_print", 0, "is 0; it must be a whole number of at least 1"),
    ("zero1_bf16", "steps_per_print", "inf", 'is "inf"; it must be a whole number of at least 1'),
    ("zero1_bf16", "log_level", "loud", 'is "loud"; '),
    ("zero1_bf16", "wandb", {"enabled": True, "projct": "x"}, r"unknown key wandb\.projct; did you mean project"),
    ("zero1_bf16", "comms_logger", {"enabled": False}, OUT),
    ("zero1_bf16", "flops_profiler.profile_step", 0, "is 0; it must be a whole number of at least 1"),
    ("zero1_bf16", "elasticity", {"enabled": True}, "is switched on; DeepSpeed 0.19.8 has it no more"),
    ("zero1_bf16", "amp", {"enabled": False}, OUT),
    ("zero1_bf16", "checkpoint", {"writer": {"type": "fast"}}, OUT),
    ("zero1_bf16", "torch_autocast", {"enabled": True, "dtype": "bfloat16"}, "bf16 and fp16 say the precision here"),
    ("zero1_bf16", "tensor_parallel", {"autotp_size": 2}, "layout.tp of the recipe slices the layers; take it out"),
]  # fmt: skip


def edited(name: str, path: str, value: Any) -> JsonFile:
    """A shipped JSON with another value, through its text."""
    config = json.loads(TEXTS[name])
    *sections, key = path.split(".")
    holder = config
    for section in sections:
        holder = holder.setdefault(section, {})
    if value is OUT:
        del holder[key]
    else:
        holder[key] = value
    return parse_text(json.dumps(config, indent=2), "mine.json")


def result(config: JsonFile, name: str) -> Resolved:
    which = "530b" if name.startswith("pipeline") else "345m"
    recipe: Recipe = RECIPES[which]
    return resolve(config, VALUES[which], 8, "mine.json", recipe.batch.ramp, recipe.layout)


def at(config: JsonObject, path: str) -> Any:
    value: Any = config
    for key in path.split("."):
        value = value.get(key, OUT) if isinstance(value, dict) else OUT
    return value


@pytest.mark.parametrize(
    ("name", "path", "value", "wanted"), EDITS, ids=[f"{number}-{edit[1]}" for number, edit in enumerate(EDITS)]
)
def test_an_edit_gives_its_value_or_one_line(name: str, path: str, value: Any, wanted: Any) -> None:
    refused = isinstance(wanted, str) and " " in wanted
    if not refused:
        assert at(result(edited(name, path, value), name).json, path) == wanted or wanted is OUT
        assert wanted is not OUT or at(result(edited(name, path, value), name).json, path) is OUT
        return
    with pytest.raises(UserError) as caught:
        result(edited(name, path, value), name)
    (line,) = caught.value.lines
    assert re.search(wanted, line), line
    assert re.match(r"mine\.json( line \d+)?: [^\n]+; [^\n]+$", line), line
    if value is not OUT and value == value:
        number = int(line.split()[2].rstrip(":"))
        assert 1 < number <= len(json.dumps(json.loads(TEXTS[name]), indent=2).splitlines()) + 12


ODD = ('"x"', "null", "-1", "0", "1", "1e400", "NaN", "[]", "{}", "true", "false", '"auto"', "1e18", "0.5", '[1, "x"]',
       '{"enabled": true}', '{"x": {"y": null}}', "1" * 30, '""', "[[[]]]")  # fmt: skip


def texts() -> Iterator[str]:
    """Every key of the table with every odd value, in a JSON that trains, and in one of its own."""
    base = '"bf16": {"enabled": true}, "zero_optimization": {"stage": 3}'
    for key in ROWS:
        for value in ODD:
            *sections, last = key.split(".")
            text = f'"{last}": {value}'
            for section in reversed(sections):
                text = f'"{section}": {{{text}}}'
            yield f"{{{text}}}"
            if key.split(".")[0] not in ("bf16", "zero_optimization"):
                yield f"{{{base}, {text}}}"


def test_no_text_gives_a_traceback_and_deepspeed_takes_what_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 9,000 JSONs: each is refused in lines, or resolved to what `DeepSpeedConfig` takes."""
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.utils import logger

    monkeypatch.setattr(logger, "level", logging.ERROR)
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda: 0)
    accepted, taken = 0, set()
    for text in texts():
        try:
            config = result(parse_text(text, "mine.json"), "zero").json
        except UserError as error:
            assert all(line.startswith("mine.json") and "\n" not in line for line in error.lines), (text, error.lines)
            continue
        assert '"auto"' not in json.dumps(config) and "NaN" not in json.dumps(config), text
        accepted += 1
        shape = json.dumps(config, sort_keys=True)
        if shape not in taken:
            taken.add(shape)
            config.pop("activation_checkpointing", None)
            DeepSpeedConfig(copy.deepcopy(config), mpu=World())
    assert accepted > 500 and len(taken) > 100


NO_JSON = (
    *("", "{", "[" * 5000, '{"a": ' * 5000, "{" + '"a":1,' * 5000, "\x00", "{}{}", "nul", '{"\\u12"}', "/* x", "// x"),
    *("{,}", '{"a": "\\ud800"}', '{"train_batch_size": 1e999999999999}'),
)


@pytest.mark.parametrize("text", NO_JSON, ids=range(len(NO_JSON)))
def test_what_is_no_json_is_one_line(text: str) -> None:
    with pytest.raises(UserError) as caught:
        result(parse_text(text, "mine.json"), "zero")
    assert all(
        line.startswith("mine.json line ") and "\n" not in line and len(line) < 400 for line in caught.value.lines
    )


@pytest.mark.parametrize(("text", "line"), [
    ('{"bf16": {"enabled": True}}', "line 1: True is no value in JSON; write true"),
    ('{"bf16": {"enabled": true}\n', "line 2: the JSON is not finished; close what was opened"),
    ('{"steps_per_print": 1,', "line 1: the JSON is not finished; close what was opened"),
    ('{“bf16”: {}}', 'line 1 is not JSON: “bf16”: {}}; take plain quotes: "'),
    ('{"steps_per_print"= 1}', "line 1 is not JSON: = 1}; write a colon"),
    ("", "line 1: a DeepSpeed JSON must hold a JSON object; begin it with {"),
])  # fmt: skip
def test_a_slip_has_its_own_remedy(text: str, line: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_text(text, "mine.json")
    assert str(caught.value) == f"mine.json {line}"


@pytest.mark.parametrize(("new", "old"), [('"auto"', "0.3"), ("0.3", '"auto"')])
def test_of_two_spellings_the_one_that_is_no_auto_counts(new: str, old: str) -> None:
    text = f'{{"gradient_clipping": {new}, "optimizer": {{"params": {{"max_grad_norm": {old}}}}}}}'
    assert result(parse_text(text, "mine.json"), "zero").json["gradient_clipping"] == 0.3


def test_a_key_with_a_dot_is_no_section() -> None:
    with pytest.raises(UserError, match=r"unknown key zero_optimization\.stage; write a section as an object"):
        result(parse_text('{"zero_optimization.stage": 1}', "mine.json"), "zero")


@pytest.mark.parametrize("key", ["cpu_offload", "cpu_offload_param"])
def test_an_old_spelling_that_is_auto_switches_nothing_on(key: str) -> None:
    config = result(edited("zero3_bf16", f"{ZERO}.{key}", "auto"), "zero").json
    assert not {"offload_optimizer", "offload_param", key} & set(config[ZERO])


@pytest.mark.parametrize(("path", "value", "note"), [
    ("wandb", {"project": "mine"}, 'wandb has no effect without "enabled": true'),
    ("fp16", {"loss_scale": 128}, 'fp16 has no effect without "enabled": true'),
    ("aio", {"block_size": 4096}, "aio has no effect without offload_optimizer on nvme"),
    ("zero_allow_untested_optimizer", True, "zero_allow_untested_optimizer is dropped: DeepSpeed knows AdamW"),
    ("gradient_predivide_factor", 8, "gradient_predivide_factor has no effect beside prescale_gradients"),
])  # fmt: skip
def test_what_has_no_effect_is_said(path: str, value: Any, note: str) -> None:
    config = edited("zero1_bf16", path, value)
    config["prescale_gradients"] = path == "gradient_predivide_factor"
    assert list(result(config, "zero").notes) == [note]


def test_comments_and_commas_at_the_end_are_read_and_lines_are_kept() -> None:
    text = '// a\n{ # b\n  /* c\n  d */ "a": [1, 2,], "b": {"c": "// no # comment",},\n}'
    read = parse_text(text, "x")
    assert read == {"a": [1, 2], "b": {"c": "// no # comment"}}
    assert read.lines == {"a": 4, "b": 4, "b.c": 4}
