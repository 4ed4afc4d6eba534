"""A pickle gives tensors and plain values; what would run is not read."""

import argparse
import random
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from model.convert import pickles
from support.errors import UserError


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, (f"open({str(self.path)!r}, 'w')",))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_megatron_keeps_beside_the_weights_is_read(tmp_path: Path, zipped: bool) -> None:
    args = argparse.Namespace(num_layers=3, params_dtype=torch.float16, lr=1e-4)
    states = {"random": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    torch.save(
        {"a": torch.arange(6.0), "args": args, "rng": states},
        tmp_path / "x.pt",
        _use_new_zipfile_serialization=zipped,
    )
    held = pickles.load(tmp_path / "x.pt")
    assert held["a"].equal(torch.arange(6.0)) and held["args"] == args
    assert np.array_equal(held["rng"]["numpy"][1], states["numpy"][1])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_class_of_the_program_that_wrote_it_is_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    module = types.ModuleType("megatron.enums")
    module.Kind = type("Kind", (), {"__module__": "megatron.enums", "__qualname__": "Kind"})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "megatron.enums", module)
    kind = module.Kind()
    kind.size = 7
    torch.save({"a": torch.ones(2), "kind": kind}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "megatron.enums")
    held = pickles.load(tmp_path / "x.pt")
    assert held["a"].equal(torch.ones(2)) and not vars(held["kind"])


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_would_run_is_named_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    torch.save({"a": Harmful(tmp_path / "harm")}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"holds more than tensors \(it asks for eval\)") as raised:
        pickles.load(tmp_path / "x.pt")
    assert "\n" not in str(raised.value) and not (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"PK\x03\x04torn"])
def test_a_torn_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.pt") as raised:
        pickles.load(tmp_path / "x.pt")
    assert "\n" not in str(raised.value)
