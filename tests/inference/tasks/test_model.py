"""Our decoder answers lm-eval as lm-eval's own model for transformers does with the export."""

from pathlib import Path
from typing import Any

import pytest

from inference.generate import load
from inference.ranks import Loading, started
from inference.tasks import harness
from inference.tasks.find import Asked, find
from support.json_object import JsonObject
from tests.distributed import run_ranks
from tests.inference.tasks import made

CLOSE = 1e-4
NAMES = tuple(made.KINDS)


def theirs(home: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LOCAL_RANK", raising=False)  # DeepSpeed's pipeline leaves one; accelerate would look for others
        return HFLM(pretrained=str(home / "export"), device="cpu", dtype="float32", batch_size=2)


def ours(path: Path) -> Any:
    from inference.tasks.model import TaskModel

    return TaskModel(load(path)[0])


def requests(home: Path, name: str, shots: int = 0) -> list[Any]:
    task = find(Asked((name,), shots, folder=home / "tasks")).tasks[name]
    task.build_all_requests(limit=None, rank=0, world_size=1)
    return list(task.instances)


@pytest.fixture(scope="module")
def reference(home: Path) -> Any:
    return theirs(home)


@pytest.mark.parametrize("place", ["run", "export"])
@pytest.mark.parametrize("shots", [0, 2])  # with two the texts are longer than the context
@pytest.mark.parametrize("name", NAMES)
def test_answers_are_those_of_the_export(name: str, shots: int, place: str, home: Path, reference: Any) -> None:
    asked = requests(home, name, shots)
    longest = max(len(reference.tok_encode("".join(map(str, each.args[:1])))) for each in asked)
    assert longest > 16 or not shots
    kind = asked[0].request_type
    wanted, found = (getattr(model, kind)(asked) for model in (reference, ours(home / place)))
    if kind == "generate_until":
        assert found == wanted and len(set(found)) > 1
    elif kind == "loglikelihood_rolling":
        assert found == pytest.approx(wanted, abs=CLOSE) and len(reference.tok_encode(asked[3].args[0])) > 48
    else:
        assert [one for one, _ in found] == pytest.approx([one for one, _ in wanted], abs=CLOSE)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]


def test_what_is_likeliest_is_greedy(home: Path, reference: Any) -> None:
    from lm_eval.api.instance import Instance

    subject = ours(home / "run")
    entries = len(subject.names)
    tokens = [(("", ""), [before, 9], [after]) for before in range(1, 7) for after in range(entries)]
    likeliest = [
        [greedy for _, greedy in model._loglikelihood_tokens(tokens, disable_tqdm=True)]
        for model in (subject, reference)
    ]
    assert likeliest[0] == likeliest[1] and sum(likeliest[0]) == 6  # one behind each beginning
    two = (("", ""), [1, 9], [likeliest[0].index(True), 3])
    assert not subject._loglikelihood_tokens([two])[0][1]
    asked = [
        Instance("loglikelihood", {}, pair, 0) for pair in (("", "the"), ("<|endoftext|>", "mat"), ("the", " cat"))
    ]
    found, wanted = (model.loglikelihood(asked) for model in (subject, reference))
    assert [one for one, _ in found] == pytest.approx([one for one, _ in wanted], abs=CLOSE)
    blank, plain = (Instance("loglikelihood", {}, pair, 0) for pair in ((" ", "cat"), ("", " cat")))
    assert subject.loglikelihood([blank]) == subject.loglikelihood([plain])  # where the other model fails


def scored(home: Path, tensor: int = 1) -> JsonObject:
    loading = Loading(tensor=tensor).over(started())
    return harness.evaluate(home / "run", Asked(NAMES, folder=home / "tasks"), loading)


def test_all_scores_are_those_of_the_export_and_of_any_number_of_ranks(home: Path, reference: Any) -> None:
    from lm_eval.evaluator import evaluate

    found, asked = find(Asked(NAMES, folder=home / "tasks")), scored(home)
    wanted = evaluate(reference, {"tasks": found.tasks}, bootstrap_iters=harness.DRAWS, log_samples=False)["results"]
    for name in NAMES:
        for metric, value in asked["tasks"][name]["scores"].items():
            assert value == pytest.approx(wanted[name][f"{metric},none"], rel=CLOSE), (name, metric)
        for metric, value in asked["tasks"][name]["errors"].items():
            assert value == pytest.approx(wanted[name][f"{metric}_stderr,none"], rel=CLOSE), (name, metric)
        assert asked["tasks"][name]["samples"] == len(made.ROWS)
    for rank, values in enumerate(run_ranks(4, scored, home, 2)):  # two copies, each of two tensor ranks
        assert (values["file"] is None) == (rank > 0)
        for name in NAMES:
            assert values["tasks"][name]["scores"] == pytest.approx(asked["tasks"][name]["scores"], rel=1e-5)
