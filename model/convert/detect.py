"""What kind of model a folder holds."""

from pathlib import Path

from model.convert import folder, megatron
from model.convert.foreign import Foreign
from support.errors import UserError


def opened(path: Path) -> Foreign:
    """The model in a folder. Errors: `UserError` where there is none that can be taken."""
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give one that holds a model")
    if (path / "config.json").exists():
        return folder.opened(path)
    if files := megatron.found(path):
        return megatron.opened(files)
    raise UserError(
        f"{path} holds no model that can be taken: no config.json of Hugging Face's form, and no "
        f"mp_rank_00/{megatron.FILE} of Megatron-LM's"
    )
