"""NVMe offload: DeepSpeed's own swapping of optimiser states, over a stand-in for its asynchronous file operations.

The real ones are compiled against libaio for minutes; what is ours (checkpoints of states that are not in memory) and
what is DeepSpeed's Python run here as they are.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from model.checkpoint.read import load_newest
from model.checkpoint.write import save
from model.checkpoint.zero import state_of
from model.engine import config as engine_config
from model.engine.device import check_device
from tests.distributed import run_ranks
from tests.model import training

HALF, STEPS = 2, 4
# Clipping would scale by a norm that is summed in another order, and so round a bf16 weight otherwise now and then.
UNCLIPPED = {"gradient_clipping": 0.0}


class PlainHandle:
    """The methods that DeepSpeed's swappers call, done at once with ordinary files."""

    def __init__(self, **options: Any) -> None:
        self.done = 0
        self.pinned: set[int] = set()

    def new_cpu_locked_tensor(self, numel: int, like: Tensor) -> Tensor:
        buffer = torch.empty(numel, dtype=like.dtype)
        self.pinned.add(buffer.untyped_storage().data_ptr())
        return buffer

    def free_cpu_locked_tensor(self, buffer: Tensor) -> None:
        self.pinned.discard(buffer.untyped_storage().data_ptr())

    def is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.pinned

    def async_pwrite(self, buffer: Tensor, path: str, offset: int) -> int:
        Path(path).write_bytes(buffer.contiguous().view(torch.uint8).numpy().tobytes())
        self.done += 1
        return 0

    def async_pread(self, buffer: Tensor, path: str, offset: int) -> int:
        buffer.copy_(torch.frombuffer(bytearray(Path(path).read_bytes()), dtype=buffer.dtype)[: buffer.numel()])
        self.done += 1
        return 0

    def wait(self) -> int:
        done, self.done = self.done, 0
        return done


def nvme(folder: Path) -> Any:
    """An engine whose sub-groups of a few thousand numbers each live in files."""
    from deepspeed.runtime.swap_tensor import optimizer_utils, partitioned_optimizer_swapper

    optimizer_utils.MIN_AIO_BYTES = 1024
    stand_in = SimpleNamespace(load=lambda: SimpleNamespace(aio_handle=PlainHandle))
    partitioned_optimizer_swapper.AsyncIOBuilder = lambda: stand_in
    offload = {"device": "nvme", "nvme_path": str(folder), "buffer_count": 4, "pin_memory": False}
    section = {"stage": 3, "sub_group_size": 8000, "offload_optimizer": offload}
    subject = training.trainer("zero3_nvme_bf16", zero_optimization=section, aio={"block_size": 1024}, **UNCLIPPED)
    state = state_of(subject)
    swapped = [number for number in range(len(state.flats())) if state.is_swapped(number)]
    assert len(swapped) > 3 and list(folder.rglob("*.swp"))
    return subject


def losses(subject: Any, first: int, last: int) -> list[tuple[float, float]]:
    results = [training.step(subject, samples) for samples in training.batches(last)[first:]]
    return [(result.loss, result.grad_norm) for result in results]


def unbroken(root: Path) -> list[tuple[float, float]]:
    subject = nvme(root / f"nvme-{torch.distributed.get_rank()}")
    begun = losses(subject, 0, HALF)
    save(subject, root / "checkpoints", HALF, {}, keep=1)
    return begun + losses(subject, HALF, STEPS)


def resumed(root: Path) -> list[tuple[float, float]]:
    subject = nvme(root / f"again-{torch.distributed.get_rank()}")
    assert load_newest(subject, root / "checkpoints", print) == {}
    return losses(subject, HALF, STEPS)


def in_memory(root: Path, load: bool) -> list[tuple[float, float]]:
    subject = training.trainer("zero3_bf16", **UNCLIPPED)
    if load:
        load_newest(subject, root / "checkpoints", print)
    return losses(subject, HALF if load else 0, STEPS)


def test_states_in_files_train_save_and_resume_as_states_in_memory(tmp_path: Path) -> None:
    whole = run_ranks(2, unbroken, tmp_path)
    for ours, theirs in zip(whole[0], run_ranks(2, in_memory, tmp_path, False)[0], strict=True):
        assert ours[0] == theirs[0] and ours[1] == pytest.approx(theirs[1], rel=1e-6)  # the norm is summed by sub-group
    assert run_ranks(2, resumed, tmp_path) == [each[HALF:] for each in whole]
    for ours, theirs in zip(run_ranks(1, in_memory, tmp_path, True)[0], whole[0][HALF:], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-2)  # bf16 gradients added up over one rank instead of two
    files = sorted(path.name for path in (tmp_path / "checkpoints" / "step-00000002").iterdir())
    assert "rank-00001-00003.safetensors" in files and "rank-00000.safetensors" in files


@pytest.mark.parametrize(
    ("zero", "words"),
    [
        ({"stage": 3, "offload_param": {"device": "nvme", "nvme_path": "/x"}}, 'offload_param.device is "nvme"'),
        ({"stage": 3, "offload_optimizer": {"device": "nvme"}}, "offload_optimizer needs nvme_path"),
        ({"stage": 2, "offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}, "nvme needs ZeRO stage 3"),
        ({"stage": 3, "offload_optimizer": {"device": "disk"}}, "it must be one of none, cpu, nvme"),
    ],
)
def test_what_cannot_be_is_refused(zero: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        engine_config.check({"zero_optimization": zero}, "x")


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    offload = {"device": "nvme", "nvme_path": str(tmp_path / "none")}
    with pytest.raises(ValueError, match="none is not a folder that can be written to"):
        check_device({"zero_optimization": {"stage": 3, "offload_optimizer": offload}})


def test_offload_without_its_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where libaio is missing, DeepSpeed's builder for its asynchronous file operations is not compatible."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    offload = {"device": "nvme", "nvme_path": str(tmp_path)}
    config = {"zero_optimization": {"stage": 3, "offload_optimizer": offload}}
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: True)
    check_device(config)
    monkeypatch.setattr(AsyncIOBuilder, "is_compatible", lambda self, verbose: False)
    with pytest.raises(ValueError, match="offload to NVMe needs libaio"):
        check_device(config)
