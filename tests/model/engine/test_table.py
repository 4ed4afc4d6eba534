"""The table of keys against DeepSpeed 0.19.8: what a newer one adds, renames or gives another default shows here."""

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic_core import PydanticUndefined

from model.engine.json_schema import schema
from model.engine.reading import parse_text
from model.engine.table import NEEDED, ROWS, inside
from recipes.registry import ROOT
from tests.model.engine.test_real_jsons import REAL

HERE = {"taken", "ours", "moved", "dropped", "silent", "off"}


def models() -> dict[str, Any]:
    """DeepSpeed's own classes, by the section that they describe."""
    from deepspeed.comm import config as comm
    from deepspeed.monitor import config as monitors
    from deepspeed.runtime import precision_config
    from deepspeed.runtime.zero import config as zero
    from deepspeed.runtime.zero import offload_config
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    return {
        "bf16": precision_config.DeepSpeedBF16Config,
        "fp16": precision_config.DeepSpeedFP16Config,
        "zero_optimization": zero.DeepSpeedZeroConfig,
        "zero_optimization.offload_param": offload_config.DeepSpeedZeroOffloadParamConfig,
        "zero_optimization.offload_optimizer": offload_config.DeepSpeedZeroOffloadOptimizerConfig,
        "wandb": monitors.WandbConfig,
        "tensorboard": monitors.TensorBoardConfig,
        "csv_monitor": monitors.CSVConfig,
        "comms_logger": comm.CommsLoggerConfig,
        "timers.throughput": DeepSpeedThroughputTimerConfig,
    }


def fields() -> Iterator[tuple[str, Any, Any]]:
    """Each field of those classes: its key, its default, its bounds."""
    for section, model in models().items():
        for name, field in model.model_fields.items():
            for spelling in {name, field.alias or name}:
                default = None if field.default is PydanticUndefined else field.default
                yield f"{section}.{spelling}", default, field.metadata


def test_every_field_of_deepspeed_s_classes_is_in_the_table() -> None:
    missing = {key for key, _, _ in fields()} - set(ROWS)
    assert missing == set()


def same(ours: Any, theirs: Any) -> bool:
    return ours == getattr(theirs, "value", theirs)


def test_defaults_and_bounds_are_deepspeed_s() -> None:
    for key, default, bounds in fields():
        row = ROWS[key]
        if row.here in ("taken", "dropped") and row.type not in ("section", "free"):
            # Where the run says where monitors write, and under which name, DeepSpeed's defaults do not act.
            monitor = key.split(".")[0] in ("wandb", "tensorboard", "csv_monitor") and not key.endswith("enabled")
            assert monitor or same(row.default, default), f"{key}: {default}"
        for bound in bounds if row.here != "off" else ():
            low = getattr(bound, "ge", getattr(bound, "gt", None))
            assert low is None or row.low >= low, key
            high = getattr(bound, "le", None)
            assert high is None or row.high <= high, key


def top_level_keys() -> set[str]:
    """The names that `runtime/config.py` and the modules that it calls look up in the JSON itself."""
    from deepspeed.autotuning import constants as autotuning
    from deepspeed.datastates import config as datastates
    from deepspeed.profiling import constants as profiling
    from deepspeed.runtime import config, constants
    from deepspeed.runtime.activation_checkpointing import config as recomputation
    from deepspeed.runtime.data_pipeline import constants as pipeline
    from deepspeed.runtime.swap_tensor import constants as swapping
    from deepspeed.runtime.tensor_parallel import config as slicing

    modules = (constants, autotuning, datastates, profiling, recomputation, pipeline, swapping, slicing, config)
    names = {name: value for module in modules for name, value in vars(module).items() if isinstance(value, str)}
    found = set(config._REMOVED_TOP_LEVEL_CONFIG_KEYS)
    for function in vars(config).values():
        if not (inspect.isfunction(function) or inspect.isclass(function)) or function.__module__ != config.__name__:
            continue
        for call in ast.walk(ast.parse(inspect.getsource(function).lstrip())):
            found |= {names.get(name, name) for name in looked_up(call)}
    return found


