"""Runs that a real Slurm starts, warns, queues again and ends."""

import pytest

from tests.clusters.conftest import Submit
from tests.commands.running import metrics, small, succeed

pytestmark = pytest.mark.clusters


@pytest.fixture(scope="module")
def unbroken(home):
    """The steps of the same run without Slurm: two ranks on this machine."""
    tokens = ("schedule.train_tokens=5120", "intervals.evaluate_every=1000")
    succeed(home, "recipes.gpt_tiny", *small(home / "corpus.jsonl"), *tokens, "--run-dir", str(home / "unbroken"))
    return metrics(home / "unbroken")


def test_a_run_on_two_nodes_has_the_numbers_of_two_local_ranks(submit: Submit, unbroken) -> None:
    run = submit("whole").submit().at_end()
    assert run.losses == unbroken
