"""What a resume goes on from, and what it may change."""

import json
from pathlib import Path

import pytest

from data.samples.mixture import Mixture
from recipes.registry import load
from run import record, resize, resume
from run.checkpoints import choose, spared
from run.directory import Run, read_recipe
from run.request import Request, plan_run, settled
from support.errors import WRONG_INPUT, UserError
from tests.run import directories


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of 40 steps with checkpoints of steps 20 and 40."""
    monkeypatch.setenv("STAGECRAFT_RUNS", str(tmp_path / "runs"))
    path = directories.run(tmp_path / "runs", "20270101-100000", steps=40, name="mine", validation={20: 1.0, 30: 0.5})
    for step in (20, 40):
        directories.checkpoint(path, step)
    return path


def resumed(*settings: str, recipe: str = "tiny", world: int = 2, **more: object) -> tuple[str, ...]:
    """What a resume changes."""
    request = Request(settings=settings, resume=True, **more)  # type: ignore[arg-type]
    return plan_run(load(recipe), request, world).changes


def lose(path: Path) -> None:
    for checkpoint in (path / "checkpoints").iterdir():
        checkpoint.rename(checkpoint.with_name(checkpoint.name + ".partial"))


def test_a_run_that_saved_has_something_to_go_on_from(path: Path) -> None:
    resume.check_can_go_on(path)
    directories.checkpoint(path, 60, damaged=True)
    (path / "checkpoints" / "step-00000060" / "rank-00000.safetensors").write_bytes(b"")
    resume.check_can_go_on(path)
    lose(path)
    resume.check_can_go_on(path)  # nothing says that it ever saved
    line = {"time": 1.0, "event": "saved", "step": 20, "path": "x", "seconds": 1.0, "bytes": 1}
    directories.lines(path / "events.jsonl", [line])
    with pytest.raises(UserError, match=r"has saved and .*/checkpoints holds no checkpoint: .* step 1") as caught:
        resume.check_can_go_on(path)
    assert caught.value.status == WRONG_INPUT


def test_metrics_too_tell_of_a_save(path: Path) -> None:
    lose(path)
    directories.lines(path / "metrics.jsonl", [{"step": 41, "loss": 1.0, "save_seconds": 0.1}])
    with pytest.raises(UserError, match="has saved and"):
        resume.check_can_go_on(path)


def test_where_none_can_be_used_the_newest_s_reason_is_said(path: Path) -> None:
    (path / "checkpoints" / "step-00000020" / "manifest.json").write_text("{}")
    (path / "checkpoints" / "step-00000040" / "rank-00000.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match=r"can be used: .*rank-00000.safetensors has 1 bytes .*; restore one"):
        resume.check_can_go_on(path)
    (path / record.FILE).unlink()
    with pytest.raises(UserError, match=r"run.json is missing or was changed, and its checkpoints name a run"):
        resume.check_can_go_on(path)


def test_another_run_s_checkpoint_is_not_evaluated_either(path: Path) -> None:
    other = directories.run(path.parents[1], "other")
    directories.checkpoint(other, 90).rename(path / "checkpoints" / "step-00000090")
    chosen = choose(path)
    assert chosen.step == 40 and "step-00000090: it belongs to another run" in chosen.passed_over[0]


class Data(Mixture):
    fingerprint = "f"  # type: ignore[assignment]

    def __init__(self) -> None:
        pass


def test_a_tie_lasts_as_long_as_its_run(path: Path) -> None:
    before = resume.tie_of(path, Data())
    assert set(before) == {"run", "recipe", "data"} and before["run"] == record.read(path).id  # type: ignore[union-attr]
    stored = json.loads((path / "recipe.json").read_text())
    (path / "recipe.json").write_text(json.dumps(stored | {"optimizer": {"lr": 1}, "a later field": 1}))
    assert resume.tie_of(path, Data()) == before
    (path / "recipe.json").write_text(json.dumps(stored | {"seed": 7}))
    assert resume.tie_of(path, Data())["recipe"] != before["recipe"]


CHANGES = {
    "optimizer.lr=0.001": "optimizer.lr 0.003 -> 0.001",
    "optimizer.weight_decay=0": "optimizer.weight_decay 0.1 -> 0.0",
    "schedule.warmup_tokens=1024": "schedule.warmup_tokens 81920 -> 1024",
    "schedule.train_tokens=1_700_000": "schedule.train_tokens 1638400 -> 1700000",
    "batch.global_batch=32": "train_batch_size 16 -> 32",
}


@pytest.mark.parametrize("setting", list(CHANGES))
def test_other_numbers_are_refused_and_allowed_by_a_flag(setting: str, path: Path) -> None:
    words = (
        f"this resume of {path} would change {CHANGES[setting]}; leave that out, add --allow-change .* --from {path}"
    )
    with pytest.raises(UserError, match=words):
        resumed(setting)
    assert resumed(setting, allow_change=True) == (CHANGES[setting],)


@pytest.mark.parametrize(("config", "change"), [
    ({"bf16": {"enabled": True}}, ["precision fp32 -> bf16"]),
    ({"fp16": {"enabled": True}, "gradient_clipping": 0.5}, ["precision fp32 -> fp16", "gradient_clipping 1.0 -> 0.5"]),
    ({"optimizer": {"type": "Adam", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}},
     ["optimizer.type AdamW -> Adam"]),
    ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 9}}}, ["scheduler.type none -> WarmupLR"]),
])  # fmt: skip
def test_another_json_may_compute_other_numbers(
    config: dict[str, object], change: list[str], path: Path, tmp_path: Path
) -> None:
    stored = json.loads((path / "ds_config.json").read_text())
    (tmp_path / "mine.json").write_text(json.dumps({**stored, **config}))
    with pytest.raises(UserError, match=r"would change .*add --allow-change"):
        resumed(deepspeed_config=str(tmp_path / "mine.json"))
    assert set(change) <= set(resumed(deepspeed_config=str(tmp_path / "mine.json"), allow_change=True))


@pytest.mark.parametrize(("settings", "more"), [
    ((), {}),
    ((), {"world": 1}),
    (("batch.micro_batch=2",), {"world": 4}),
    (("layout.pp=2",), {"deepspeed_config": "ds_configs/pipeline_fp32.json"}),
    (("intervals.save_every=3", "intervals.keep_every=9"), {"max_steps": 7}),
    ((), {"deepspeed_config": "ds_configs/zero0_fp32.json"}),
    ((), {"deepspeed_config": "ds_configs/zero2_fp32.json"}),
    ((), {"deepspeed_config": "ds_configs/zero3_fp32.json"}),
    (("optimizer.lr=0.003",), {}),
])  # fmt: skip
def test_how_it_is_computed_may_change_unasked(settings: tuple[str, ...], more: dict[str, object], path: Path) -> None:
    assert resumed(*settings, **more) == ()  # type: ignore[arg-type]


def test_a_change_that_was_allowed_is_none_the_next_time(path: Path) -> None:
    """The last start's recipe is in start.json; recipe.json stays the first one's."""
    run = plan_run(load("tiny"), Request(settings=("optimizer.lr=0.001",), resume=True, allow_change=True), 2)
    stored = json.loads((path / "recipe.json").read_text())
    asked = json.loads((path / "start.json").read_text())
    changed = {**stored, "optimizer": {**stored["optimizer"], "lr": run.recipe.optimizer.lr}}
    (path / "start.json").write_text(json.dumps(asked | {"recipe": changed}))
    assert read_recipe(path).optimizer.lr == 0.001 and resumed() == ()
    with pytest.raises(UserError, match=r"optimizer.lr 0.001 -> 0.003"):
        resumed("optimizer.lr=0.003")


def test_auto_goes_on_where_there_is_a_run_and_begins_one_where_there_is_none(path: Path, tmp_path: Path) -> None:
    def auto(**more: object) -> Request:
        return settled(load("tiny"), Request(auto=True, **more))  # type: ignore[arg-type]

    on = Request(run_dir=str(path), resume=True)
    assert auto() == auto(name="mine") == auto(run_dir=str(path)) == auto(run_dir="mine", branch="mine@20") == on
    assert auto(run_dir=str(tmp_path / "new")) == Request(run_dir=str(tmp_path / "new"))
    assert auto(name="other") == Request(name="other") and auto(name="other", branch="mine").branch == "mine"
    assert settled(load("345m"), Request(auto=True)) == Request()
    fresh = directories.run(path.parents[1], "fresh", steps=0)
    assert auto(run_dir=str(fresh)) == Request(run_dir=str(fresh))
    with pytest.raises(UserError, match="--resume auto with --from needs --run-dir or --name"):
        auto(branch="mine")


def test_the_best_and_every_nth_are_spared(path: Path) -> None:
    run = plan_run(load("tiny"), Request(resume=True, settings=("intervals.keep_every=15",)), 2)
    assert spared(run, [10, 20, 30, 40, 45]) == {30, 45}
    assert spared(run, [10, 20, 40]) == {20} and spared(run, [10]) == set()


def test_what_adapters_lie_on_is_spared(path: Path) -> None:
    run, base = plan_run(load("tiny"), Request(resume=True), 2), path / "checkpoints" / "step-00000010"
    parent = {"id": "", "path": str(path), "step": 10, "consumed_samples": 160, "changes": [], "base": str(base)}
    directories.run(path.parents[1], "adapters", parent=parent)
    assert spared(run, [10, 40]) - {40} == {10}


def on(world: int, *settings: str, **more: object) -> Run:
    return plan_run(load("tiny"), Request(settings=settings, resume=True, **more), world)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "world", "words"),
    [
        ([], 3, r"3 ranks: its global batch 16 does not divide by the data degree 3; give --processes 2 or 4, or"),
        ([], 17, r"the data degree 17; give --processes 16, or"),
        (["layout.pp=2"], 3, r"its layout tp 1 x pp 2 x ulysses 1 takes a multiple of 2; give --processes 2 or 4, or"),
        (["layout.pp=2"], 1, r"takes a multiple of 2; give --processes 2, or"),
        (["layout.pp=2"], 6, r"does not divide by the data degree 3; give --processes 4 or 8, or"),
    ],
)
def test_ranks_that_do_not_divide_a_run_are_refused_with_the_nearest_that_do(
    settings: list[str], world: int, words: str, path: Path
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        on(world, *settings)
    assert str(caught.value).startswith(f"{path} cannot go on with {world} ranks: ") and "\n" not in str(caught.value)


def test_what_a_json_fixes_is_not_changed_by_other_ranks(path: Path) -> None:
    config = json.loads((path / "ds_config.json").read_text())
    (path / "ds_config.json").write_text(json.dumps({**config, "train_micro_batch_size_per_gpu": 8}))
    with pytest.raises(UserError, match=r"4 ranks: .*global batch 16 does not divide by micro-batch 8 x .*s 2, or"):
        on(4)
    (path / "ds_config.json").write_text(
        json.dumps({**config, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 1})
    )
    with pytest.raises(UserError, match=r"1 ranks: its steps would not have 16 sequences; give --processes 2, or"):
        on(1)
    assert on(1, allow_change=True).changes == ("train_batch_size 16 -> 8",)


def test_the_micro_batch_follows_the_ranks_and_comes_back(path: Path) -> None:
    """gpt_tiny has 16 = 8 x 2 ranks; the recipe keeps its 8."""
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    found = {world: on(world) for world in (1, 2, 4, 16)}
    assert {world: [run.engine.json[size] for size in sizes] for world, run in found.items()} == {
        1: [16, 8, 2],
        2: [16, 8, 1],
        4: [16, 4, 1],
        16: [16, 1, 1],
    }
    assert all(run.recipe.batch.micro_batch == 8 and not run.changes for run in found.values())
    assert found[4].engine.deviations == ("the micro-batch is 4 (recipe: 8), so that 4 ranks take the same steps",)
    fewer = resize.on_at_most(found[16], 7)
    assert fewer and fewer.world_size == 4 and fewer.engine == found[4].engine
    assert resize.on_at_most(found[16], 0) is None
    resize.write(fewer)
    start = json.loads((path / "start.json").read_text())
    assert start["world_size"] == 4 and start["deviations"] == list(found[4].engine.deviations)
    assert on(2).engine == found[2].engine


def test_a_ramp_that_lies_behind_divides_no_more(path: Path) -> None:
    """The ramp's 4 and 10 need a data degree of 1 or 2 until 320 samples are read, and 320 is the older checkpoint."""
    recipe = json.loads((path / "recipe.json").read_text())
    recipe["batch"] |= {"ramp_start": 4, "ramp_increment": 6, "ramp_samples": 320}
    (path / "recipe.json").write_text(json.dumps(recipe))
    assert resize.consumed(path) == 320
    assert on(4).engine.json["gradient_accumulation_steps"] == 1
    directories.checkpoint(path, 19)
    with pytest.raises(UserError, match=r"4 ranks: its global batch 10 of the ramp does not .* 4; give .*s 2, or"):
        on(4)
