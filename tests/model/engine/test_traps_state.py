"""What DeepSpeed 0.19.8 saves, reads and logs wrong, a test each, beside what this project does instead.

Not shown: that saving syncs nothing to the disk, for only a machine that loses its power would tell.
"""

import copy
import os
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import write
from model.checkpoint.format import completed, damage, facts, manifest, write_manifest
from model.checkpoint.read import Reader, load_newest
from model.checkpoint.write import save
from model.engine import config as engine_config
from model.engine import held
from model.engine.build import build
from model.engine.normal import Normal
from support.errors import UserError
from tests.distributed import run_ranks
from tests.model import alone, training
from tests.patience import wait_until

SHARD = "zero_pp_rank_0_mp_rank_00_optim_states.pt"
ADAM = {"type": "AdamW", "params": {"lr": 0.3, "weight_decay": 0.0, "torch_adam": True}}


def stepped(steps: int = 1) -> Any:
    """DeepSpeed with ZeRO-1 after some steps."""
    subject = alone.engine(alone.config(1, optimizer=ADAM))
    for _ in range(steps):
        alone.step(subject, 1.0)
    return subject


# --- Saving ----------------------------------------------------------------------------------------------------------


def seen_from_a_torn_shard(root: Path) -> str:
    """What `latest` says while rank 1 is still in the middle of its shard: what a crash would leave at that moment."""
    subject = stepped()
    if torch.distributed.get_rank() == 0:
        subject.save_checkpoint(str(root))
        return ""
    kept, latest, found = subject.checkpoint_engine.save, root / "latest", ""

    def slow(state_dict: Any, path: str) -> None:
        nonlocal found
        kept(state_dict, path)
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: len(whole) // 2])
        wait_until(lambda: latest.exists() and latest.read_text(), os.getpid())
        found = latest.read_text()
        assert Path(path).parent.name == found and Path(path).name.endswith("_states.pt")
        with pytest.raises(RuntimeError):
            torch.load(path, weights_only=False)
        Path(path).write_bytes(whole)

    subject.checkpoint_engine.save = slow
    subject.save_checkpoint(str(root))
    return found


def completed_during_a_torn_shard(root: Path) -> list[str]:
    """The same with our writer: what counts as a checkpoint while rank 1 is in the middle of its shard."""
    subject = training.trainer("zero1_fp32")
    kept, during = write.save_file, list[Path]()

    def slow(*args: Any) -> None:
        kept(*args)
        if torch.distributed.get_rank() == 1:
            time.sleep(0.3)  # for rank 0 to go on, if it would
            during.extend(completed(root))

    write.save_file = slow
    save(subject, root, 1, {}, keep=1)
    return [path.name for path in during]


def test_latest_names_a_checkpoint_that_another_rank_has_not_written(tmp_path: Path) -> None:
    assert run_ranks(2, seen_from_a_torn_shard, tmp_path / "theirs") == ["", "global_step1"]
    assert run_ranks(2, completed_during_a_torn_shard, tmp_path / "ours") == [[], []]
    assert [path.name for path in completed(tmp_path / "ours")] == ["step-00000001"]


def weights_in_other_places(round_robin: bool) -> int:
    """Parameters whose fp32 weights are not those that this rank's optimizer says it holds of them."""
    config = training.engine_json("zero1_fp32", 2)
    config["zero_optimization"]["round_robin_gradients"] = round_robin
    subject = build(training.CONFIG, training.SINGLE, config, training.SEED, training.ENTRIES)
    wrong = 0
    for flat, pieces in held.flats_of_stages_1_and_2(subject.deepspeed):
        for piece in pieces:
            mine = piece.parameter.detach().flatten()[piece.start : piece.start + piece.numel]
            wrong += not torch.equal(mine, flat[piece.offset : piece.offset + piece.numel])
    return wrong


def test_gradients_that_are_dealt_out_in_turn_belong_to_other_weights() -> None:
    """A checkpoint would hold the weights in another order."""
    assert sum(run_ranks(2, weights_in_other_places, False)) == 0
    assert sum(run_ranks(2, weights_in_other_places, True)) > 0
    with pytest.raises(ValueError, match="a checkpoint would hold the weights in another order"):
        engine_config.check({"zero_optimization": {"stage": 1, "round_robin_gradients": True}}, "x")


