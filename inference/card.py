"""The card of an exported model: what it is and what it was trained on, as the run's files say."""

import math
from pathlib import Path

from data.corpus.corpora import hub_of
from data.corpus.examples import AUTO
from data.corpus.named import CORPORA
from inference.form import Form
from model.config import LoRA
from model.engine.values import precision, zero_stage
from recipes.recipe import Recipe
from run import record
from run.checkpoints import Chosen, validation_losses
from run.directory import read_recipe
from run.metrics import loss_unit, read_steps
from support import json_lines
from support.json_object import JsonObject

USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokeniser = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
batch = tokeniser(["Once upon a time", "The"], return_tensors="pt", padding=True)
print(tokeniser.batch_decode(model.generate(**batch, max_new_tokens=50), skip_special_tokens=True))
```"""


def text(run: Path, checkpoint: Chosen, form: Form) -> str:
    """The card (README.md) of a run's model at a checkpoint, in Markdown with the hub's header."""
    from huggingface_hub import ModelCardData

    from model.checkpoint.format import manifest

    recipe, samples = read_recipe(run), manifest(checkpoint.path)["state"]["consumed_samples"]
    parts = record.read_object(run / "data.json").get("parts", [])
    hubs = sorted({hub.name for part in parts if (hub := hub_of(part["corpus"]))})
    header = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", tags=["gpt2"], datasets=hubs or None
    )
    model = recipe.model
    facts = {
        "parameters": f"{model.num_parameters:,}, with rows of the embedding that no token has",
        "layers, width, heads": f"{model.num_layers}, {model.hidden_size}, {model.num_attention_heads}",
        "context": f"{model.seq_length:,} tokens",
        "weights": form.dtype or "fp32",
        "trained on": f"{samples * model.seq_length:,} tokens, {checkpoint.step:,} steps",
        **_losses(run, checkpoint.step),
        **_how(run),
        **_origin(run),
        **_adapters(recipe.lora),
        "recipe": f"{recipe.name}: {recipe.source}",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    lines = [
        f"---\n{header.to_yaml()}\n---",
        f"# {recipe.name}\n\nA GPT that Stagecraft {'trained' if samples else 'imported and did not train'}. "
        + _asked(recipe, samples > 0),
        f"{USE}\n\nThe tokeniser pads on the left, as text that is gone on with needs it.",
        f"| | |\n| --- | --- |\n{table}",
        f"## Data\n\n{_data(parts)}",
    ]
    return "\n\n".join(lines) + "\n"


def _asked(recipe: Recipe, trained: bool) -> str:
    """What it was taught, as far as it was here."""
    data = recipe.data
    if not (data.tunes and trained):
        return "It goes on with a text; it was not taught to answer."
    if recipe.dpo.beta:
        return f"It was taught which of two answers is the better one (DPO, beta {recipe.dpo.beta:g})."
    rows = "prompt and completion, or messages" if data.template == AUTO else f"`{data.template!r}`"
    return f"It was taught to answer, by rows of the form {rows}."


def _losses(run: Path, step: int) -> dict[str, str]:
    """The losses that were measured at a step."""
    of = loss_unit(read_recipe(run))
    trained = next((line["loss"] for line in read_steps(run / "metrics.jsonl") if line.get("step") == step), None)
    validation = validation_losses(run).get(step)
    found = {"training loss": trained, "validation loss": validation}
    return {name: f"{loss:.4f} nats {of}" for name, loss in found.items() if loss is not None and math.isfinite(loss)}


def _how(run: Path) -> dict[str, str]:
    """On what it was trained last: ranks, layout, precision, versions."""
    engine, layout = record.read_object(run / "ds_config.resolved.json"), read_recipe(run).layout
    starts = json_lines.read_end(run / "starts.jsonl")
    if not (engine and starts):
        return {}
    last, stage = starts[-1], zero_stage(engine)
    ranks = f"{last.get('world_size', 'unknown')} ranks of {last.get('device', 'an unknown device')}"
    degrees = f"tensor {layout.tp}, pipeline {layout.pp}, Ulysses {layout.ulysses}"
    versions = {"python": last.get("python"), **last.get("versions", {})}
    return {
        "layout": f"{ranks}; {degrees}, ZeRO stage {stage}, {precision(engine)}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "commit": str(last.get("commit", "unknown")),
    }


def _origin(run: Path) -> dict[str, str]:
    """Where a branch began. Its parent is called by its id: a path is nobody else's business."""
    known = record.read(run)
    if not known or not known.parent:
        return {}
    return {"begun with": f"the weights of run {known.parent.id or 'unknown'} after step {known.parent.step:,}"}


def _adapters(lora: LoRA) -> dict[str, str]:
    """What trained beside frozen weights."""
    if not lora.rank:
        return {}
    return {"tuned": f"with LoRA of rank {lora.rank} and alpha {lora.alpha:g} beside {', '.join(lora.targets)}, merged"}


def _data(parts: list[JsonObject]) -> str:
    """A table of the corpora with their shares and licences."""
    if not parts:
        return "Unknown: the run keeps no description of what it read."
    rows = []
    for part in parts:
        known = CORPORA.get(part["corpus"])
        name, licence = (
            (f"{known.name}: {known.description}", known.licence)
            if known
            else (_public(part), "unknown: ask its owner")
        )
        rows.append(f"| {name} | {part['share']:.2%} | {part['train']['tokens']:,} | {licence} |")
    return "\n".join(["| corpus | share | tokens | licence |", "| --- | --- | --- | --- |", *rows])


def _public(part: JsonObject) -> str:
    """What to call a corpus that is no named one: its hub id, or of a path the last piece."""
    corpus = str(part["corpus"])
    return corpus if hub_of(corpus) else Path(corpus).name
