"""Each rank makes the groups that it is in, one an axis, however large the world is."""

import dataclasses

import pytest
import torch
import torch.distributed as dist

from model.engine.build import quiet_deepspeed
from model.layout import Layout
from recipes.registry import load
from tests.distributed import run_ranks
from tests.model import training


def made_groups() -> list[list[int]]:
    """The ranks of each process group that this process knows, without the world's."""
    known = dist.distributed_c10d._world.pg_map
    return sorted(dist.get_process_group_ranks(group) for group in known if group is not dist.group.WORLD)


def test_every_axis_holds_every_rank_once() -> None:
    from model.pipeline import axes_of

    layout, world = Layout(tp=2, pp=3, ulysses=2), 24
    axes = {**layout.groups(world), **axes_of(layout, world)}
    for name, groups in axes.items():
        assert sorted(rank for ranks in groups for rank in ranks) == list(range(world)), name
    assert axes["tensor"][:2] == [[0, 1], [2, 3]]
    assert axes["ulysses"][:2] == [[0, 2], [1, 3]]
    assert axes["data"][:2] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert axes["model"][0] == [0, 1, 8, 9, 16, 17]
    assert axes["pipeline"][0] == [0, 8, 16] and axes["tied"][:2] == [[0, 16], [8]]


def test_deepspeed_has_a_rank_make_every_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand for 35 stages x 8 data x 8 tensor ranks: 8 replicas, 280 data, 64 pipe and 280 tensor groups."""
    quiet_deepspeed()
    from deepspeed import comm
    from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology

    from model.pipeline import pretended_world

    asked: list[list[int]] = []
    with pretended_world(load("530b").layout, 2240, 0):
        monkeypatch.setattr(comm, "new_group", lambda ranks: asked.append(list(ranks)) or "a group")
        PipelineParallelGrid(PipeModelDataParallelTopology(35, 8, 8))
    assert len(asked) == 8 + 280 + 64 + 280


@pytest.mark.parametrize("stage", [0, 17])
def test_a_rank_makes_one_group_an_axis(stage: int) -> None:
    """530B: its tensor, data, model, pipe and tied group. DeepSpeed would make 697."""
    quiet_deepspeed()
    from model.pipeline import meta_model, pretended_world

    recipe = load("530b")
    config = dataclasses.replace(recipe.model, num_layers=35, hidden_size=128, vocab_size=1000)
    rank = stage * 64 + 5
    with pretended_world(recipe.layout, 2240, rank) as grid:
        assert made_groups() == [
            list(range(stage * 64, stage * 64 + 8)),
            list(range(stage * 64 + 5, stage * 64 + 64, 8)),
        ]
        meta_model(config, grid, ("",) * 35, torch.float32)
        found = made_groups()
    assert len(found) == 5 and all(rank in ranks and len(ranks) > 1 for ranks in found)
    assert [5 + 64 * each for each in range(35)] in found and ([5, 2181] in found) == (stage == 0)


def members() -> list[list[int]]:
    """The ranks of the groups that this rank makes for a step, each of which has met: they add up their numbers."""
    training.trainer("pipeline_bf16", Layout(tp=2, pp=2))
    for group in [each for each in dist.distributed_c10d._world.pg_map if each is not dist.group.WORLD]:
        number = torch.tensor(float(dist.get_rank()))
        dist.all_reduce(number, group=group)
        assert float(number) == sum(dist.get_process_group_ranks(group))
    return made_groups()


def test_the_groups_of_a_pipeline_meet() -> None:
    """Two stages of two tensor ranks, by hand; a single data rank has a group, because DeepSpeed asks for it."""
    found = run_ranks(4, members)
    assert found[0] == [[0], [0, 1], [0, 1, 2, 3], [0, 2]]
    assert found[3] == [[0, 1, 2, 3], [1, 3], [2, 3], [3]]


def names_of_groups() -> list[str]:
    for _ in range(2):
        training.trainer("pipeline_fp32", Layout(pp=3))
    return [dist.distributed_c10d._world.pg_names[group] for group in dist.distributed_c10d._world.pg_map]


def test_a_second_engine_of_a_process_finds_its_groups() -> None:
    """A rank in the middle of a pipeline does not share the embedding; with a group less it would wait for ever.

    The world, and for each engine the data, the pipe (here the replica too) and the tied group.
    """
    found = run_ranks(3, names_of_groups)
    assert [len(names) for names in found] == [len(set(names)) for names in found] == [7] * 3
