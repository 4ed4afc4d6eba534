"""What kind of model a folder holds."""

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
    if files := megatron.found(path):
        return megatron.opened(files)
    for kind in (sharded, universal, zero):
        if checkpoint := kind.found(path):
            return kind.opened(checkpoint)
    raise UserError(
        f"{path} holds no model that can be taken: no config.json of Hugging Face's form, no "
        f"mp_rank_00/{megatron.FILE} nor {sharded.SAID} of Megatron-LM's, no checkpoint of DeepSpeed's"
    )
