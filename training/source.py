"""What one rank of a training run reads: micro-batches under the recipe's objective, the next ones ahead of time."""

import dataclasses
import importlib.metadata
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.samples import objectives
from data.samples.mixture import Mixture
from model.engine.engine import MicroBatch
from model.loss import Teacher
from recipes.recipe import Recipe
from run.directory import Run
from support.errors import UserError
from support.json_object import JsonObject


class Source:
    """Micro-batches of a recipe's training and validation data under its objective.

    Of pairs `judged` is as `validation`, and the loss of a pair 1 where the chosen side gained more than the rejected.
    """

    judged: Callable[[list[int]], MicroBatch] | None = None

    def __init__(self, recipe: Recipe, mixture: Mixture, data_from: int = 0) -> None:
        self.recipe, self.data_from = recipe, data_from  # the run's position at which the data begin
        self.stream = mixture.training(recipe.model.seq_length, recipe.seed)
        self.entries = mixture.entries
        self.end_of_document = mixture.end_of_document if recipe.data.separate_documents else None
        self.samples, self.mask = mixture.held_out(recipe.model.seq_length, recipe.intervals.final_samples)
        self.masks_inputs = recipe.model.objective == "masked"
        if self.masks_inputs:  # its labels are the inputs: every held-out token, not the one in front of the first
            self.samples = np.roll(self.samples, -1, axis=1)
        self.taught = [each for each in mixture.taught if each]
        data = recipe.data
        self.masking = objectives.Masking(data.masked_share, data.masked_to_mask, data.masked_to_random)

    def training(self, first: int, count: int, among: tuple[int, int] | None = None) -> MicroBatch:
        """The samples at positions `first … first + count` of the run, of the batch `among` which they are learned.

        Weights are such that the mean over the samples of that batch, a place and a size, is its loss. Those of each
        sample add up to 1 here, whatever the others are.
        """
        first -= self.data_from
        samples = self.stream.batch(first, count)
        examples = self._examples(samples, np.arange(first, first + count))
        batch = self._batch(samples, examples, examples.weights)
        return dataclasses.replace(batch, other=self._teacher(first, count)) if self.taught else batch

    def _teacher(self, first: int, count: int) -> Teacher:
        """What the teacher expects in the place of each label of the samples at `first … first + count`."""
        records = self.stream.beside(first, count, [each.rows["train"] for each in self.taught])[:, 1:]
        soft = np.array((self.recipe.teacher.soft_share, self.taught[0].manifest["temperature"]), np.float32)
        ids = records["ids"].astype(np.int32)  # torch computes little with uint16
        return Teacher(tensor(ids), tensor(records["odds"]), tensor(soft))

    def samples_by_part(self, consumed_samples: int) -> list[int]:
        """How many samples were read from each part of the blend by then, in the order of `data.json`."""
        return self.stream.blend.counts(consumed_samples - self.data_from)

    def share(self, micro_batch: int, rank: int, ranks: int, first: int, count: int) -> list[MicroBatch]:
        """The micro-batches of one data rank of the global batch at positions `first … first + count`.

        The global batch is the same whatever the number of ranks and the micro-batch.
        """
        starts = range(first + rank * micro_batch, first + count, micro_batch * ranks)
        return [self.training(start, micro_batch, (first, count)) for start in starts]

    def validation(self, rows: list[int]) -> MicroBatch:
        """Rows of the validation set. A label that counts weighs 1; padding and rows past the set's end weigh 0."""
        inside = np.array([row < len(self.samples) for row in rows])
        chosen = np.minimum(rows, len(self.samples) - 1)
        examples = self._examples(self.samples[chosen], chosen)
        counts = (examples.weights > 0) & inside[:, None] & self.mask[chosen]
        return self._batch(self.samples[chosen], examples, counts.astype(np.float32))

    def _examples(self, samples: objectives.Ints, positions: objectives.Ints) -> objectives.Examples:
        model, seed = self.recipe.model, self.recipe.seed
        if self.masks_inputs:
            return objectives.masked(samples, positions, seed, self.masking, model.vocab_size - 1, self.entries)
        if model.objective == "prefix":
            return objectives.prefix(samples, positions, seed)
        return objectives.causal(samples)

    def _batch(
        self, samples: objectives.Ints, examples: objectives.Examples, weights: NDArray[np.float32]
    ) -> MicroBatch:
        documents = None
        if self.end_of_document is not None:
            documents = objectives.documents(samples[:, :-1], self.end_of_document)
        prefix = None if examples.prefix is None else tensor(examples.prefix)
        apart = None if documents is None else tensor(documents)
        return MicroBatch(tensor(examples.tokens), tensor(examples.labels), tensor(weights), prefix, apart)


def tensor(array: NDArray[Any]) -> Tensor:
    """The array as a tensor. With GPUs it lies in pinned memory, so that it is copied while the GPU computes."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def check_alike(run: Run, mixture: Mixture) -> None:
    """Check that all ranks were told the same and read the same: machines may share no storage.

    Collective. Errors: `UserError` on every rank that names a rank and what differs there.
    """
    told = {
        "recipe": dataclasses.asdict(run.recipe),
        "DeepSpeed JSON": run.engine.json,
        "last step": run.max_steps,
        "torch": torch.__version__,
        "DeepSpeed": importlib.metadata.version("deepspeed"),
        "data": mixture.fingerprint,
    }
    everywhere: list[JsonObject] = [{} for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(everywhere, told)
    for rank, theirs in enumerate(everywhere):
        place = _first_difference(everywhere[0], theirs)
        if place == "data":
            raise UserError(
                f"rank {rank} has prepared other data than rank 0: its corpus, tokeniser or their versions differ; "
                "prepare the data once, on storage that all machines share, or copy the prepared folder"
            )
        if place:
            raise UserError(
                f"rank {rank} has another {place} than rank 0; start all ranks with the same flags and JSON"
            )


def _first_difference(ours: Any, theirs: Any) -> str:
    """The path of keys to the first place where two dictionaries differ; empty where they are equal."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in ours | theirs:
            if ours.get(key) != theirs.get(key):
                return f"{key} {_first_difference(ours.get(key), theirs.get(key))}".rstrip()
    return ""


class Ahead:
    """Reads a step's micro-batches while the step before it computes. `read(first, count)` gives them."""

    def __init__(self, read: Callable[[int, int], list[MicroBatch]]) -> None:
        self._read = read
        self._worker = ThreadPoolExecutor(1, "ahead")
        self._expected: tuple[int, int] | None = None
        self._coming: Future[list[MicroBatch]]

    def take(self, first: int, count: int, next_count: int) -> list[MicroBatch]:
        """The micro-batches at `first … first + count`; the next `next_count` samples are read from now on."""
        ready = self._coming.result() if self._expected == (first, count) else self._read(first, count)
        self._expected = (first + count, next_count)
        self._coming = self._worker.submit(self._read, *self._expected)
        return ready