def writers_and_their_loader(root: Path) -> list[str]:
    """How `checkpoint.writer` fails: at the start, and where it got past that, at loading."""
    from deepspeed.runtime.checkpoint_engine.fast_checkpoint_engine import FastCheckpointEngine

    os.environ.update(CROSS_SIZE="1", CROSS_RANK="0")  # as the launcher sets them
    failed = []
    for writer in ({"type": "python"}, {"type": "fast"}, {"type": "python", "decoupled": True}):
        with pytest.raises(AttributeError, match="has no attribute 'dp_rank'"):
            alone.engine(alone.config(1, checkpoint={"writer": writer}))
    subject = stepped()
    subject.save_checkpoint(str(root))
    fast = FastCheckpointEngine(subject._config, None, False)
    for path in sorted(root.glob("*/*.pt")):
        try:
            fast.load(str(path))
        except pickle.UnpicklingError:
            failed.append(path.name)
    return failed


def test_other_checkpoint_writers_neither_start_nor_read(tmp_path: Path) -> None:
    assert run_ranks(1, writers_and_their_loader, tmp_path) == [[SHARD]]
    normal = Normal({"checkpoint": {"writer": {"type": "python"}}})
    assert (normal.json, normal.notes) == ({}, ["checkpoint is dropped: checkpoints are this project's own"])


# --- Reading ---------------------------------------------------------------------------------------------------------


def weight(subject: Any) -> float:
    return float(subject.optimizer.single_partition_of_fp32_groups[0][0].detach())


def read_a_flipped_bit(root: Path) -> tuple[float, float]:
    """The weight that was saved, and the one that is read after a bit of it flipped on the disk."""
    subject = stepped()
    subject.save_checkpoint(str(root))
    flip(root / "global_step1" / SHARD, torch.tensor(weight(subject)))
    saved = weight(subject)
    subject.load_checkpoint(str(root))
    return saved, weight(subject)


def flip(file: Path, number: torch.Tensor) -> None:
    """Flip the highest bit of the exponent of an fp32 number, wherever it stands in a file."""
    pattern = number.numpy().tobytes()
    content = file.read_bytes()
    assert pattern in content
    file.write_bytes(content.replace(pattern, pattern[:3] + bytes([pattern[3] ^ 0x40])))


def read_a_shard_of_another_step(root: Path) -> tuple[int, float, float]:
    """The step that is read, its weight, and the weight that belongs to it."""
    subject = stepped()
    right = weight(subject)
    subject.save_checkpoint(str(root), tag="1")
    alone.step(subject, 1.0)
    subject.save_checkpoint(str(root), tag="2")
    shutil.copy(root / "2" / SHARD, root / "1" / SHARD)
    subject.load_checkpoint(str(root), tag="1")
    return subject.global_steps, weight(subject), right


def read_a_client_s_own_step(root: Path) -> int:
    subject = stepped()
    subject.save_checkpoint(str(root), client_state={"global_steps": 99})
    subject.load_checkpoint(str(root))
    return int(subject.global_steps)


def read_from_nothing(root: Path) -> Any:
    return stepped().load_checkpoint(str(root))


def test_deepspeed_reads_damaged_and_foreign_shards_without_an_error(tmp_path: Path) -> None:
    ((saved, read),) = run_ranks(1, read_a_flipped_bit, tmp_path / "flipped")
    assert saved == pytest.approx(0.7) and read == pytest.approx(0.7 * 2.0**128)
    ((step, read, right),) = run_ranks(1, read_a_shard_of_another_step, tmp_path / "foreign")
    assert step == 1 and abs(read - right) > 0.1
    assert run_ranks(1, read_a_client_s_own_step, tmp_path / "client") == [99]
    assert run_ranks(1, read_from_nothing, tmp_path / "nothing") == [(None, None)]


def save_twice(root: Path) -> None:
    subject = training.trainer("zero1_fp32")
    for number, samples in enumerate(training.batches(2), start=1):
        training.step(subject, samples)
        save(subject, root, number, {"global_steps": 99}, keep=2)


def read_again(root: Path) -> tuple[int, list[str]]:
    subject, said = training.trainer("zero1_fp32"), list[str]()
    state = load_newest(subject, root, lambda path, why: said.append(path.name))
    assert state == {"global_steps": 99}
    return subject.deepspeed.global_steps, said


