"""The weights and the tokeniser of a run, and its export as a Hugging Face folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from run.checkpoints import Chosen, choose
from run.directory import read_recipe
from support.errors import UserError
from support.files import whole_folder

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    from model.gpt import GPT


EXPORTED_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def load_model(run: Path, checkpoint: Chosen) -> "GPT":
    """The model of a run's checkpoint, fp32, on the CPU. Errors: `UserError` where it is of another shape."""
    from model.checkpoint.read import Reader
    from model.gpt import GPT

    model = GPT(read_recipe(run).model)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    model.load_state_dict(Reader(checkpoint.path).weights(shapes))
    return model.eval()


def load_tokeniser(run: Path) -> "PreTrainedTokenizerFast":
    """The tokeniser that a run was trained with. Errors: `UserError` where it is missing."""
    from data.tokens import tokenisers

    return tokenisers.load(str(run / "tokeniser"))


def load_as_hf(run: Path, checkpoint: Chosen) -> "tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]":
    """A run as transformers knows it. The model has a row for each id of the tokeniser and no other: none is drawn."""
    from data.tokens import tokenisers
    from model.huggingface import to_hf

    model, tokeniser = load_model(run, checkpoint), load_tokeniser(run)
    entries = tokenisers.entries(tokeniser)
    return to_hf(model, entries, tokeniser.eos_token_id, tokeniser.pad_token_id), tokeniser


def export(run: Path, folder: Path, which: str | None = None) -> Chosen:
    """Write model and tokeniser so that `AutoModelForCausalLM` and `AutoTokenizer` load them from `folder`.

    `which` is a checkpoint, see `run/checkpoints.py`. The folder appears whole or not at all. Errors: `UserError` where
    it holds something else already, or there is no such checkpoint.
    """
    from transformers.utils import logging

    if folder.exists() and not (folder.is_dir() and {file.name for file in folder.iterdir()} <= EXPORTED_FILES):
        raise UserError(f"{folder} exists and is not an export; give another --out")
    logging.disable_progress_bar()
    checkpoint = choose(run, which)
    checkpoint.tell()
    model, tokeniser = load_as_hf(run, checkpoint)
    tokeniser.model_max_length = model.config.n_positions
    with whole_folder(folder) as scratch:
        model.save_pretrained(str(scratch))
        tokeniser.save_pretrained(str(scratch))
        for file in scratch.iterdir():  # safetensors gives its files to their owner alone
            file.chmod(scratch.stat().st_mode & 0o666)
    return checkpoint
