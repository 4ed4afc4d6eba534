"""The model of a run or a folder, ready to be measured."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from data.samples.objectives import Masking
from data.tokens import tokenisers
from inference.export import load_model
from inference.measuring.losses import Measured, Objective
from inference.measuring.texts import Words
from recipes.recipe import Recipe
from run.checkpoints import Chosen
from run.directory import read_recipe
from support.errors import UserError

LONGEST = 4096  # tokens of a window, of a model of somebody else's that sees more


def measured_run(words: Words, checkpoint: Chosen) -> Measured:
    """The model of a run's checkpoint, in the precision of its training. Errors: `UserError` where it does not fit."""
    recipe = read_recipe(words.path)
    config, entries = recipe.model, tokenisers.entries(words.tokeniser)
    if entries > config.vocab_size - (config.objective == "masked"):
        raise UserError(
            f"{words.path / 'tokeniser'} has {entries} entries for a model of {config.vocab_size}: it is not the one "
            "that the run was trained with; restore that"
        )
    device, end = _device(), words.tokeniser.eos_token_id
    model = load_model(words.path, checkpoint).to(device, _dtype(words.path))
    facts = (config.padded_vocab_size, config.seq_length, entries, end, end)
    return Measured(model, *facts, device, _objective(recipe))


def measured_folder(words: Words, dtype: torch.dtype = torch.float32) -> Measured:
    """The model of a folder of Hugging Face's form. Errors: `UserError` where it holds none.

    In front of a text stands what its tokeniser puts there, or, as in an export's training, the end of a document.
    """
    from transformers.utils import logging

    from inference.foreign import load_folder

    logging.disable_progress_bar()
    logging.set_verbosity_error()  # what is wrong with a folder is told in one line
    folder = load_folder(words.path, dtype)
    end = words.tokeniser.eos_token_id
    framed = words.tokeniser("")["input_ids"] if folder.framed else []

    def scores(tokens_BS: Tensor, prefix_B: Tensor | None, documents_BS: Tensor | None) -> Tensor:
        everything = torch.ones_like(tokens_BS)
        found: Tensor = folder.model(input_ids=tokens_BS, attention_mask=everything, use_cache=False).logits
        return found

    width = folder.model.config.get_text_config().vocab_size
    context, entries = min(folder.context, LONGEST), tokenisers.entries(words.tokeniser)
    return Measured(scores, width, context, entries, framed[0] if framed else end, end, folder.model.device)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _objective(recipe: Recipe) -> Objective:
    data = recipe.data
    masking = Masking(data.masked_share, data.masked_to_mask, data.masked_to_random)
    separate = data.separate_documents
    return Objective(recipe.model.objective, recipe.seed, masking, recipe.model.vocab_size - 1, separate)


def _dtype(run: Path) -> torch.dtype:
    """The precision that a run was trained in; fp32 where this machine computes that one in software."""
    from model.engine.config import parse, precision
    from model.engine.precision import DTYPES, software

    resolved = run / "ds_config.resolved.json"  # an import was never started and has none
    config = parse(resolved if resolved.exists() else run / "ds_config.json")
    if slow := software(config):
        print(f"evaluating in fp32: {slow}", file=sys.stderr)
        return torch.float32
    return DTYPES[precision(config)]