def looked_up(node: ast.AST) -> set[str]:
    """What `get_scalar_param(param_dict, NAME, …)`, `param_dict.get(NAME)`, `param_dict[NAME]` and `NAME in param_dict`
    look up.
    """
    found: list[ast.expr] = []
    match node:
        case ast.Call(func=ast.Name(id="get_scalar_param"), args=[ast.Name(id="param_dict"), key, *_]):
            found = [key]
        case ast.Call(func=ast.Attribute(value=ast.Name(id="param_dict"), attr="get"), args=[key, *_]):
            found = [key]
        case ast.Subscript(value=ast.Name(id="param_dict"), slice=key):
            found = [key]
        case ast.Compare(left=key, comparators=[ast.Name(id="param_dict")]):
            found = [key]
    names = {getattr(each, "id", getattr(each, "value", None)) for each in found}
    return {name for name in names if isinstance(name, str)} - {"key", "comm_type"}


def test_every_key_that_deepspeed_looks_up_is_in_the_table() -> None:
    found = top_level_keys()
    assert {"train_batch_size", "gradient_allreduce_op", "disable_python_gc", "amp", "compile", "checkpoint"} <= found
    assert len(found) > 40 and found - set(ROWS) == set()


def constants_of(module: Any, prefix: str) -> set[str]:
    """The keys of a section that has no class: constants whose names begin alike, without defaults and formats."""
    found = {name: value for name, value in vars(module).items() if name.startswith(prefix) and isinstance(value, str)}
    return {value for name, value in found.items() if not name.endswith(("_DEFAULT", "_FORMAT")) and " " not in value}


def test_sections_without_a_class_are_in_the_table() -> None:
    from deepspeed.profiling import constants as profiling
    from deepspeed.runtime import constants
    from deepspeed.runtime.activation_checkpointing import config as recomputation
    from deepspeed.runtime.swap_tensor import aio_config
    from deepspeed.runtime.zero import config as zero  # noqa: F401 - DeepSpeed's modules import each other in this order

    assert constants_of(profiling, "FLOPS_PROFILER_") <= set(inside("flops_profiler"))
    taken = {key: row.default for key, row in inside("aio").items() if row.here == "taken"}
    assert taken == aio_config.AIO_DEFAULT_DICT
    assert set(recomputation.ACT_CHKPT_DEFAULT) <= set(inside("activation_checkpointing"))
    types = {constants.GRAD_ACCUM_DTYPE, constants.PARAM_DTYPE, constants.BUFFER_DTYPE, constants.KEEP_IN_FP32_MODULES}
    assert types == set(inside("data_types"))
    assert ROWS["gradient_clipping"].default == constants.GRADIENT_CLIPPING_DEFAULT
    for key, row in ROWS.items():
        name = f"{key.upper()}_DEFAULT"
        if hasattr(constants, name) and row.here == "taken" and key != "train_batch_size":
            assert row.default == getattr(constants, name) or row.default is None, key


def test_what_deepspeed_has_no_more_is_off_or_dropped() -> None:
    from deepspeed.runtime import config

    for key in config._REMOVED_TOP_LEVEL_CONFIG_KEYS:
        assert ROWS[key].here in ("off", "dropped"), key
    for key in config._REMOVED_ZERO_CONFIG_KEYS:
        assert ROWS[f"zero_optimization.{key}"].here in ("off", "dropped"), key


def test_the_schedulers_are_deepspeed_s() -> None:
    from deepspeed.runtime import lr_schedules

    kinds = set(ROWS["scheduler.type"].only)
    assert kinds == set(lr_schedules.VALID_LR_SCHEDULES)
    for kind in kinds:
        known = dict(inspect.signature(getattr(lr_schedules, kind)).parameters)
        del known["optimizer"]
        rows = {key: row for key, row in inside("scheduler.params").items() if kind in row.of}
        assert rows.keys() == known.keys(), kind
        for key, parameter in known.items():
            default = NEEDED if parameter.default is parameter.empty else parameter.default
            assert rows[key].of[kind] == default, f"{kind}.{key}"


