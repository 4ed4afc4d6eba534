"""The plan's command line: does it fit, how long, what would be better; and what it says to bad input."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from planner import planning, ranks, search
from planner.fit import predict
from planner.published.rows import PUBLISHED, read
from planner.resolve import engine_values
from planner.timing import step_time
from planner.verify import verify
from planner.work import Work
from recipes.registry import ROOT, load, names
from recipes.settings import override
from tests.commands.running import run


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return run(ROOT, "commands", "plan", *arguments)


def planned(name: str, *settings: str) -> dict:
    recipe = override(load(name), list(settings))
    machine = planning.cluster_machine(recipe.cluster)
    return planning.plan(recipe, ROOT / recipe.engine, recipe.cluster.world_size, machine)


SIZES = [name for name in names() if load(name).cluster.gpu != "cpu"]  # others are planned for processes


@pytest.mark.parametrize("name", SIZES)
def test_readme_and_header_have_the_planned_days(name: str) -> None:
    row = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| `{name}`"))
    header = (ROOT / "recipes" / f"{name}.py").read_text().split('"""')[1]
    days = f"{planned(name)['time']['days']:.0f} days"
    assert f"| {days} |" in row and f"; {days} planned\n" in header, days


@pytest.mark.parametrize("name", SIZES)
def test_every_recipe_fits_its_cluster(name: str) -> None:
    assert planned(name)["memory"]["fits"]


def test_the_readme_has_530b_beside_the_paper() -> None:
    text = (ROOT / "README.md").read_text()
    rows = read(PUBLISHED.with_name("mtnlg.csv"))
    for row, theirs, ramp in zip(rows, predict(rows), (32, 40, 48), strict=True):
        nodes = int(row.row_id)
        settings = [f"batch.ramp_start={ramp}", f"batch.ramp_increment={ramp}"]
        recipe = override(load("530b"), settings)
        values = planning.plan(recipe, ROOT / recipe.engine, nodes * 8, planning.cluster_machine(recipe.cluster))
        seconds = f"{row.seconds} s | {theirs:.1f} s | {values['time']['step_seconds']:.1f} s"
        assert f"| {nodes} | {seconds} |" in text, seconds


def test_the_parts_are_the_whole() -> None:
    values = planned("530b")
    time, memory = values["time"], values["memory"]
    assert sum(time["step_parts"].values()) == pytest.approx(time["step_seconds"])
    assert len(memory["stages"]) == 35 and sum(stage["blocks"] for stage in memory["stages"]) == 105
    for stage in memory["stages"]:
        assert sum(stage["bytes"].values()) == pytest.approx(stage["total_bytes"])
    assert memory["peak_bytes"] == max(stage["total_bytes"] for stage in memory["stages"])
    assert memory["worst_stage"] == 0 and memory["fits"]
    assert time["tokens_per_second"] * time["step_seconds"] == pytest.approx(values["tokens_per_step"])
    assert time["hardware_tflops_per_gpu"] > time["model_tflops_per_gpu"] * 1.3  # full recomputation


def test_the_ramp_s_smaller_steps_are_counted() -> None:
    """The same tokens without a ramp take fewer and more efficient steps."""
    recipe = load("530b")
    steps = planning.ramp_steps(recipe, recipe.batch)
    assert sum(count for _, count in steps) == recipe.train_steps and steps[0][0] == 32 and steps[-1][0] == 1920
    without = planned("530b", "batch.ramp_start=0", "batch.ramp_increment=0", "batch.ramp_samples=0")
    assert without["time"]["days"] < planned("530b")["time"]["days"]


