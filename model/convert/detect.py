"""What kind of model a folder holds."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from model.convert import folder, gguf_file, megatron, sharded, universal, zero
from model.convert.foreign import Foreign
from support.errors import UserError

MOST = 200  # characters of what somebody else's library says


def opened(path: Path) -> Foreign:
    """The model in a folder, or in a GGUF. Errors: `UserError` where there is none that can be taken.

    So does reading a parameter later.
    """
    with _in_one_line(path):
        foreign = _found(path)

    def read(name: str) -> Tensor:
        with _in_one_line(path):
            return foreign.read(name)

    return dataclasses.replace(foreign, read=read)


def _found(path: Path) -> Foreign:
    if path.is_file() and path.suffix == gguf_file.SUFFIX:
        return gguf_file.opened(path)
    if not path.is_dir():
        raise UserError(f"{path} is no folder and no GGUF; give one that holds a model")
    if (path / "config.json").exists():
        return folder.opened(path)
    if files := megatron.found(path):
        return megatron.opened(files)
    for kind in (sharded, universal, zero):
        if checkpoint := kind.found(path):
            return kind.opened(checkpoint)
    raise UserError(
        f"{path} holds no model that can be taken: no config.json of Hugging Face's form, no "
        f"mp_rank_00/{megatron.FILE} nor {sharded.SAID} of Megatron-LM's, no checkpoint of DeepSpeed's"
    )


@contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Say in one line that a model holds something else than its form has.

    A pickle or a JSON may have any value in any place, and no list of checks covers them all: whatever is raised as
    they are read is of what they hold. Errors: `UserError`.
    """
    try:
        yield
    except UserError as error:
        if "\n" not in str(error):
            raise
        raise UserError(" ".join(str(error).split())) from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{path} is not laid out as the program writes it that it seems to be of ({reason[:MOST]}); fetch it again"
        ) from error
