"""Reading torch's pickles: tensors and plain values, never code.

`torch.load(weights_only=True)` builds what an allow-list names. What a training program keeps beside the weights
(its arguments, random states) is on the list; classes of the programs that wrote it become empty ones.
"""

import argparse
import codecs
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from support.errors import UserError

PROGRAMS = ("megatron.", "deepspeed.", "apex.", "transformer_engine.")  # whose classes nobody needs here
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


def load(path: Path) -> Any:
    """What a file of `torch.save` holds; tensors stay in the file until they are read, where its form allows that.

    Errors: `UserError` where it cannot be read, or would have to run something to be read.
    """
    inert: list[str] = []
    while True:
        try:
            return _read(path, inert)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+)", str(error))
            if found and found[1].startswith(PROGRAMS) and found[1] not in inert:
                inert.append(found[1])
                continue
            what = f"it asks for {found[1]}" if found else "it is no list of tensors"
            reason = f"holds more than tensors ({what}) and is not read; have it saved as tensors"
            raise UserError(f"{path} {reason}") from None
        except (OSError, RuntimeError, ValueError, EOFError) as error:
            reason = str(error).partition("\n")[0] or "it ends too early"
            raise UserError(f"{path} cannot be read: {reason}; fetch it again") from None


def _read(path: Path, inert: list[str]) -> Any:
    allowed: list[Any] = [*ALLOWED, *((Unknown, name) for name in inert)]
    with torch.serialization.safe_globals(allowed):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
