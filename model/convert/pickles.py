"""Reading torch's pickles: tensors and plain values, never code.

`torch.load(weights_only=True)` builds what an allow-list names. What a training program keeps beside the weights
(its arguments, random states) is on the list; classes of the programs that wrote it become empty ones.
"""

import argparse
import codecs
import dataclasses
import io
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from support.errors import UserError

PROGRAMS = ("megatron.", "deepspeed.", "apex.", "transformer_engine.")  # whose classes nobody needs here
GLOBAL = re.compile(r"GLOBAL (\S+)")
# What bytes that are no pickle, or a damaged one, make of reading them: they may mean anything.
TORN = (
    ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError, OSError,
    RuntimeError, TypeError, ValueError, struct.error,
)  # fmt: skip
BUILD: Any = pickle._Unpickler.dispatch[pickle.BUILD[0]]
RECONSTRUCT: Any = np.zeros(1).__reduce__()[0]  # of an array; numpy 2 keeps it elsewhere than numpy 1
ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in ("uint32", "int64", "float64")},
    codecs.encode,
    (RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
    (RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
]


class Unknown:
    """Stands for a class of another program: takes what that took, and does nothing."""

    def __new__(cls, *_: object) -> "Unknown":
        return super().__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Keep nothing."""


class _Plain(pickle._Unpickler):
    """Builds what is on a list, by module and name, and nothing else.

    It is Python's own, not C's, because only that can be kept from setting attributes of what was there before: a
    pickle could give all of this program's paths another method.
    """

    stack: list[Any]  # what was built and not yet put into something

    def __init__(self, file: BinaryIO, allowed: Container[tuple[str, str]]) -> None:
        super().__init__(file)
        self._allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}")
        return super().find_class(module, name)

    def _build(self) -> None:
        value = self.stack[-2]
        if not dataclasses.is_dataclass(type(value)):  # all that is on a list and has attributes is one
            name = getattr(value, "__qualname__", type(value).__qualname__)
            raise pickle.UnpicklingError(f"GLOBAL {name}.__dict__")
        BUILD(self)

    dispatch = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: cast(Any, _build)}  # noqa: RUF012


def load(path: Path, span: tuple[int, int] | None = None) -> Any:
    """What a file of `torch.save` holds; tensors stay in the file until they are read, where its form allows that.

    `span` is where it lies in a file of several: its first byte and how many. Errors: `UserError` where it cannot be
    read, or would have to run something to be read.
    """
    inert: list[str] = []
    while True:
        try:
            return _read(path, span, inert)
        except pickle.UnpicklingError as error:
            found = GLOBAL.search(str(error))
            if found and found[1].startswith(PROGRAMS) and found[1] not in inert:
                inert.append(found[1])
                continue
            raise _refused(path, found) from None
        except TORN as error:
            raise _torn(path, error) from None


def plain(path: Path, allowed: Container[tuple[str, str]]) -> Any:
    """What a file of `pickle.dump` holds, of classes that are `allowed`, each as its module and name.

    Errors: `UserError` where it cannot be read, or asks for another class.
    """
    try:
        with path.open("rb") as file:
            return _Plain(file, allowed).load()
    except pickle.UnpicklingError as error:
        found = GLOBAL.search(str(error))
        raise (_refused(path, found) if found else _torn(path, error)) from None
    except TORN as error:
        raise _torn(path, error) from None


def _read(path: Path, span: tuple[int, int] | None, inert: list[str]) -> Any:
    with _only([*ALLOWED, *((Unknown, name) for name in inert)]):
        if span is None:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        with path.open("rb") as file:
            file.seek(span[0])
            return torch.load(io.BytesIO(file.read(span[1])), map_location="cpu", weights_only=True)


@contextmanager
def _only(allowed: list[Any]) -> Iterator[None]:
    """Have torch's allow-list hold this alone, and not what another library of this process has put there."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(allowed):
            yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _refused(path: Path, found: re.Match[str] | None) -> UserError:
    what = f"it asks for {found[1]}" if found else "it is no list of tensors"
    return UserError(f"{path} holds more than tensors ({what}) and is not read; have it saved as tensors")


def _torn(path: Path, error: Exception) -> UserError:
    reason = str(error).partition("\n")[0] or "it ends too early"
    return UserError(f"{path} cannot be read: {reason}; fetch it again")
