"""Minutes of compiling are announced, and never where nothing is compiled."""

from pathlib import Path
from typing import Any

import pytest

from model.engine import config as engine_config
from model.engine.device import will_compile
from recipes.registry import ROOT

OFFLOAD: dict[str, Any] = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


@pytest.fixture(autouse=True)
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled kernels lie: none yet."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("config", "kernel", "remedy"), [
    ({}, "fused_adam", "set optimizer.params.torch_adam to true"),
    (OFFLOAD, "cpu_adam", "set optimizer.params.torch_adam to true"),
])  # fmt: skip
def test_a_kernel_is_announced_until_it_is_there(
    config: dict[str, Any], kernel: str, remedy: str, kernels: Path
) -> None:
    said = will_compile(config)
    assert said.startswith(f"compiling {kernel} for DeepSpeed, minutes") and said.endswith(f"; to do without, {remedy}")
    (kernels / kernel).mkdir()
    (kernels / kernel / "lock").touch()
    assert will_compile(config) == said
    (kernels / kernel / f"{kernel}.so").touch()
    assert will_compile(config) == ""


def test_a_kernel_without_a_remedy_is_announced_too() -> None:
    nvme = engine_config.read(ROOT / "ds_configs" / "zero3_nvme_bf16.json")
    assert will_compile(nvme) == "compiling async_io for DeepSpeed, minutes at the first start and never again"


def test_the_other_shipped_jsons_compile_nothing() -> None:
    for path in (ROOT / "ds_configs").glob("*.json"):
        assert will_compile(engine_config.read(path)) == "" or path.name == "zero3_nvme_bf16.json"
