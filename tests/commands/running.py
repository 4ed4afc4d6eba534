"""Running this project's commands as a user does, in small."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from recipes.registry import ROOT
from run.metrics import read_steps, reproducible
from tests import interpreter
from tests.patience import wait_until

TEXT = "the king shall come and go with all his men to see what may be done for love or war"
WORDS = TEXT.split()


def write_corpus(path: Path) -> Path:
    """A corpus of 200 short documents with some order in it."""
    lines = []
    for i in range(200):
        words = [WORDS[(i * 7 + j * (1 + i % 5)) % len(WORDS)] for j in range(60)]
        lines.append(json.dumps({"text": " ".join(words) + ".\n"}))
    path.write_text("\n".join(lines) + "\n")
    return path


def small(corpus: Path) -> list[str]:
    """Settings that train `gpt_tiny` in seconds. Dropout is on, because a resumed run could draw it wrongly."""
    return [
        "--set",
        f"data.corpus={corpus}",
        "data.tokeniser=bpe:300",
        *("model.num_layers=2", "model.hidden_size=32", "model.num_attention_heads=2", "model.seq_length=32"),
        *("model.vocab_size=300", "model.dropout=0.1", "batch.global_batch=8", "batch.micro_batch=2"),
        *("schedule.train_tokens=5120", "schedule.warmup_tokens=512", "schedule.decay_tokens=5120"),
        *("intervals.log_every=1", "intervals.evaluate_every=5", "intervals.save_every=3"),
    ]


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "STAGECRAFT_RUNS": str(home / "runs")}


class Command:
    """A command that was started: `python -m arguments`, in forks of a process that has imported everything.

    With `fresh` it starts in a new interpreter, as a user's does. It prints into files, or where `out` and `err` say.
    """

    def __init__(
        self,
        home: Path,
        *arguments: str,
        stdin: str = "",
        fresh: bool = False,
        out: str = "",
        err: str = "",
    ) -> None:
        self.folder = TemporaryDirectory(prefix="command-")
        self.arguments = arguments
        streams = [Path(self.folder.name) / name for name in ("stdin", "stdout", "stderr")]
        streams[0].write_text(stdin)
        self.out, self.err = streams[1:]
        self.out.touch(), self.err.touch()
        self.process: Any
        if fresh:
            line = [sys.executable, "-m", *arguments]
            with open(streams[0]) as ours, open(self.out, "a") as out, open(self.err, "a") as err:
                self.process = subprocess.Popen(
                    line, cwd=ROOT, env=environment(home), stdin=ours, stdout=out, stderr=err
                )
        else:
            paths = (str(streams[0]), out or str(self.out), err or str(self.err))
            self.process = interpreter.Process(["-m", *arguments], str(ROOT), environment(home), paths)
            self.process.start()
        self.pid: int = self.process.pid

    def status(self) -> int | None:
        """The exit status, None while it runs."""
        return self.process.poll() if isinstance(self.process, subprocess.Popen) else self.process.exitcode

    def wait_until(self, holds: Callable[[], object]) -> None:
        """Wait for something while it runs."""
        try:
            wait_until(lambda: holds() or self.status() is not None, self.pid, what=self.arguments[0])
        except BaseException:
            with suppress(psutil.Error):
                command = psutil.Process(self.pid)
                for process in (*command.children(recursive=True), command):
                    process.kill()
            raise
        assert holds(), f"{self.arguments[0]} ended early:\n{self.out.read_text()}{self.err.read_text()}"

    def finish(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end."""
        self.wait_until(lambda: self.status() is not None)
        done = subprocess.CompletedProcess(self.arguments, self.status(), self.out.read_text(), self.err.read_text())
        self.folder.cleanup()
        return done


def run(home: Path, *arguments: str, stdin: str = "", fresh: bool = False) -> subprocess.CompletedProcess[str]:
    return Command(home, *arguments, stdin=stdin, fresh=fresh).finish()


def succeed(home: Path, *arguments: str, stdin: str = "", fresh: bool = False) -> str:
    done = run(home, *arguments, stdin=stdin, fresh=fresh)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fail(home: Path, *arguments: str, stdin: str = "", fresh: bool = False) -> str:
    """The one line that a command fails with."""
    done = run(home, *arguments, stdin=stdin, fresh=fresh)
    assert done.returncode != 0, done.stdout
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    return done.stderr.strip()


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The steps of a run without the figures that are no function of the run."""
    lines = read_steps(run_dir / "metrics.jsonl")
    assert all(line["tokens_per_second"] > 0 for line in lines)
    return reproducible(lines)
