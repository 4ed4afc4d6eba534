"""`--json`: one value on standard output, with the keys that docs/json.md names (pretrain: test_road.py; rehearse:
tests/launch/test_rehearse.py)."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from commands.__main__ import COMMANDS, main
from recipes.axes import Axis, grid
from run import report, trials
from support.errors import STOPPED, WRONG_INPUT
from support.files import locked
from tests.commands.documented import check, has, sections
from tests.commands.running import small
from tests.data.cleaning.test_clean import prose, write
from tests.data.corpus.test_examples import write as write_rows
from tests.inference import conftest
from tests.run import directories, test_compare
from tests.run.happened import event, started, step, write_run
from tests.run.happened import write as write_happened

Called = Callable[..., Any]
untrained = conftest.run


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Called:
    """Calls a command in this process and reads what it prints."""
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))

    def call(*arguments: str) -> Any:
        monkeypatch.setattr("sys.argv", ["stagecraft", *arguments, "--json"])
        main()
        return json.loads(capfd.readouterr().out, parse_constant=pytest.fail)

    return call


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Sixty documents, one of them short, and a line that is not JSON."""
    path = Path(write(tmp_path / "corpus.jsonl", [*(prose(seed) for seed in range(59)), "short"]))
    path.write_text(path.read_text() + "{\n")
    return path


def test_every_command_is_documented() -> None:
    assert {title.split()[0] for title in sections()} == set(COMMANDS)


def test_a_key_too_many_or_too_few_is_found() -> None:
    tree = {"a": {}, "b?": {"[]": {"c": {}}}}
    assert has({"a": 1, "b": [{"c": 1}]}, tree) == {".a", ".b?", ".b?.[]", ".b?.[].c"}
    for wrong in ({}, {"a": 1, "x": 1}, {"a": {"x": 1}}, {"a": [[{}]]}, {"a": 1, "b": [{}]}, {"a": 1, "b": 1}, []):
        with pytest.raises(AssertionError):
            has(wrong, tree)


def test_recipes_and_plans(called: Called) -> None:
    check("recipes", called("recipes"))
    check("diff", called("diff", "345m", "530b"))
    small_memory = ("--gpu", "v100-16gb", "--nodes", "2", "--deepspeed_config", "ds_configs/zero1_fp16.json")
    check(
        "plan",
        called("plan", "530b", "--price", "2"),
        called("plan", "tiny", "--verify"),
        called("plan", "13b", *small_memory),
    )
    check("plan --decode", called("plan", "530b", "--decode"))
    check("plan --search", *(called("plan", "18b", "--search", "--top", "2", "--nodes", n) for n in ("32", "30")))


def test_data(called: Called, corpus: Path) -> None:
    check("prepare --corpora", called("prepare", "--corpora"))
    evals = write(corpus.with_name("evals.jsonl"), [prose(3), "too short"])
    out, skip = str(corpus.with_name("out")), ("--workers", "1", "--on-error", "skip")
    stages = ("default", f"decontaminate:{evals}")
    check("clean", called("clean", str(corpus), "--out", out, *skip, "--stages", *stages))
    prepare = ("prepare", "tiny", *small(corpus), "--engine", "tokenizers", *skip)
    check("prepare --nodes", called(*prepare, "--nodes", "2", "--node", "1"))
    prepared = called(*prepare)
    splits = ({"prompt": "why?", "completion": "so", "split": split} for split in ("train", "validation", "test"))
    rows = write_rows(corpus.with_name("rows.jsonl"), *splits)
    words = f"data.tokeniser={prepared['parts'][0]['folder']}/tokeniser"
    tuned = called("prepare", "tune_sentiment", "--set", words, f"data.corpus={rows}", *skip)
    run = corpus.with_name("untrained")
    conftest.write_untrained(run)
    taught = called(*prepare, "--set", f"teacher.model={run}", f"data.tokeniser={run / 'tokeniser'}")
    check("prepare", prepared, tuned, taught)
    check("inspect", called("inspect", prepared["parts"][0]["folder"]))


def test_a_trained_model(called: Called, untrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (untrained / "text.txt").write_text(conftest.WORDS)
    evaluate = ("evaluate", "--run", str(untrained), "--data", str(untrained / "text.txt"))
    causal, recipe = called(*evaluate), (untrained / "recipe.json").read_text()
    check("evaluate --protocol", called(*evaluate, "--protocol", "wikitext103"))
    (untrained / "recipe.json").write_text(recipe.replace('"causal"', '"masked"'))
    masked = called(*evaluate, "--pseudo-tokens", "3")
    tunes = recipe.replace('"template": ""', '"template": "{text}:{label}"').replace('"bpe:4096"', '"base"')
    (untrained / "recipe.json").write_text(tunes)
    rows = write_rows(untrained / "rows.jsonl", {"text": "the cat", "label": "sat"})
    check("evaluate", causal, masked, called(*evaluate[:-1], str(rows)))
    (untrained / "recipe.json").write_text(recipe)
    short = ("generate", "--run", str(untrained), "--max-new-tokens", "2")
    best = called(*short, "--prompt", "the", "--best-of", "2", "--tidy", "spaces")
    check("generate", called(*short, "--prompt", "the"), best)
    prompts, out = ("--prompts", str(untrained / "text.txt")), ("--out", str(untrained / "out.jsonl"))
    check("generate --prompts", called(*short, *prompts, *out))
    check("look", called("look", "--run", str(untrained), "--prompt", "the"))
    check("export", called("export", "--run", str(untrained)))
    check("serve", called("serve", "--run", str(untrained)))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"cat\n")))
    check("chat", called("chat", "--run", str(untrained), "--max-new-tokens", "2"))


