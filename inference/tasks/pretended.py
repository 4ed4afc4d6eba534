"""A model that answers at once, so that a task can be tried before there is a model."""

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.task import Task


class Pretended(LM):
    """Each candidate is as likely as another, and what is written is the right answer."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        return [(-1.0, False)] * len(requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        return [-1.0] * len(requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        return [self._answer(request) for request in requests]

    def _answer(self, request: Instance) -> str:
        target = self.task.doc_to_target(request.doc)
        return str(target[0] if isinstance(target, list) and target else target)