def test_our_checkpoints_notice_both(tmp_path: Path) -> None:
    run_ranks(1, save_twice, tmp_path)
    first, second = completed(tmp_path)
    assert run_ranks(1, read_again, tmp_path) == [(2, [])]
    shutil.copy(first / "rank-00000.safetensors", second)
    assert "is not the file that its manifest describes" in damage(second)
    ((step, said),) = run_ranks(1, read_again, tmp_path)
    assert step == 1 and said == [second.name]
    shutil.rmtree(second)
    flip(first / "rank-00000.safetensors", Reader(first).whole("final_norm.weight")[3])
    assert "is not the file that its manifest describes" in damage(first)


class Bomb:
    """What a malicious file may hold: something that acts as it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def read_a_bomb(root: Path, mark: Path) -> bool:
    subject = stepped()
    subject.save_checkpoint(str(root), client_state={"innocent": Bomb(mark)})
    assert not mark.exists()
    subject.load_checkpoint(str(root))
    return mark.exists()


def read_our_bomb(root: Path, mark: Path) -> bool:
    """A pickle in the place of a shard, with a manifest that vouches for it."""
    subject = training.trainer("zero1_fp32")
    folder = save(subject, root, 1, {}, keep=1)
    shard = folder / "rank-00000.safetensors"
    torch.save({"0.weight": Bomb(mark)}, shard)
    vouched = manifest(folder)
    vouched["files"][shard.name] = facts(shard)
    write_manifest(folder, vouched)
    assert "holds no tensors that can be read" in damage(folder)
    with pytest.raises(UserError, match="holds no tensors that can be read"):
        load_newest(subject, root, print)
    return mark.exists()


def test_deepspeed_runs_what_a_checkpoint_tells_it_to(tmp_path: Path) -> None:
    assert run_ranks(1, read_a_bomb, tmp_path / "theirs", tmp_path / "mark") == [True]
    assert run_ranks(1, read_our_bomb, tmp_path / "ours", tmp_path / "other mark") == [False]


# --- Data and logs ---------------------------------------------------------------------------------------------------


def batches_of_the_curriculum(folder: Path) -> tuple[list[Any], list[Any]]:
    """What DeepSpeed's sampler gives after its state was taken, and after that state was loaded."""
    from deepspeed.runtime.data_pipeline.data_sampling.data_sampler import DeepSpeedDataSampler

    metric = {"difficulty_type": "value", "clustering_type": "single_cluster", "min_difficulty": 1, "max_difficulty": 2}
    metric |= {"schedule_type": "fixed_discrete", "schedule_config": {"difficulty": [1, 2], "max_step": [100]}}
    curriculum = {"enabled": True, "data_cluster_path": str(folder), "curriculum_metrics": {"length": metric}}
    config = {"seed": 1, "data_sampling": {"num_epochs": 1, "curriculum_learning": curriculum}}
    group = torch.distributed.group.WORLD
    first, second = (DeepSpeedDataSampler(config, 64, 8, 0, 1, group, 1, 0) for _ in range(2))
    samples = iter(first)
    next(samples)
    state = copy.deepcopy(first.state_dict())
    second.load_state_dict(state)
    return next(samples), next(iter(second))


def test_the_curriculum_sampler_goes_on_in_another_order(tmp_path: Path) -> None:
    """It saves numpy's global random state and draws from its own. Our order is a function of seed and position."""
    ((went_on, resumed),) = run_ranks(1, batches_of_the_curriculum, tmp_path)
    assert sorted(went_on) == sorted(resumed) and went_on != resumed
    for section in ("data_efficiency", "curriculum_learning"):
        with pytest.raises(ValueError, match=f"{section} is switched on; the order of the data"):
            engine_config.check({section: {"enabled": True}}, "x")


def events(root: Path) -> set[str]:
    subject = alone.engine(alone.config(1, csv_monitor={"enabled": True, "output_path": str(root), "job_name": "run"}))
    alone.step(subject, 1.0)
    return {path.stem for path in (root / "run").iterdir()}


def test_the_monitors_get_no_training_loss(tmp_path: Path) -> None:
    """One reason why training has monitors of its own (tests/training/test_monitors.py)."""
    assert run_ranks(1, events, tmp_path) == [{"Train_Samples_lr"}]
