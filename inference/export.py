"""The weights and the tokeniser of a run, and its export."""

from pathlib import Path
from typing import TYPE_CHECKING

from inference import adapters, card, folder, gguf_file
from inference.form import Form
from inference.weights import Weights
from run.checkpoints import Chosen, choose
from run.directory import read_recipe
from support.errors import UserError
from support.files import enough_room

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

    from model.gpt import GPT

FOLDER = Form()


def load_model(run: Path, checkpoint: Chosen) -> "GPT":
    """The model of a run's checkpoint, fp32, on the CPU. Errors: `UserError` where it is of another shape."""
    from model.checkpoint.overlay import reader_of
    from model.gpt import GPT

    model = GPT(read_recipe(run).model)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    model.load_state_dict(reader_of(checkpoint.path).weights(shapes))
    return model.eval()


def load_tokeniser(run: Path) -> "PreTrainedTokenizerFast":
    """The tokeniser that a run was trained with. Errors: `UserError` where it is missing."""
    from data.tokens import tokenisers

    if not (run / "tokeniser").is_dir():
        raise UserError(f"{run / 'tokeniser'} is missing; restore it: the folder of the run's data holds a copy")
    return tokenisers.load(str(run / "tokeniser"))


def load_as_hf(run: Path, checkpoint: Chosen) -> "tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]":
    """A run as transformers knows it. The model has a row for each id of the tokeniser and no other: none is drawn."""
    from data.tokens import tokenisers
    from model.huggingface import to_hf

    model, tokeniser = load_model(run, checkpoint), load_tokeniser(run)
    entries = tokenisers.entries(tokeniser)
    return to_hf(model, entries, tokeniser.eos_token_id, tokeniser.pad_token_id), tokeniser


def export(run: Path, out: Path, which: str | None = None, form: Form = FOLDER) -> Chosen:
    """Write model and tokeniser so that others load them from `out`: a folder or, as GGUF, a file; or adapters alone.

    `which` is a checkpoint, see `run/checkpoints.py`. What is written appears whole or not at all. Errors: `UserError`
    where `out` holds something else already, there is no such checkpoint, or it is not one of this model or tokeniser;
    `NoRoomError`.
    """
    from data.tokens import tokenisers

    {"hf": folder, "gguf": gguf_file, "adapter": adapters}[form.format].check(out)
    checkpoint = choose(run, which)
    checkpoint.tell()
    if form.format == "adapter":
        adapters.write(out, run, checkpoint)
        return checkpoint
    weights, tokeniser = Weights(run, checkpoint), load_tokeniser(run)
    if (entries := tokenisers.entries(tokeniser)) > weights.config.vocab_size:
        raise UserError(
            f"{run / 'tokeniser'} has {entries} entries for a model of {weights.config.vocab_size}: it is not the one "
            "that the run was trained with; restore that"
        )
    with enough_room(out):
        if form.format == "gguf":
            gguf_file.write(out, weights, tokeniser, read_recipe(run).name, form)
        else:
            folder.write(out, weights, tokeniser, card.text(run, checkpoint, form), form)
    return checkpoint