def test_what_deepspeed_takes_as_it_comes() -> None:
    """Why peaks are filled in and numbers are bounded here."""
    from deepspeed.runtime import lr_schedules, precision_config

    assert inspect.signature(lr_schedules.WarmupDecayLR).parameters["warmup_max_lr"].default == 0.001
    half = precision_config.DeepSpeedFP16Config(enabled=True, initial_scale_power=500)
    assert half.initial_dynamic_scale() == 2**500


def test_a_section_of_the_message_logger_switches_it_on_by_being_there() -> None:
    """Why the section is taken out where it says that it is off."""
    from deepspeed.comm.config import DeepSpeedCommsConfig

    assert DeepSpeedCommsConfig({"comms_logger": {"enabled": False}}).comms_logger_enabled


def test_the_optimizer_s_parameters_are_those_of_its_kernels() -> None:
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from torch.optim import AdamW

    ours = set(inside("optimizer.params")) - {"torch_adam", "adam_w_mode", "max_grad_norm"}
    theirs = {name for kind in (DeepSpeedCPUAdam, FusedAdam, AdamW) for name in inspect.signature(kind).parameters}
    assert ours <= theirs
    assert {"fused", "foreach"} <= set(inspect.signature(AdamW).parameters)
    for kind in (DeepSpeedCPUAdam, FusedAdam):
        assert not {"fused", "foreach"} & set(inspect.signature(kind).parameters)


@pytest.mark.parametrize("key", list(ROWS))
def test_a_row_is_whole(key: str) -> None:
    row = ROWS[key]
    assert row.here in HERE and row.auto in ("", "default", "recipe")
    assert row.doc.endswith(".") and len(row.doc) <= 120
    assert not row.why or not row.why.endswith(".")
    assert row.why or row.here not in ("dropped", "off")
    parent = key.rpartition(".")[0]
    assert not parent or ROWS[parent].type == "section"
    assert (row.here == "moved") == bool(row.to) and (not row.to or row.to in ROWS)
    if row.default is not None and row.type not in ("section", "free") and row.type != "list":
        assert row.fitted(row.default) == row.default
    for value in row.of.values():
        assert value in (None, NEEDED) or row.fitted(value) == value


def test_the_schema_for_editors_is_the_table_s() -> None:
    """Made anew by: python -m model.engine.json_schema."""
    assert json.loads((ROOT / "docs" / "ds_config.schema.json").read_text()) == schema()


def keys_of(described: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    found = {}
    for key, value in described.get("properties", {}).items():
        found[prefix + key] = value
        found |= keys_of(value, f"{prefix}{key}.")
    return found


def test_an_editor_sees_each_key_with_its_words() -> None:
    found = keys_of(schema())
    assert {key for key in found if not key.startswith("bfloat16.")} == set(ROWS)
    assert found["bfloat16"]["properties"] == found["bf16"]["properties"]
    for key, row in ROWS.items():
        assert found[key]["description"].startswith(row.doc), key
    assert found["bfloat16"]["deprecated"] and found["zero_optimization"]["additionalProperties"] is False
    assert found["optimizer.params.lr"]["anyOf"] == [
        {"type": "number", "minimum": 0},
        {"const": "auto"},
        {"type": "null"},
    ]
    assert found["zero_optimization.stage"]["anyOf"][0] == {"enum": [0, 1, 2, 3]}


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_the_shipped_jsons_fit_the_schema(path: Path) -> None:
    jsonschema.validate(json.loads(path.read_text()), schema())


@pytest.mark.parametrize("kind", list(REAL))
def test_what_is_taken_fits_the_schema(kind: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(dict(parse_text(REAL[kind][0], "x")), schema())


def test_no_row_names_a_file_that_is_not_there() -> None:
    for row in ROWS.values():
        for command in re.findall(r"stagecraft (\w+)", row.doc + row.why):
            assert (ROOT / "commands" / f"{command}.py").exists(), row.key
