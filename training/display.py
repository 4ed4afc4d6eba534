"""What a run shows while it goes: a live bar on a terminal, plain lines elsewhere."""

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from planner.resolve import data_degree
from run.directory import Run
from support.json_object import JsonObject


class Display:
    """The progress of one run; silent on all ranks but the first."""

    def __init__(self, run: Run, enabled: bool) -> None:
        self.run, self.enabled = run, enabled
        self.console = Console(soft_wrap=True, highlight=False)
        self.bar: Progress | None = None

    def say(self, line: str) -> None:
        """One line that stays."""
        if self.enabled:
            self.console.print(line, markup=False)
            sys.stdout.flush()

    def start(self, step: int, last_step: int) -> None:
        """Show what is about to run, resolved, and begin at `step`."""
        self.last_step = last_step
        if not self.enabled:
            return
        recipe, config = self.run.recipe, self.run.engine.json
        degree = data_degree(recipe, self.run.world_size)
        self.say(
            f"{recipe.name}: {recipe.model.num_parameters / 1e6:,.1f}M parameters, "
            f"{recipe.tokens_per_step:,} tokens a step, steps {step + 1} to {self.last_step}"
        )
        self.say(
            f"engine: {self.run.engine.dtype}, ZeRO stage {config.get('zero_optimization', {}).get('stage', 0)}, "
            f"global batch {config['train_batch_size']} = micro-batch {config['train_micro_batch_size_per_gpu']} x "
            f"accumulation {config['gradient_accumulation_steps']} x data degree {degree}"
        )
        for deviation in self.run.engine.deviations:
            self.say(f"deviates from the recipe: {deviation}")
        for note in self.run.engine.notes:
            self.say(note)
        self.say(f"run: {self.run.path}")
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
            self.task = self.bar.add_task("", total=self.last_step, completed=step)
            self.bar.start()

    def step(self, metrics: JsonObject) -> None:
        """Show one step."""
        if not self.enabled:
            return
        text = f"loss {metrics['loss']:.3f}  {metrics['tokens_per_second']:,.0f} tokens/s"
        if self.bar:
            self.bar.update(self.task, completed=metrics["step"], description=text)
        every = self.run.recipe.intervals.log_every
        wanted = metrics["step"] % every == 0 or metrics["step"] == self.last_step
        if "validation_loss" in metrics:
            text += f"  validation loss {metrics['validation_loss']:.4f}"
        if metrics["skipped"]:
            text += f"  skipped (loss scale {metrics['loss_scale']:,.0f})"
        if "validation_loss" in metrics or metrics["skipped"] or (wanted and not self.bar):
            self.say(f"step {metrics['step']:>6}/{self.last_step}  {text}")

    def finish(self) -> None:
        """End the bar, so that what follows stands below it."""
        if self.bar:
            self.bar.stop()
