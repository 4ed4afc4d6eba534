"""A precision that the machine computes in software is noticed, by measuring."""

from pathlib import Path

import pytest
import torch

from model.engine import precision
from model.engine.config import fp32_json, read
from model.layout import Layout
from recipes.registry import ROOT

SECONDS = {torch.float32: 2e-4, torch.bfloat16: 48e-4, torch.float16: 1e-4}


@pytest.fixture
def software_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes 24 times as long in bf16, and half as long in fp16."""
    monkeypatch.setattr(precision, "_seconds", lambda square: SECONDS[square.dtype])


def test_the_factor_is_measured_against_fp32(software_bf16: None) -> None:
    assert precision.slowdown(torch.bfloat16, torch.device("cpu")) == pytest.approx(24)
    assert precision.slowdown(torch.float16, torch.device("cpu")) == pytest.approx(0.5)


def test_software_is_said_with_its_factor(software_bf16: None) -> None:
    said = "this CPU computes bf16 in software: a matrix product takes 24 times as long as in fp32"
    assert precision.software({"bf16": {"enabled": True}}) == said
    assert precision.software({"fp16": {"enabled": True}}) == precision.software({}) == ""


def test_a_product_in_the_real_precisions_is_timed() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert 0 < precision.slowdown(dtype, torch.device("cpu")) < 10_000


@pytest.mark.parametrize("path", sorted((ROOT / "ds_configs").glob("*.json")), ids=lambda path: path.stem)
def test_the_json_to_take_exists(path: Path) -> None:
    config = read(path)
    assert (ROOT / fp32_json(config, Layout(pp=2 if path.stem.startswith("pipeline") else 1))).is_file()