def test_runs(called: Called, tmp_path: Path) -> None:
    path = directories.run(tmp_path / "runs", "x", name="mine", validation={2: 5.0})
    directories.checkpoint(path, 1), directories.checkpoint(path, 3)
    check("runs", called("runs"))
    check("note", called("note", "mine", "too fast"))
    assert called("runs")[0]["note"] == "too fast"
    check("clean-runs", called("clean-runs", "mine"))
    with locked(path / ".lock"):
        check("save", called("save", "mine"))


def test_runs_beside_each_other(called: Called, tmp_path: Path) -> None:
    lines = [test_compare.line(step, 9.0 - step, validation_loss=9.0) for step in (1, 2)]
    paths = [test_compare.run(tmp_path, name, lines, settings=[f"seed={ord(name)}"]) for name in "ab"]
    values = called("compare", *map(str, paths))
    check("compare", values)
    assert Path(values["picture"]).exists() and values["differences"][0]["values"] == [97, 98]


def test_a_search(called: Called, tmp_path: Path) -> None:
    folder = trials.folder("gpt_tiny", "rate")
    points, _ = trials.numbered(folder, grid([Axis("optimizer.lr", ("1", "2"))], []))
    trials.write(folder, points)
    lines = [test_compare.line(step, 9.0 - step, validation_loss=9.0) for step in (1, 2)]
    test_compare.run(tmp_path / "runs", points[1].path.name, lines, status=STOPPED)
    values = called("try", "tiny", "--name", "rate", "--table")
    check("try", values)
    assert [point["number"] for point in values["points"]] == [2, 1] and Path(values["picture"]).exists()


def test_a_report_without_finite_numbers(called: Called, untrained: Path) -> None:
    line = {"step": 1, "consumed_samples": 8, "loss": 800.0, "validation_loss": 800.0, "tokens_per_second": 5.0}
    line["task/mine/acc"] = 0.5
    last = {"step": 1, "consumed_samples": 8, "final_validation_loss": 800.0}
    (untrained / "metrics.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(last))
    (untrained / "data.json").write_text('{"bytes_per_token": 2.0, "parts": []}')
    start = {"world_size": 2, "max_steps": 1, "resumed": False, "deviations": []}
    (untrained / "start.json").write_text(json.dumps(start))
    (untrained / "ds_config.resolved.json").write_text('{"train_batch_size": 16}')
    report.write(untrained)
    values = called("report", "--run", str(untrained))
    check("report", values)
    assert values["validation_loss"] == 800 and values["perplexity"] is None and values["status"] == "finished"


def test_a_report_where_no_curve_can_be_written(
    called: Called, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("run.curve.draw", refuse)
    (untrained / "metrics.jsonl").write_text('{"step": 1, "consumed_samples": 8, "loss": 4.0}')
    assert called("report", "--run", str(untrained))["loss"] == 4


def test_a_run_that_is_watched(called: Called, tmp_path: Path) -> None:
    write_happened(write_run(tmp_path / "run"), [*started(), step(1, 12.0), event("end", 13.0, status=0)])
    values = called("watch", str(tmp_path / "run"))
    check("watch", values)
    assert values["status"] == "finished" and values["step"] == 1


@pytest.mark.parametrize(("command", "words"), [
    ("recipes --all", "--all"), ("diff tiny tinny", "did you mean gpt_tiny"),
    ("new-recipe x --from y", "no recipe 'y'"),
    ("pretrain tinny", "did you mean gpt_tiny"), ("rehearse 530b --processes 2", "4 ranks"),
    ("plan 530b --top 0", "--top is 0"), ("prepare", "name a recipe"), ("clean x --out y", "corpus 'x' does not exist"),
    ("inspect x", "no prepared folder"), ("evaluate --run x", "not a run"),
    ("evaluate --shots 1", "--shots goes with --tasks"), ("evaluate --tasks a,a", "--tasks names a twice"),
    ("evaluate --tasks a --limit 0", "--limit is 0"), ("export --run x", "not a run"),
    ("chat --run x", "not a run"), ("serve --run x", "not a run"),
    ("import x --recipe tiny", "x is no folder and no GGUF"),
    ("look --run x --prompt y", "not a run"),
    ("generate --prompt x --seed -1", "--seed must be from 0 to 4294967295"), ("report", "there is no run"),
    ("runs tinny", "did you mean gpt_tiny"), ("note x y", "not a run"), ("clean-runs x", "not a run"),
    ("preflight tinny", "did you mean gpt_tiny"),
    ("watch x", "not a run"), ("check x.json", "x.json does not exist"),
])  # fmt: skip
def test_an_error_is_one_line_and_no_json(
    command: str, words: str, called: Called, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        called(*command.split())
    out, error = capfd.readouterr()
    assert (ended.value.code, out, error.count("\n")) == (WRONG_INPUT, "", 1), error
    assert error.startswith("error: ") and words in error
