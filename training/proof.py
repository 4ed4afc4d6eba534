"""A resume proves itself: what was saved and what was read compute the same loss over the samples trained on last.

Hashes prove that the bytes are the same. The loss proves that they became the same model: names, layout, precision,
data and the machine that computes.
"""

import hashlib
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from model.checkpoint.together import told
from model.engine.engine import Engine, MicroBatch
from model.loss import Teacher
from run.directory import Run
from support.errors import WeightsLostError
from training.device import device_name, kernels
from training.source import Source

# How far a loss may differ, as a share of it, where ranks, layout, precision or machine are others. In fp32 sums have
# another order, halves also round each activation, and the mean over labels evens that out. Between the layouts of a
# small model the shares were 7e-8, 1.1e-5 and 4.4e-5; more layers round more often, so twenty times that is allowed.
TOLERANCE = {"fp32": 1e-5, "fp16": torch.finfo(torch.float16).eps / 4, "bf16": torch.finfo(torch.bfloat16).eps / 4}


@dataclass(frozen=True)
class Proof:
    """The loss in evaluation mode over the samples `first … first + count`, nats a token, null if not finite.

    `samples` is the SHA-256 of what was read there, `computed` what the loss was computed with.
    """

    loss: float | None
    first: int
    count: int
    samples: str
    computed: dict[str, Any]


def taken(trainer: Engine, source: Source, run: Run, first: int, batch: int) -> Proof:
    """The proof of the weights of this moment over the first micro-batch of each data rank; collective.

    `first` and `batch` are those of the global batch that was trained on last.
    """
    count = min(batch, run.engine.json["train_micro_batch_size_per_gpu"] * trainer.grid.dp)
    loss = _loss(trainer, source, run, first, count)
    return Proof(loss if math.isfinite(loss) else None, first, count, _digest(source, first, count), _computed(run))


def reads_alike(proof: Proof, source: Source) -> bool:
    """Whether the samples of a proof are read here too; collective. A branch may read others than its parent."""
    return proof.first >= source.data_from and _digest(source, proof.first, proof.count) == proof.samples


def check(proof: Proof, trainer: Engine, source: Source, run: Run) -> str:
    """Repeat a proof with what was loaded; collective. Returns a line that says what it showed.

    On the same number of ranks, layout, precision and machine the losses are equal to the bit; on several GPUs, whose
    sums may come in another order each time, and on anything else they differ by at most `TOLERANCE`.
    Errors: `WeightsLostError` on every rank.
    """
    what = f"samples {proof.first} to {proof.first + proof.count - 1}"
    if not reads_alike(proof, source):
        raise WeightsLostError(
            f"the resume does not prove itself: {what} are not those that were trained on; restore the prepared data"
        )
    loss = _loss(trainer, source, run, proof.first, proof.count)
    saved = math.nan if proof.loss is None else proof.loss
    alike = told(proof.computed == _computed(run))  # rank 0 decides: ranks may have other machines
    exact = alike and (run.world_size == 1 or not torch.cuda.is_available())
    most = max(TOLERANCE[run.engine.dtype], TOLERANCE.get(str(proof.computed.get("dtype")), 0.0))
    if loss == saved or (not exact and abs(loss - saved) <= most * abs(saved)):
        return f"proved: a loss of {loss:.8g} over {what}, {saved:.8g} was saved"
    allowed = "equal to the bit" if exact else f"within a share of {most:.1g}"
    raise WeightsLostError(
        f"the resume does not prove itself: a loss of {loss!r} over {what}, {saved!r} was saved, and they must be "
        f"{allowed}; try another machine, or remove this checkpoint to go back to the one before"
    )


def _loss(trainer: Engine, source: Source, run: Run, first: int, count: int) -> float:
    size, grid = run.engine.json["train_micro_batch_size_per_gpu"], trainer.grid
    mine = []
    for start in range(first, first + count, size * grid.dp):
        at = start + grid.dp_rank * size
        batch = source.training(at, size, (first, count))
        inside = torch.arange(at, at + size) < first + count  # data ranks work in step; some may have no sample
        mine.append(_weighted(batch, inside))
    return trainer.evaluate(mine) / count  # in training the weights of a sample add up to 1


def _weighted(batch: MicroBatch, inside: torch.Tensor) -> MicroBatch:
    weights = batch.weights_BS * inside[:, None]
    return MicroBatch(batch.tokens_BS, batch.labels_BS, weights, batch.prefix_B, batch.documents_BS)


def _digest(source: Source, first: int, count: int) -> str:
    """The SHA-256 of samples as rank 0 reads them; collective. `check_alike` has compared what the others read.

    A reference is left out: a branch has its own, and reads the same.
    """
    digest = hashlib.sha256()
    if torch.distributed.get_rank() == 0:
        batch = source.training(first, count)
        taught = batch.other if isinstance(batch.other, Teacher) else ()
        for tensor in (*{**vars(batch), "other": None}.values(), *taught):
            digest.update(b"" if tensor is None else tensor.numpy().tobytes())
    return told(digest.hexdigest())


def _computed(run: Run) -> dict[str, Any]:
    """All that the last bits of a loss may depend on."""
    config = run.engine.json
    return {
        "ranks": run.world_size,
        "layout": asdict(run.recipe.layout),
        "stage": config.get("zero_optimization", {}).get("stage", 0),
        "dtype": run.engine.dtype,
        "micro_batch": config["train_micro_batch_size_per_gpu"],
        "device": device_name(),
        "kernels": kernels(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
