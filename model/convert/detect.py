"""What kind of model a folder holds."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.convert import folder, gguf_file, megatron, sharded, universal, zero
from model.convert.foreign import Foreign
from support.errors import UserError


def opened(path: Path) -> Foreign:
    """The model in a folder, or in a GGUF. Errors: `UserError` where there is none that can be taken."""
    if path.is_file() and path.suffix == gguf_file.SUFFIX:
        return gguf_file.opened(path)
    if not path.is_dir():
        raise UserError(f"{path} is no folder and no GGUF; give one that holds a model")
    if (path / "config.json").exists():
        return folder.opened(path)
    with _in_one_line(path):
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
    """Say in one line that a checkpoint holds something else than its form has.

    A pickle may have any value in any place, and no list of checks covers them all. Errors: `UserError`.
    """
    try:
        yield
    except UserError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(
            f"{path} is not laid out as the program writes it that it seems to be of ({reason}); fetch it again"
        ) from error