def test_a_plan_and_a_search_load_no_torch() -> None:
    for flags in (["530b"], ["530b", "--search"]):
        code = (
            "import runpy, sys\n"
            f"sys.argv = ['stagecraft', 'plan', *{flags!r}, '--json']\n"
            "runpy.run_module('commands', run_name='__main__')\n"
            "assert not {'torch', 'deepspeed'} & set(sys.modules)\n"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_json_is_for_programs() -> None:
    done = command("345m", "--price", "2", "--storage", "10", "--json")
    values = json.loads(done.stdout)
    assert values["cost"] == pytest.approx(2 * values["time"]["gpu_hours"])
    assert values["saving"]["write_seconds"] == pytest.approx(12 * values["parameters"] / 10e9)
    assert values["gpu"] == "a100-80gb" and values["world_size"] == 8


def test_what_if() -> None:
    """Another GPU, another network, twice the sequence: the numbers move the way they must."""
    base = planned("gpt_175b")["time"]["step_seconds"]
    recipe = load("gpt_175b")
    hopper = planning.cluster_machine(dataclasses.replace(recipe.cluster, gpu="h100"))
    faster = planning.plan(recipe, ROOT / recipe.engine, 1024, hopper)
    assert faster["time"]["step_seconds"] < 0.7 * base
    slow = planning.plan(recipe, ROOT / recipe.engine, 1024, planning.cluster_machine(recipe.cluster, network_gb_s=5))
    assert slow["time"]["step_seconds"] > base
    assert planned("gpt_175b", "model.seq_length=4096")["time"]["step_seconds"] > 1.8 * base


def test_a_search_finds_only_what_runs_and_fits() -> None:
    """Every layout that the search offers is one that recipe, JSON and model accept, at the time and size it says."""
    recipe = load("39b")
    machine, path = planning.cluster_machine(recipe.cluster), ROOT / recipe.engine
    judged = search.search(recipe, path, 512, machine)
    assert (np.diff(judged.seconds) >= 0).all()
    for index in np.flatnonzero(judged.fits)[:: max(1, int(judged.fits.sum()) // 10)]:
        found = search.describe(judged, int(index))
        assert found["peak_bytes"] <= judged.usable
        settings = [f"layout.{key}={found[key]}" for key in ("tp", "pp")]
        settings += [f"layout.sequence_parallel={found['tp'] > 1}", f"batch.micro_batch={found['micro_batch']}"]
        chosen = override(recipe, settings)
        chosen.layout.check(chosen.model)
        assert chosen.layout.data_degree(512) == found["dp"]
        if found["zero_stage"] == 1 and found["recompute_every"] == 1:
            alone = planning.plan(chosen, path, 512, machine)
            assert alone["time"]["step_seconds"] == pytest.approx(found["step_seconds"], rel=1e-9)
            assert alone["memory"]["peak_bytes"] == pytest.approx(found["peak_bytes"], rel=1e-9)


def test_a_search_says_where_the_recipe_s_own_layout_stands() -> None:
    values = json.loads(command("18b", "--search", "--top", "3", "--json").stdout)
    assert len(values["layouts"]) == 3 and values["own"]["tp"] == 8 and values["own"]["runs"]
    best = values["layouts"][0]["step_seconds"]
    assert values["own"]["step_seconds"] == pytest.approx(best * (1 + values["own"]["slower_than_best"]))
    more = sum(values["own"]["parts_more_than_best"].values())
    assert more == pytest.approx(values["own"]["step_seconds"] - best)
    assert "the recipe's own" in command("18b", "--search", "--top", "3").stdout


NO_RAMP = ("batch.ramp_start=0", "batch.ramp_increment=0", "batch.ramp_samples=0")


@pytest.mark.parametrize(("name", "gpu", "settings"), [
    ("175b", "a100-80gb", ()), ("530b", "v100-16gb", ("batch.global_batch=1500", *NO_RAMP)),
    ("530b", "v100-16gb", ("batch.global_batch=105", *NO_RAMP)), ("1.3b", "v100-16gb", ()),
])  # fmt: skip
def test_the_smallest_cluster_is_the_smallest(name: str, gpu: str, settings: tuple[str, ...]) -> None:
    """Also where a larger cluster fits no layout because none divides it: 256 nodes for a batch of 1,500."""
    recipe = override(load(name), list(settings))
    path = ROOT / "ds_configs" / "pipeline_fp16.json"
    machine = planning.cluster_machine(dataclasses.replace(recipe.cluster, gpu=gpu))
    assert machine is not None
    nodes, free = search.smallest(recipe, path, machine), search.space(recipe, path)

    def fits(count: int) -> bool:
        step: Work | None = search.candidates(free, count * 8)
        return step is not None and bool((search.judge(step, machine).fits).any())

    assert nodes == next(count for count in range(1, 301) if fits(count))


def test_a_model_that_no_cluster_holds() -> None:
    """One sequence a step leaves no data ranks, and one block nothing to cut but its width."""
    settings = ("batch.global_batch=1", "layout.pp=1", "model.num_layers=1", "batch.micro_batch=1", *NO_RAMP)
    recipe = override(load("530b"), [*settings, "model.seq_length=262144"])
    machine = planning.cluster_machine(dataclasses.replace(recipe.cluster, gpu="v100-16gb"))
    assert machine is not None
    text = search.remedy(recipe, ROOT / "ds_configs" / "pipeline_fp16.json", 8, machine)
    assert "no cluster of v100-16gb holds gpt_530b with its global batch" in text


@pytest.mark.parametrize("batch", ["2.56e2", "null"])
def test_a_batch_that_is_written_otherwise_has_nearest_clusters(batch: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        f'{{"train_batch_size": {batch}, "zero_optimization": {{"stage": 1, "offload_optimizer": "auto"}}}}'
    )
    with pytest.raises(ValueError, match="the nearest clusters that go with layout and batch: 2 or 4 ranks"):
        ranks.check_ranks(load("345m"), path, 3, None, 1)


def test_a_recipe_s_own_json_may_have_old_spellings(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text('{"bfloat16": {"enabled": true}, "optimizer": {"params": {"max_grad_norm": 0.5}}}')
    values = engine_values(dataclasses.replace(load("345m"), engine=str(path)))
    assert (values["precision"], values["gradient_clipping"]) == ("bf16", 0.5)


def test_every_cluster_that_is_offered_runs() -> None:
    """The nearest clusters of one that does not do go through the very plan that refused it."""
    for name, world, unit in (
        ("530b", 2248, 8),
        ("530b", 1600, 16),
        ("530b", 2520, 8),
        ("345m", 3, 1),
        ("39b", 100, 4),
    ):
        recipe = load(name)
        machine, path = planning.cluster_machine(recipe.cluster), ROOT / recipe.engine
        with pytest.raises(ValueError, match="nearest clusters that go with layout and batch") as told:
            ranks.check_ranks(recipe, path, world, machine, unit)
        offered = re.findall(r"[\d,]+", str(told.value).rsplit("batch: ", 1)[1].split(" nodes of")[0])
        assert offered
        for count in offered:
            size = int(count.replace(",", "")) * unit
            assert planning.plan(recipe, path, size, machine)["world_size"] == size


def test_the_interval_of_a_found_layout_is_one_that_recomputes_as_many() -> None:
    """Every fourth and every third of five blocks are two; of 105, every fourth are 27."""
    recipe = override(load("530b"), ["layout.pp=1"])
    step = search.candidates(search.space(recipe, ROOT / recipe.engine), 64)
    machine = planning.cluster_machine(recipe.cluster)
    assert step is not None and machine is not None
    judged = search.judge(step, machine)
    for index in range(0, len(judged.seconds), 7):
        every = search.describe(judged, index)["recompute_every"]
        blocks = -(-105 // every) if every else 0
        assert blocks == round(105 * float(step.full[index]))
    few = search.stretch(dataclasses.replace(search.pick(step, 0), num_layers=5, full=2 / 5), 1)
    assert search.describe(search.judge(few, machine), 0)["recompute_every"] == 3


@pytest.mark.parametrize("name", ["gpt_39b", "gpt_13b", "gpt_tiny"])
def test_every_rank_is_what_was_planned(name: str) -> None:
    recipe = load(name)
    world = recipe.cluster.world_size
    verified = verify(recipe, ROOT / recipe.engine, world)
    assert verified["built"] == recipe.layout.pp
    assert sum(row["identical_ranks"] for row in verified["ranks"]) == world
    assert all(row["parameters"] == row["planned_parameters"] for row in verified["ranks"])


def test_a_closed_form_that_is_wrong_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = Work.parameters
    monkeypatch.setattr(Work, "parameters", lambda self, stage: exact(self, stage) + (stage == 1))
    recipe = load("39b")
    with pytest.raises(ValueError, match=r"rank 256 \(pipeline stage 2\) holds"):
        verify(recipe, ROOT / recipe.engine, 512)


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    done = command("345m", "--plot", str(tmp_path / "plan.png"))
    assert done.returncode == 0 and (tmp_path / "plan.png").read_bytes()[:4] == b"\x89PNG"


def test_a_picture_of_many_stages_has_legends_and_totals(tmp_path: Path) -> None:
    assert command("530b", "--plot", str(tmp_path / "plan.svg")).returncode == 0
    told = set(re.findall(r"<!-- +(.*?) +-->", (tmp_path / "plan.svg").read_text()))  # matplotlib's note of each text
    assert told >= {
        "a step: 45.9 s, 85,613 tokens/s, MFU 39.6%; the run: 37.3 days",
        *("matrix products  33.5 s, 72.9%", "pipeline bubble  5.36 s, 11.7%"),
        "the pipeline: 240 micro-batches on 35 stages, which wait 16.0% of the time on average",
        *("warm-up: forward only", "steady: both by turns", "cool-down: backward", "waiting for other stages"),
        "memory of a rank: the fullest rank is of stage 1: 27.0 GB of 76.0 GB usable, fits",
        *("gradients  12.37 GB", "usable  76.0 GB", "a100-80gb  80 GB", "27.0"),
    }
    numbers = {int(text) for text in told if text.isdigit()}
    assert {1, 2, 3, 239, 240} <= numbers and len(told) < 120  # both ends from near; not a label for each of 240


@pytest.mark.parametrize(("arguments", "words"), [
    (("530b", "--gpu", "a10-80gb"), "did you mean a100-80gb"),
    (("530b", "--gpu", "a100-60gb"), "there is no a100 with 60 GB"),
    (("530b", "--gpu", "tpu"), "there is no GPU 'tpu'"),
    (("530b", "--nodes", "281"), "does not divide 2248 ranks; the nearest clusters that go with layout and "
                                 "batch: 280 or 560 nodes of 8"),
    (("530b", "--nodes", "100", "--gpus-per-node", "16"), "layout and batch: 70 or 140 nodes of 16"),
    (("gpt_1t", "--nodes", "1"), "needs at least 512 ranks, here are 8; gpt_1t fits on no layout of 8 a100-80gb"),
    (("gpt_1t", "--nodes", "1"), "the smallest cluster of a100-80gb where a layout of gpt_1t fits is 43 nodes of 8"),
    (("39b", "--nodes", "1", "--gpu", "b200"), "needs at least 16 ranks, here are 8; other layouts fit these 8 b200"),
    (("345m", "--gpu", "v100", "--search"), "has no bf16; give an fp16 JSON"),
    (("530b", "--nodes", "0"), "--nodes is 0; it must be at least 1"),
    (("530b", "--nodes", "many"), "--nodes"),
    (("530b", "--nodes", "280", "--world-size", "2240"), "--nodes and --world-size are both given"),
    (("530b", "--search", "--plot", "x.png"), "--search does not go with --plot"),
    (("530b", "--search", "--storage", "3"), "--search does not go with --storage"),
    (("530b", "--top", "3"), "--top is of --search"),
    (("tiny", "--price", "3"), "--price needs a predicted time; gpt_tiny is planned for no GPU, give --gpu"),
    (("tiny", "--network", "5"), "--network needs a predicted time"),
    (("530b", "--price", "-1"), "--price is -1.0; it must be above 0 and finite"),
    (("530b", "--network", "nan"), "--network is nan; it must be above 0 and finite"),
    (("530b", "--seq-length", "2049"), "the sequence's degree 8"),
    (("530b", "--nodes", "2", "--search"), "fits on no layout of 16 a100-80gb"),
    (("345m", "--nodes", "29", "--search"), "no layout of gpt_345m divides 232 ranks"),
    (("tiny", "--search"), "is planned for no GPU of the catalogue; give --gpu"),
    (("6.7b", "--gpu", "v100"), "has no bf16; give an fp16 JSON"),
    (("345m", "--plot", "plan.txt"), "the name must end in one of"),
    (("345m", "--plot", "nowhere/plan.png"), "nowhere"),
])  # fmt: skip
def test_bad_input_is_one_line(arguments: tuple[str, ...], words: str) -> None:
    done = command(*arguments)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""


def test_what_does_not_fit_is_said_with_a_remedy() -> None:
    done = command("76b", "--gpu", "v100-16gb", "--nodes", "128", "--deepspeed_config", "ds_configs/pipeline_fp16.json",
                   "--set", "layout.pp=2")  # fmt: skip
    assert "DOES NOT FIT" in done.stdout and "other layouts fit these 1,024 v100-16gb" in done.stdout
    assert re.search(r"the smallest cluster of v100-16gb where a layout of gpt_76b fits is \d+ nodes of 8", done.stdout)
    values = json.loads(command("13b", "--gpu", "v100-16gb", "--nodes", "2", "--deepspeed_config",
                                "ds_configs/zero1_fp16.json", "--json").stdout)  # fmt: skip
    assert not values["memory"]["fits"] and f"is {values['smallest_cluster_nodes']} nodes" in values["remedy"]


def test_a_hundred_thousand_layouts_are_one_computation() -> None:
    """Not timed here (`python -m bench.search` is for that); only that nothing is looped over."""
    recipe = load("530b")
    machine = planning.cluster_machine(recipe.cluster)
    one = planning.own_step(recipe, ROOT / recipe.engine, 2240)
    many = search.stretch(one, 100_000)
    seconds = step_time(many, machine).seconds
    assert seconds.shape == (100_000,) and seconds[0] == pytest.approx(float(step_time(one, machine).seconds))
