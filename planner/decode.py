"""A plan for writing with a recipe's model: GPUs, memory, texts at once, tokens a second. Imports no torch.

The formulas are in `planner/decoding.py`; how good they are is in docs/planner.md.
"""

from dataclasses import dataclass

import numpy as np

from model.config import GPTConfig
from model.layout import Layout
from planner.decoding import cache_bytes, decode_work, most_rows, round_seconds, work_bytes
from planner.hardware import GIGA
from planner.search import TENSOR_DEGREES, usable_bytes
from planner.timing import Machine
from planner.values import Cheapest, Cut, DecodePlan, DecodeSpeed, DecodeStage
from planner.work import Work
from recipes.recipe import Recipe
from support.errors import UserError

TIMES = 2  # how many times the GPUs the cheapest layout may take
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Wish:
    """How a model is to write; None is what fits best, and half of the context each for prompt and text.

    Errors: `UserError` for values that cannot be.
    """

    tensor: int | None = None
    pipeline: int | None = None
    precision: str = "bf16"
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    rows: int | None = None  # texts at once

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int) and value < 1:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")

    def lengths(self, context: int) -> tuple[int, int]:
        """Tokens of a prompt and of the text behind it. Errors: `UserError` where both do not fit into the context."""
        prompt, new = self.prompt_tokens, self.new_tokens
        if prompt is None:
            prompt = max(1, context // 2 if new is None else min(context // 2, context - new))
        new = context - prompt if new is None else new
        if prompt + new > context or new < 1:
            raise UserError(
                f"a prompt of {prompt} tokens and {max(new, 1)} new ones do not fit into the context of {context}; "
                "lower --prompt-tokens or --new-tokens"
            )
        return prompt, new


def decode_plan(recipe: Recipe, machine: Machine | None, wish: Wish) -> DecodePlan:
    """What `stagecraft generate` needs of these GPUs, and how fast it is; greedy, every row as long as the wish says.

    Errors: `UserError` where the model cannot write, be cut so, or fit.
    """
    model, gpus = recipe.model, _checked(recipe, machine, wish)
    element, usable = ELEMENT_BYTES[wish.precision], usable_bytes(gpus.gpu)
    prompt, new = wish.lengths(model.seq_length)
    smallest = _smallest(recipe, gpus, wish, prompt, prompt + new)
    asked = wish.tensor is not None and wish.pipeline is not None
    layout = Layout(tp=wish.tensor or 1, pp=wish.pipeline or 1) if asked else smallest
    work = decode_work(model, layout, element, 1, 1)
    most = most_rows(work, usable, prompt, prompt + new)
    if not most:
        more = f"the fewest are tensor {smallest.tp} x pipeline {smallest.pp} = {_cut(smallest)['gpus']} GPUs"
        raise UserError(_too_small(recipe, layout, gpus, work, more))
    rows = layout.pp * most
    if wish.rows and wish.rows > rows:
        raise UserError(
            f"--rows {wish.rows} do not fit: {rows} texts of {prompt + new} tokens do on {_cut(layout)['gpus']} "
            f"{gpus.gpu.name}; lower --rows or --new-tokens, or give a larger --pipeline or --tensor"
        )
    wanted = sorted({1, wish.rows or rows})
    stages = [_stage(work, usable, -(-wanted[-1] // layout.pp), prompt, stage) for stage in range(layout.pp)]
    return {
        "recipe": recipe.name,
        "parameters": model.num_parameters,
        "gpu": gpus.gpu.name,
        "precision": wish.precision,
        "layout": _cut(layout),
        "smallest": _cut(smallest),
        "cheapest": _cheapest(model, gpus, element, prompt, new, layout.tp * layout.pp),
        "prompt_tokens": prompt,
        "new_tokens": new,
        "context": model.seq_length,
        "weight_bytes": model.num_parameters * element,
        "cache_bytes_per_token": 2 * model.num_layers * model.hidden_size * element,
        "usable_bytes": usable,
        "stages": stages,
        "fullest_stage": int(np.argmin([each["room_bytes"] / each["cache_bytes_per_token"] for each in stages])),
        "rows": rows,
        "rows_of_context": layout.pp * most_rows(work, usable, prompt, model.seq_length),
        "speeds": [_speed(model, layout, element, gpus, each, prompt, new) for each in wanted],
        "command": _command(layout, gpus, wish.precision),
    }


def _checked(recipe: Recipe, machine: Machine | None, wish: Wish) -> Machine:
    if recipe.model.objective == "masked":
        raise UserError(f"{recipe.name} has the masked objective and cannot go on from a text; --decode is for others")
    if machine is None:
        raise UserError(f"{recipe.name} is planned for no GPU of the catalogue; give --gpu")
    if wish.precision == "bf16" and not machine.gpu.bf16:
        raise UserError(f"a {machine.gpu.name} has no bf16; give --precision fp16")
    Layout(tp=wish.tensor or 1, pp=wish.pipeline or 1).check(recipe.model)
    return machine


def _cut(layout: Layout) -> Cut:
    return {"tensor": layout.tp, "pipeline": layout.pp, "gpus": layout.tp * layout.pp}


def _smallest(recipe: Recipe, machine: Machine, wish: Wish, prompt: int, columns: int) -> Layout:
    """The fewest GPUs that hold the model and a row of each batch: tensor ranks share a node. Of layouts with equally
    many GPUs the one that writes a single text fastest. A degree that is wished for stays, where one alone is.

    Errors: `UserError` where no layout is enough.
    """
    model, element, usable = recipe.model, ELEMENT_BYTES[wish.precision], usable_bytes(machine.gpu)
    both = wish.tensor is not None and wish.pipeline is not None
    degrees = [wish.tensor] if wish.tensor and not both else _degrees(model, machine)
    stages = [wish.pipeline] if wish.pipeline and not both else range(1, model.num_layers + 1)
    found = []
    for tp in degrees:
        for pp in stages:
            work = decode_work(model, Layout(tp=tp, pp=pp), element, 1, 1)
            if most_rows(work, usable, prompt, columns):
                found.append((tp * pp, round_seconds(work, machine, columns, 1)[0], tp, pp))
                break
    if not found:
        leanest = Layout(tp=max(degrees), pp=max(stages))
        work = decode_work(model, leanest, element, 1, 1)
        more = "no layout with tensor ranks in a node is enough; give a GPU with more memory, or a smaller --new-tokens"
        if (wish.tensor is None) != (wish.pipeline is None):
            more = f"give a larger --{'tensor' if wish.tensor else 'pipeline'}, or leave it out"
        raise UserError(_too_small(recipe, leanest, machine, work, more))
    _, _, tp, pp = min(found)
    return Layout(tp=tp, pp=pp)


def _cheapest(model: GPTConfig, machine: Machine, element: int, prompt: int, new: int, gpus: int) -> Cheapest:
    """Of all layouts of at most twice as many GPUs, tensor ranks in a node, the one that writes most a GPU with as
    many texts as fit."""
    found: list[Cheapest] = []
    for tp in _degrees(model, machine):
        for pp in range(1, min(model.num_layers, TIMES * gpus // tp) + 1):
            layout = Layout(tp=tp, pp=pp)
            work = decode_work(model, layout, element, 1, 1)
            rows = pp * most_rows(work, usable_bytes(machine.gpu), prompt, prompt + new)
            if rows:
                speed = _speed(model, layout, element, machine, rows, prompt, new)["tokens_per_second_with_prompts"]
                found.append({**_cut(layout), "rows": rows, "tokens_per_second": speed})
    return max(found, key=lambda each: each["tokens_per_second"] / each["gpus"])


def _degrees(model: GPTConfig, machine: Machine) -> list[int]:
    """The tensor degrees that a node has GPUs for."""
    return [degree for degree in TENSOR_DEGREES if degree <= machine.gpus_per_node and _cuts(model, degree)]


def _cuts(model: GPTConfig, tp: int) -> bool:
    try:
        Layout(tp=tp).check(model)
    except UserError:
        return False
    return True


def _too_small(recipe: Recipe, layout: Layout, machine: Machine, work: Work, remedy: str) -> str:
    stages = np.arange(float(layout.pp))
    weights = np.broadcast_to(work.parameters(stages) * work.weight_bytes, stages.shape)
    return (
        f"{recipe.name} with a text for each stage does not fit on tensor {layout.tp} x pipeline {layout.pp} of "
        f"{machine.gpu.name}: {float(np.max(weights)) / GIGA:,.1f} GB of weights on the fullest rank, "
        f"{usable_bytes(machine.gpu) / GIGA:,.1f} GB usable; {remedy}"
    )


def _stage(work: Work, usable: float, rows: int, prompt: int, stage: int) -> DecodeStage:
    parameters = round(float(work.parameters(stage)))
    weights, held = parameters * int(work.weight_bytes), float(work_bytes(work, rows, prompt, stage))
    return {
        "blocks": int(work.blocks(stage)),
        "parameters": parameters,
        "weight_bytes": weights,
        "cache_bytes_per_token": round(float(cache_bytes(work, stage))),
        "work_bytes": held,
        "room_bytes": usable - weights - held,
    }


def _speed(
    model: GPTConfig, layout: Layout, element: int, machine: Machine, rows: int, prompt: int, new: int
) -> DecodeSpeed:
    """With as many batches as stages, or as rows where these are fewer. Half of the text stands on average."""
    batches = min(layout.pp, rows)
    each = -(-rows // batches)
    reading = round_seconds(decode_work(model, layout, element, each, prompt), machine, 0, batches)[0]
    step = decode_work(model, layout, element, each, 1)
    token, parts = round_seconds(step, machine, prompt + new / 2, batches)
    return {
        "rows": rows,
        "prompt_seconds": reading,
        "token_seconds": token,
        "token_parts": parts,
        "tokens_per_second": rows / token,
        "tokens_per_second_with_prompts": rows * new / (reading + new * token),
    }


def _command(layout: Layout, machine: Machine, precision: str) -> str:
    ranks, per_node = layout.tp * layout.pp, int(machine.gpus_per_node)
    # Whole stages on each node, where one fits: its tensor ranks send most.
    near = [layout.tp * stages for stages in range(1, layout.pp + 1) if layout.pp % stages == 0]
    here = max([each for each in near if each <= per_node], default=per_node)
    start = f"torchrun --nproc-per-node {here}"
    if ranks > here:
        start += f" --nnodes {-(-ranks // here)}"
    start = f"{start} -m -- commands generate" if ranks > 1 else "stagecraft generate"
    cut = f" --tensor {layout.tp} --pipeline {layout.pp}" if ranks > 1 else ""
    return f"{start}{cut} --precision {precision}"
