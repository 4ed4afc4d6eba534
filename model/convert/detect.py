"""What kind of model a folder holds."""

from pathlib import Path

from model.convert import folder, gguf_file, megatron, universal
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
    if checkpoint := universal.found(path):
        return universal.opened(checkpoint)
    raise UserError(
        f"{path} holds no model that can be taken: no config.json of Hugging Face's form, no "
        f"mp_rank_00/{megatron.FILE} of Megatron-LM's, no universal checkpoint of DeepSpeed's"
    )
