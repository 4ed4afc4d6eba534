"""A sharded recipe and the pipelined 530B walk the road: train, SIGKILL, resume to the same numbers, export."""

import json
from pathlib import Path

import pytest

from launch.rehearse import narrow
from recipes.registry import load, names
from recipes.settings import override
from support.errors import UserError
from tests.commands.documented import check
from tests.commands.running import fail, succeed


@pytest.mark.parametrize(("name", "processes"), [("125m", 2), ("530b", 4)])
def test_a_recipe_rehearses(name: str, processes: int, tmp_path: Path) -> None:
    values = json.loads(succeed(tmp_path, "commands", "rehearse", name, "--processes", str(processes), "--json"))
    check("rehearse", values)
    assert values["resumed_equals_unbroken"] and values["killed_after_step"] < values["steps"]
    assert values["processes"] == processes
    assert (Path(values["export"]) / "model.safetensors").exists()
    starts = (tmp_path / "runs" / "rehearsals" / values["recipe"] / "killed" / "starts.jsonl").read_text().splitlines()
    assert [json.loads(line)["resumed"] for line in starts] == [False, True]


@pytest.mark.parametrize("name", [name for name in names() if not load(name).data.tunes])
def test_every_axis_that_is_split_stays_split(name: str) -> None:
    recipe = load(name)
    plan = narrow(recipe, 8)
    small = override(recipe, list(plan.settings))
    for axis in ("tp", "pp", "ulysses"):
        assert (getattr(small.layout, axis) > 1) == (getattr(recipe.layout, axis) > 1)
    assert small.layout.data_degree(plan.processes) == (
        2 if recipe.layout.data_degree(recipe.cluster.world_size) > 1 else 1
    )
    assert small.optimizer == recipe.optimizer and small.engine == recipe.engine
    assert bool(small.batch.ramp) == bool(recipe.batch.ramp)
    assert [part.weight for part in small.data.parts] == [part.weight for part in recipe.data.parts]
    assert small.model.num_layers % small.layout.pp == 0


def test_too_few_processes_are_refused(tmp_path: Path) -> None:
    assert "needs at least 4 ranks" in fail(tmp_path, "commands", "rehearse", "530b", "--processes", "2")


def test_what_tunes_a_model_is_not_rehearsed() -> None:
    with pytest.raises(UserError, match=r"tune_sentiment tunes a model, and a rehearsal has none; rehearse the recipe"):
        narrow(load("tune_sentiment"), 8)
    with pytest.raises(UserError, match="gpt_tiny tunes a model, and a rehearsal has none"):
        narrow(override(load("tiny"), ["lora.rank=4"]), 8)
