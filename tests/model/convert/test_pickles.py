"""A pickle gives tensors and plain values; what would run is not read."""

import argparse
import random
import sys
import types
import zipfile
from pathlib import Path, PosixPath

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.planner import WriteItemType

from model.convert import pickles, sharded
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


def test_what_another_library_allows_is_not_allowed_here(tmp_path: Path) -> None:
    """Megatron-core puts paths on torch's list when it is imported."""
    torch.save({"a": Path("x")}, tmp_path / "x.pt")
    with torch.serialization.safe_globals([PosixPath]):
        with pytest.raises(UserError, match="asks for pathlib"):
            pickles.load(tmp_path / "x.pt")
        assert PosixPath in torch.serialization.get_safe_globals()


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


PATH, LAYOUT = b"cpathlib\nPosixPath\n", b"ctorch.serialization\n_get_layout\n"
SET = b"(N}X\x04\x00\x00\x00evilNstb."  # an attribute of what comes before


@pytest.mark.parametrize(
    ("content", "subject", "words"),
    [
        (PATH + SET, PosixPath, "asks for PosixPath.__dict__"),
        (LAYOUT + SET, torch.serialization._get_layout, "asks for _get_layout.__dict__"),
        (
            b"ctorch.distributed.checkpoint.planner\nWriteItemType\nK\x01\x85R" + SET,
            WriteItemType.TENSOR,
            "WriteItemType",
        ),
    ],
    ids=["class", "function", "member"],
)
def test_what_was_there_before_stays_as_it_is(tmp_path: Path, content: bytes, subject: object, words: str) -> None:
    (tmp_path / "x").write_bytes(b"\x80\x02" + content)
    with pytest.raises(UserError, match=words):
        pickles.plain(tmp_path / "x", sharded.ALLOWED)
    assert not hasattr(subject, "evil")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",  # longer than a text can be
        b"\x80\x04\x95" + b"\xff" * 8 + b".",
        b"\x80\x02X\x05",
        b"\x80\x02h\x05.",
        b"\x80\x02(c_codecs\nencode\n)R.",
        b"\x80\x02c_codecs\nencode\nK\x01\x85R.",
    ],
)
def test_bytes_that_mean_nothing_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.pkl").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        for name, value in (("data.pkl", content), ("version", b"3\n"), ("byteorder", b"little")):
            file.writestr(f"archive/{name}", value)
    for read in (lambda: pickles.plain(tmp_path / "data.pkl", ()), lambda: pickles.load(tmp_path / "x.pt")):
        with pytest.raises(UserError) as raised:
            read()
        assert "\n" not in str(raised.value)
