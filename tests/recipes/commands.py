"""Running this project's commands as a user does, in small."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from recipes.registry import ROOT

TEXT = "the king shall come and go with all his men to see what may be done for love or war"
WORDS = TEXT.split()
TIMEOUT_SECONDS = 400


def write_corpus(path: Path) -> Path:
    """A corpus of 200 short documents with some order in it."""
    lines = []
    for i in range(200):
        words = [WORDS[(i * 7 + j * (1 + i % 5)) % len(WORDS)] for j in range(60)]
        lines.append(json.dumps({"text": " ".join(words) + ".\n"}))
    path.write_text("\n".join(lines) + "\n")
    return path


def small(corpus: Path) -> list[str]:
    """Settings that make `gpt_tiny` a matter of seconds; dropout is on, so that resuming has something to get wrong."""
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


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def run(home: Path, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=ROOT,
        env=environment(home),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
    )


def succeed(home: Path, *arguments: str, stdin: str = "") -> str:
    done = run(home, *arguments, stdin=stdin)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def fail(home: Path, *arguments: str, stdin: str = "") -> str:
    """The one line that a command fails with."""
    done = run(home, *arguments, stdin=stdin)
    assert done.returncode != 0, done.stdout
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    return done.stderr.strip()


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics of a run without the one figure that is not a function of the run."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("tokens_per_second") > 0 for line in lines)
    return lines
