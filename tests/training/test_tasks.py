"""A model answers while it is trained, and training does not notice."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data.tokens import tokenisers
from inference.decode.decoder import Scored
from inference.decode.draw import Odds
from inference.decode.rows import Request
from inference.sampling import NOT_FINITE, Sampling
from inference.tasks.find import Asked, find
from model.layout import Layout
from recipes.registry import load
from recipes.settings import from_dict, override
from run.metrics import TASK, read_metrics, read_tasks
from support.errors import UserError
from tests.commands.running import metrics, small, succeed, write_corpus
from tests.distributed import run_ranks
from tests.inference.conftest import WORDS
from tests.inference.tasks import made
from tests.model import training
from training import tasks
from training.tasks import LiveModel

STEPS = 3
PAIRS = [([1, 2, 3], [4, 5]), ([9], [8, 7, 6, 5]), (list(range(1, 30)), [3, 1])]
Found = tuple[list[tuple[float, float]], list[tuple[list[Scored], list[int]]]]
CASES = [
    (4, "zero1_fp32", Layout(tp=2, sequence_parallel=True)),
    (4, "zero2_fp32", Layout(ulysses=2)),
    (4, "zero3_fp32", Layout(tp=2)),
    (4, "pipeline_fp32", Layout(tp=2, pp=2)),
    (2, "zero3_offload_bf16", Layout()),
    (2, "zero1_fp16", Layout(tp=2)),
]


def trained(engine: str, layout: Layout, asks: bool) -> Found:
    """Losses and norms of steps, and what is said after each."""
    subject, recipe = training.trainer(engine, layout), SimpleNamespace(model=training.config_for(layout))
    live = LiveModel(subject, tokenisers.train_bpe([WORDS] * 9, 300)) if asks else None
    steps, said = [], []
    for samples in training.batches(STEPS):
        result = training.step(subject, samples)
        steps.append((result.loss, result.grad_norm))
        if live:
            with live.writer(recipe) as writer:  # type: ignore[arg-type]
                request = Request(0, (1, 2, 3), 0, 5)
                (row,) = writer.write([request], Sampling(greedy=True, max_new_tokens=5), lambda row: False)
                said.append((writer.log_odds(PAIRS), row.new))
    return steps, said


@pytest.mark.parametrize(("world", "engine", "layout"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_weights_of_the_moment_answer_as_a_plain_model(world: int, engine: str, layout: Layout) -> None:
    torch.set_num_threads(1)
    silent, asked = (run_ranks(world, trained, engine, layout, asks) for asks in (False, True))
    assert [steps for steps, _ in silent] == [steps for steps, _ in asked]  # bit for bit
    entries = tokenisers.entries(tokenisers.train_bpe([WORDS] * 9, 300))
    half = not engine.endswith("fp32")
    for _, said in asked:
        plain = training.model(training.config_for(layout))
        optimizer = training.plain_optimizer(plain)
        for samples, (scores, written) in zip(training.batches(STEPS), said, strict=True):
            optimizer.zero_grad()
            training.mean_loss(plain, samples).backward()
            torch.nn.utils.clip_grad_norm_(plain.parameters(), training.CLIP)
            optimizer.step()
            for (before, after), scored in zip(PAIRS, scores, strict=True):
                with torch.no_grad():
                    odds = plain(torch.tensor([[*before, *after][:-1]]))[0, len(before) - 1 :, :entries].log_softmax(-1)
                wanted = sum(float(odds[place, token]) for place, token in enumerate(after))
                assert scored.total == pytest.approx(wanted, rel=2e-2 if half else 1e-4)
            assert 1 <= len(written) <= 5 and max(written) < entries


NAMES = ("made_choice", "made_rolling", "made_writing")


def test_a_run_with_tasks_has_the_numbers_of_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    made.folder(tmp_path / "tasks")
    settings = small(write_corpus(tmp_path / "corpus.jsonl"))
    asked = [f"tasks.names={','.join(NAMES)}", f"tasks.folder={tmp_path / 'tasks'}", "tasks.every_steps=2"]
    for name, more in (("plain", []), ("scored", [*asked, "tasks.limit=3"])):
        run = ("--processes", "2", "--max-steps", "5", "--run-dir", str(tmp_path / name))
        succeed(tmp_path, "commands", "pretrain", "tiny", *settings, *more, *run)
    plain, scored = (metrics(tmp_path / name) for name in ("plain", "scored"))
    found = [{key: line.pop(key) for key in list(line) if key.startswith(TASK)} for line in scored]
    assert scored == plain
    wanted = {f"task/{name}" for name in ("made_choice/acc", "made_choice/acc_norm", "made_writing/exact_match")}
    wanted |= {f"task/made_rolling/{metric}" for metric in ("word_perplexity", "bits_per_byte")}
    assert [set(each) for each in found] == [set(), wanted, set(), wanted, wanted]  # after the last one too
    seconds = [line.get("task_seconds", 0) > 0 for line in read_metrics(tmp_path / "scored" / "metrics.jsonl")]
    assert seconds == [False, True, False, True, True, False]  # and no line for the evaluation at the end
    command = ("commands", "evaluate", "--run", str(tmp_path / "scored"), "--tasks", ",".join(NAMES), "--limit", "3")
    again = json.loads(succeed(tmp_path, *command, "--task-folder", str(tmp_path / "tasks"), "--json"))["tasks"]
    for name, each in read_tasks(tmp_path / "scored" / "metrics.jsonl").items():
        task, metric = name.split("/")
        assert each["step"] == 5 and again[task]["scores"][metric] == pytest.approx(each["score"], rel=1e-5)
        assert found[-1][f"task/{name}"] == pytest.approx(each["score"], rel=1e-5)


def test_tasks_are_looked_at_before_a_run_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = made.folder(tmp_path / "tasks")
    recipe = override(load("tiny"), ["tasks.names=made_choice, made_rolling", f"tasks.folder={folder}"])
    assert recipe.tasks.names == ("made_choice", "made_rolling")
    assert override(recipe, ["tasks.shots=2", "tasks.limit=1e2"]).tasks.limit == 100
    tasks.check(recipe)
    tasks.check(load("tiny"))
    (folder / "rows.jsonl").write_text('{"question": "x"}\n')
    with pytest.raises(UserError, match=r"rows.jsonl, line 1: no field 'answer'"):
        tasks.check(recipe)
    with pytest.raises(UserError, match=r"tasks.names does not go with model.objective masked"):
        override(recipe, ["model.objective=masked"])
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"tasks need the package lm-eval"):
        tasks.check(recipe)
    assert [recipe.tasks.due(step, 2500) for step in (999, 1000, 2500)] == [False, True, True]
    assert from_dict(json.loads(json.dumps(dataclasses.asdict(recipe))), "x") == recipe


def only_here(folder: Path) -> list[tuple[set[str], list[str]]]:
    """The scores of ranks of which one alone fails or is asked to stop, and what each says; then all is well again."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    found = find(Asked(NAMES, limit=3, folder=folder))
    recipe = SimpleNamespace(model=training.CONFIG, tasks=SimpleNamespace(limit=3))
    subject, said = tasks.Scores.__new__(tasks.Scores), list[str]()
    subject.recipe, subject.found, subject.failed = recipe, found, False  # type: ignore[assignment]
    subject.log = SimpleNamespace(say=said.append)  # type: ignore[assignment]
    subject.live = LiveModel(training.trainer("pipeline_fp32", Layout(pp=2)), tokenisers.train_bpe([WORDS] * 9, 300))
    here = dist.get_rank() == 1

    def fail(*args: object, **named: object) -> None:
        raise OSError("none")

    def diverge(self: Odds, logits_BV: torch.Tensor, *args: object) -> torch.Tensor:
        raise UserError(NOT_FINITE)

    results, writing, choice = [], found.tasks["made_writing"], found.tasks["made_choice"]
    for owner, name, instead in (
        (Odds, "draw", diverge),  # the other stage waits for what the last one draws
        (tasks, "asked", lambda: True),
        (choice, "doc_to_text", fail),  # before the model is asked
        (writing, "doc_to_target", fail),  # behind that
        (None, "", None),
    ):
        subject.failed = False
        with pytest.MonkeyPatch.context() as patched:
            if owner and here:
                patched.setattr(owner, name, instead)
            results.append((set(subject.now()), [*said]))
        assert subject.failed == (instead is fail)
        said.clear()
    return results


def test_a_rank_that_fails_alone_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = made.folder(tmp_path / "tasks")
    tasks.check(override(load("tiny"), [f"tasks.names={NAMES[0]}", f"tasks.folder={folder}"]))  # fills the cache
    whole = {f"task/{name}" for name in ("made_choice/acc", "made_choice/acc_norm", "made_writing/exact_match")}
    whole |= {f"task/made_rolling/{metric}" for metric in ("word_perplexity", "bits_per_byte")}
    wanted = [
        (set(), [f"no scores now: rank 0: {NOT_FINITE}"]),
        (set(), ["no scores now: the run was asked to stop"]),
        (set(), ["no more tasks: rank 1: task made_choice, document 0: OSError: none"]),
        (set(), ["no more tasks: rank 1: task made_writing, document 0: OSError: none"]),
        ({*whole, "task_seconds"}, []),
    ]
    assert run_ranks(2, only_here, folder) == [wanted] * 2
