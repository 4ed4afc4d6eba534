"""Where a run is, and how it goes back when no step is taken any more."""

import json
from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import TypeAdapter

from model.checkpoint.format import Tie
from model.checkpoint.read import load_newest
from model.engine.engine import Engine
from recipes.recipe import STRICT
from run.directory import Run
from support.errors import WeightsLostError
from support.json_object import JsonObject
from training import proof
from training.log import Log
from training.proof import Proof
from training.source import Source

MOST_SKIPPED = 10  # steps in a row without an update, after which a run that has no loss scale to find goes back
MOST_ROLLBACKS = 3  # after each other, without a step that was taken and saved in between


@dataclass
class Position:
    """Where a run is: all the state that the engine does not hold.

    `rollbacks` counts how often it went back since it last saved what it had trained, `proof` proves the weights.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = STRICT
    step: int = 0
    consumed_samples: int = 0
    rollbacks: int = 0
    proof: Proof | None = None


def position_of(state: JsonObject) -> Position:
    """The position that a checkpoint keeps. Errors: `ValueError` where it keeps something else."""
    return TypeAdapter(Position).validate_json(json.dumps(state), strict=True)


def roll_back(run: Run, trainer: Engine, source: Source, log: Log, tie: Tie, now: Position) -> Position:
    """Load the last good checkpoint, and go on with the samples after those of `now`; collective.

    What was read since then stays consumed, and the steps go on counting. Save at the returned position, so that a
    crash does not lead back to the same samples. Errors: `WeightsLostError` where there is no checkpoint, or where
    going back did not help.
    """
    helps = now.rollbacks < MOST_ROLLBACKS
    saved = load_newest(trainer, run.checkpoints, log.passed_over, tie, position_of) if helps else None
    if saved is None:
        tried = "there is no checkpoint to go back to" if helps else f"{now.rollbacks} rollbacks did not help"
        raise WeightsLostError(
            f"no step is taken up to step {now.step}, or its loss is not finite, and {tried}: the weights are lost; "
            "lower optimizer.lr or raise schedule.warmup_tokens, and go back to a checkpoint in "
            f"{run.checkpoints}"
        )
    good = position_of(saved)
    if good.proof:
        proof.check(good.proof, trainer, source, run)
    where = {"from_step": now.step, "to_step": good.step}
    log.note("rollback", **where, first_sample=good.consumed_samples, last_sample=now.consumed_samples - 1)
    return replace(now, rollbacks=now.rollbacks + 1, proof=good.proof)
