"""Where a run is, and how it goes back when no step is taken any more."""

from dataclasses import dataclass, replace

from model.checkpoint.read import load_newest
from model.engine.engine import Engine
from run.directory import Run
from support.errors import WeightsLostError
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

    step: int = 0
    consumed_samples: int = 0
    rollbacks: int = 0
    proof: Proof | None = None

    def __post_init__(self) -> None:
        if isinstance(self.proof, dict):  # as JSON has it
            self.proof = Proof(**self.proof)


def roll_back(run: Run, trainer: Engine, source: Source, log: Log, now: Position) -> Position:
    """Load the last good checkpoint, and go on with the samples after those of `now`; collective.

    What was read since then stays consumed, and the steps go on counting. Save at the returned position, so that a
    crash does not lead back to the same samples. Errors: `WeightsLostError` where there is no checkpoint, or where
    going back did not help.
    """
    helps = now.rollbacks < MOST_ROLLBACKS
    saved = load_newest(trainer, run.checkpoints, log.passed_over) if helps else None
    if saved is None:
        tried = "there is no checkpoint to go back to" if helps else f"{now.rollbacks} rollbacks did not help"
        raise WeightsLostError(
            f"no step is taken up to step {now.step}, or its loss is not finite, and {tried}: the weights are lost; "
            "lower optimizer.lr or raise schedule.warmup_tokens, and go back to a checkpoint in "
            f"{run.checkpoints}"
        )
    good = Position(**saved)
    if good.proof:
        proof.check(good.proof, trainer, source, run)
    where = {"from_step": now.step, "to_step": good.step}
    log.note("rollback", **where, first_sample=good.consumed_samples, last_sample=now.consumed_samples - 1)
    return replace(now, rollbacks=now.rollbacks + 1, proof=good.proof)
