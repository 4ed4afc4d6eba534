"""Walk a recipe on this machine: `stagecraft rehearse gpt_530b`.

The same recipe object and the same JSON, narrow: train, evaluate, save, SIGKILL, resume, compare with an unbroken run,
export. Every axis of the layout that is split stays split where the processes allow.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from launch.progress import Watch
from recipes.recipe import Part, Recipe
from recipes.registry import ROOT
from recipes.settings import override, spelled
from run.directory import runs_root
from run.metrics import read_steps, reproducible
from support.errors import UserError
from support.json_object import JsonObject
from support.terminal import Say

STEPS = 10
TRIES = 3  # to kill a rank before the last step: on a busy machine the kill may come late
KILL_AFTER = 6  # steps, at least: when the checkpoint of step 4 is whole
SAVE_EVERY = 4
FOLDED = 2  # degree of an axis that was split
CORPUS = "shakespeare"
SEQ_LENGTH, HEAD_SIZE, VOCABULARY = 64, 16, 512


@dataclass(frozen=True)
class Narrow:
    """How a recipe was narrowed: the settings that do it, the ranks that it takes, and what differs from the recipe."""

    settings: tuple[str, ...]
    processes: int
    narrowed: tuple[str, ...]


def narrow(recipe: Recipe, processes: int) -> Narrow:
    """Fold a recipe to at most `processes` ranks. Errors: `UserError` where axes cannot stay split, or it tunes."""
    if recipe.data.tunes or recipe.lora.rank:
        raise UserError(
            f"{recipe.name} tunes a model, and a rehearsal has none; rehearse the recipe of that model, or take a few "
            "steps: pretrain with --from and --max-steps"
        )
    layout, data = recipe.layout, recipe.layout.data_degree(recipe.cluster.world_size)
    tp, pp, ulysses, dp = (min(FOLDED, degree) for degree in (layout.tp, layout.pp, layout.ulysses, data))
    if tp * pp * ulysses > processes:
        raise UserError(
            f"{recipe.name} needs at least {tp * pp * ulysses} ranks (tp {tp} x pp {pp} x ulysses "
            f"{ulysses}); give --processes {tp * pp * ulysses} or more"
        )
    if tp * pp * ulysses * dp > processes:
        dp = 1
    # Two heads for each tensor and Ulysses rank; two blocks and two micro-batches for each stage.
    heads = 2 * tp * ulysses
    unit = dp * min(2, recipe.batch.micro_batch)
    batch = 2 * pp * unit
    tokens = STEPS * batch * SEQ_LENGTH
    real = recipe.schedule
    corpus = tuple(Part(CORPUS, part.weight) for part in recipe.data.parts) if len(recipe.data.parts) > 1 else CORPUS
    values: dict[str, object] = {
        "model.num_layers": 2 * pp,
        "model.hidden_size": heads * HEAD_SIZE,
        "model.num_attention_heads": heads,
        "model.seq_length": SEQ_LENGTH,
        "model.vocab_size": VOCABULARY + 1,
        "data.corpus": spelled(corpus),
        "data.tokeniser": f"bpe:{VOCABULARY}",
        "schedule.train_tokens": tokens,
        "schedule.warmup_tokens": max(tokens // STEPS, tokens * real.warmup_tokens // real.train_tokens),
        "schedule.decay_tokens": tokens * real.decay_tokens // real.train_tokens,
        "batch.global_batch": batch,
        "batch.micro_batch": min(2, recipe.batch.micro_batch),
        "layout.tp": tp,
        "layout.pp": pp,
        "layout.ulysses": ulysses,
        "intervals.log_every": 1,
        "intervals.evaluate_every": SAVE_EVERY,
        "intervals.evaluate_samples": 8,
        "intervals.save_every": SAVE_EVERY,
    }
    if recipe.teacher.model:  # it has another vocabulary
        values["teacher.model"] = ""
    if recipe.batch.ramp:
        values |= {"batch.ramp_start": unit, "batch.ramp_increment": unit, "batch.ramp_samples": 2 * batch}
    shown: tuple[str, ...] = (
        "model.num_layers",
        "model.hidden_size",
        "model.num_attention_heads",
        "model.seq_length",
    )
    shown += ("batch.global_batch", "schedule.train_tokens", "layout.tp", "layout.pp", "layout.ulysses")
    narrowed = [
        f"{name} {_field(recipe, name)} -> {values[name]}" for name in shown if _field(recipe, name) != values[name]
    ]
    narrowed.append(f"data {recipe.data.described} -> {CORPUS}")
    if data != dp:
        narrowed.append(f"data degree {data} -> {dp}")
    return Narrow(tuple(f"{name}={value}" for name, value in values.items()), tp * pp * ulysses * dp, tuple(narrowed))


def _field(recipe: Recipe, name: str) -> object:
    section, field = name.split(".")
    return getattr(getattr(recipe, section), field)


def _command(recipe: Recipe, plan: Narrow, run_dir: Path, *more: str) -> list[str]:
    start = [sys.executable, "-m", f"recipes.{recipe.name}", "--processes", str(plan.processes)]
    return [*start, "--run-dir", str(run_dir), *more]


def _run(command: list[str], log: Path) -> None:
    """Run a command to its end. Errors: `UserError` with the last line of its log where it fails."""
    with open(log, "a") as stream:
        status = subprocess.run(command, cwd=ROOT, env=_environment(), stdout=stream, stderr=stream).returncode
    if status:
        lines = [line for line in log.read_text().splitlines() if line.strip()] or ["it said nothing"]
        raise UserError(f"the rehearsal broke with status {status}: {lines[-1]} (all of it: {log})")


def _environment() -> dict[str, str]:
    # On the CPU, even where there are GPUs: on a CPU the same steps give the same bits.
    cpu = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **cpu, "STAGECRAFT_RUNS": str(runs_root().resolve())}


def _run_and_kill(command: list[str], metrics: Path, log: Path) -> int:
    """Start a run, SIGKILL one rank after `KILL_AFTER` steps when something is saved; return the last logged step."""
    import psutil

    from model.checkpoint.format import completed  # imports torch

    with open(log, "a") as stream:
        process = subprocess.Popen(command, cwd=ROOT, env=_environment(), stdout=stream, stderr=stream)
    watch = Watch(process.pid)
    while len(read_steps(metrics)) < KILL_AFTER or not completed(metrics.with_name("checkpoints")):
        if process.poll() is not None or watch.hangs():
            process.terminate()
            process.wait()
            raise UserError(f"the run to be killed ended too early or hung; see {log}")
        time.sleep(0.02)
    try:
        ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if not p.children()]
        ranks[-1].send_signal(signal.SIGKILL)
    except (psutil.NoSuchProcess, IndexError):
        raise UserError(f"the run ended before it could be killed; see {log}") from None
    if process.wait() == 0:
        raise UserError(f"the run ended before it could be killed; see {log}")
    return int(read_steps(metrics)[-1]["step"])


def _numbers(path: Path) -> list[JsonObject]:
    return reproducible(read_steps(path))


def rehearse(recipe: Recipe, processes: int, say: Say) -> JsonObject:
    """Walk the recipe and return what came out. Errors: `UserError` where a part of the walk fails."""
    began = time.monotonic()
    plan = narrow(recipe, processes)
    small = override(recipe, list(plan.settings))
    root = runs_root() / "rehearsals" / recipe.name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    log, settings = root / "log.txt", ("--set", *plan.settings)
    say(
        f"{recipe.name} on {plan.processes} processes: tensor {small.layout.tp} x pipeline {small.layout.pp} x Ulysses "
        f"{small.layout.ulysses} x data {plan.processes // small.layout.ranks_per_replica}, {recipe.engine}"
    )
    say("unbroken run")
    _run(_command(recipe, plan, root / "unbroken", *settings), log)
    say(f"the same again, one rank killed after step {KILL_AFTER}")
    for _ in range(TRIES):
        shutil.rmtree(root / "killed", ignore_errors=True)
        command = _command(recipe, plan, root / "killed", "--restarts", "0", *settings)
        killed_at = _run_and_kill(command, root / "killed" / "metrics.jsonl", log)
        if killed_at < len(read_steps(root / "unbroken" / "metrics.jsonl")):
            break
    say("resume")
    _run(_command(recipe, plan, root / "killed", "--resume"), log)
    unbroken, resumed = _numbers(root / "unbroken" / "metrics.jsonl"), _numbers(root / "killed" / "metrics.jsonl")
    if unbroken != resumed:
        pairs = zip(unbroken, resumed, strict=False)
        step = next((a["step"] for a, b in pairs if a != b), min(len(unbroken), len(resumed)) + 1)
        raise UserError(f"the resumed run differs from the unbroken one from step {step} on; see {root}")
    exported = ""
    if small.model.objective == "causal":
        from inference.export import export

        say("export")
        export(root / "killed", root / "export")
        exported = str(root / "export")
    return {
        "recipe": recipe.name,
        "processes": plan.processes,
        "steps": len(resumed),
        "killed_after_step": killed_at,
        "losses": [line["loss"] for line in resumed],
        "validation_loss": json.loads((root / "killed" / "report.json").read_text())["validation_loss"],
        "resumed_equals_unbroken": True,
        "export": exported,
        "same": _same(recipe),
        "narrowed": list(plan.narrowed),
        "seconds": round(time.monotonic() - began, 1),
    }


def _same(recipe: Recipe) -> list[str]:
    """What the rehearsal ran just as the recipe has it."""
    optimizer = recipe.optimizer
    same = [
        f"the recipe object recipes/{recipe.name}.py and its {recipe.engine}",
        "precision, ZeRO stage, clipping, activation checkpointing, as that JSON says",
        f"AdamW with lr {optimizer.lr}, betas {optimizer.betas}, weight decay {optimizer.weight_decay}",
        "shape of the schedule: warmup, cosine, floor" + (", batch-size ramp" if recipe.batch.ramp else ""),
        "the deepspeed launcher, checkpoints, resume and export",
    ]
    if len(recipe.data.parts) > 1:
        same.append(f"the blend of {len(recipe.data.parts)} parts and its weights")
    axes = {"tensor": recipe.layout.tp, "pipeline": recipe.layout.pp, "Ulysses": recipe.layout.ulysses}
    split = [name for name, degree in axes.items() if degree > 1]
    if split:
        same.append(
            f"split axes: {', '.join(split)}" + (" with sequence parallelism" * recipe.layout.sequence_parallel)
        )
    return same
