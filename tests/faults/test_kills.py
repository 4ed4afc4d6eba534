"""A run whose processes are killed again and again, at random: it comes to its end with the weights of an unbroken run.

`STAGECRAFT_KILLS` says how often, `STAGECRAFT_SEED` when and whom. A command that is killed is given again with
`--resume`, as a scheduler does; after all other kills the run goes on by itself.
"""

import os
import random
import signal
from contextlib import suppress
from pathlib import Path
from time import sleep

import psutil
import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint.format import completed
from support.errors import DONE
from tests.commands.running import metrics, write_corpus
from tests.faults.runs import Hurt

KILLS = int(os.environ.get("STAGECRAFT_KILLS", "10"))
SEED = int(os.environ.get("STAGECRAFT_SEED", "1"))
STEPS = 15 * KILLS + 30
SETTINGS = (f"schedule.train_tokens={STEPS * 256}", f"schedule.decay_tokens={STEPS * 256}", "intervals.log_every=1000")
FLAGS = ("--restarts", "1000")


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the last checkpoint: weights and moments of each rank."""
    last = completed(run / "checkpoints")[-1]
    assert last.name == f"step-{STEPS:08d}"
    return {f"{file.stem} {name}": x for file in last.glob("*.safetensors") for name, x in load_file(file).items()}


@pytest.mark.faults
def test_random_kills_change_no_weight(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    unbroken = Hurt(tmp_path, "unbroken", settings=SETTINGS)
    assert unbroken.finish()[0] == DONE
    draw = random.Random(SEED)
    run = Hurt(tmp_path, "killed", *FLAGS, settings=SETTINGS).at_step(5)
    killed = []
    for _ in range(KILLS):
        run = kill(run, draw, killed)
    status, said = run.finish()
    assert status == DONE, f"{killed}: {said}"
    assert metrics(run.path) == metrics(unbroken.path), killed
    expected, found = weights(unbroken.path), weights(run.path)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected), killed
    assert len(killed) == KILLS and len({who for who, _ in killed}) > 1


def kill(run: Hurt, draw: random.Random, killed: list[tuple[str, int]]) -> Hurt:
    """Kill one process of a run, after some steps or while it starts; returns the run that goes on."""
    if draw.random() < 0.7:
        run.at_step(min(run.step + draw.randint(1, 12), STEPS - 15))
    else:
        sleep(draw.uniform(0.0, 1.5))
    below = psutil.Process(run.command.pid).children(recursive=True)  # the launcher's two processes, and the ranks
    victim = None if draw.random() < 0.2 or not below else draw.choice(below)
    killed.append(("command" if victim is None else f"process {below.index(victim)}", run.step))
    with suppress(psutil.NoSuchProcess):  # it has just ended by itself
        (victim or psutil.Process(run.command.pid)).send_signal(signal.SIGKILL)
    if victim is not None:
        return run
    run.command.finish()
    return Hurt(run.path.parent, run.path.name, *FLAGS, resume=True)
