"""What DeepSpeed 0.19.8 adds up, sends and reports wrong without a word, beside what this project does instead.

Not shown: the second optimizer of `offload_optimizer.ratio`, which needs a compiled kernel.
"""

import csv
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from model.engine import config as engine_config
from model.engine import inside
from model.engine.held import flats_of_stage_3, flats_of_stages_1_and_2
from model.engine.resolve import resolve
from model.layout import Layout
from recipes.registry import ROOT
from tests.distributed import run_ranks
from tests.model import alone, training
from tests.model.engine.test_config import VALUES

# --- Sums ------------------------------------------------------------------------------------------------------------

EXACT, ROUNDED = 0.5 + 2**-10, 0.5  # the mean of 1 and 2^-9, and what the 8 bits of bf16 keep of it


def resolved(stage: int, micro_batches: int, ranks: int, **more: Any) -> dict[str, Any]:
    values = {**VALUES, "train_batch_size": micro_batches * ranks, "train_micro_batch_size_per_gpu": 1}
    config = {"bf16": {"enabled": True}, "zero_optimization": {"stage": stage}, **more}
    engine_config.check(config, "x")
    return resolve(config, values, ranks, "x").json


def mean_gradient(config: dict[str, Any], *mine: float) -> float:
    """The mean of this rank's micro-batches' gradients and the other ranks', as the norm tells it."""
    subject = alone.engine(config)
    for gradient in mine:
        alone.step(subject, gradient)
    return float(subject.get_global_grad_norm())


def means_over_ranks() -> list[float]:
    mine, theirs = (1.0, 2**-9)[torch.distributed.get_rank()], alone.config(1, "bf16", gradient_clipping=0.0)
    return [
        mean_gradient(theirs | {"data_types": {"grad_accum_dtype": "fp32"}}, mine),
        *(mean_gradient(resolved(stage, 1, 2), mine) for stage in (1, 2, 3)),
        *(mean_gradient(resolved(stage, 1, 2, communication_data_type="fp32"), mine) for stage in (2, 3)),
        mean_gradient(resolved(1, 1, 2, communication_data_type="bf16"), mine),
    ]


def test_what_is_summed_in_fp32_is_sent_in_fp32() -> None:
    """DeepSpeed rounds fp32 sums to bf16 before it sends them. Stages 2 and 3 send each micro-batch's own gradients."""
    for means in run_ranks(2, means_over_ranks):
        assert means == [ROUNDED, EXACT, ROUNDED, ROUNDED, EXACT, EXACT, ROUNDED]


def means_over_micro_batches() -> list[float]:
    theirs = alone.config(1, "bf16", gradient_clipping=0.0, gradient_accumulation_steps=2)
    return [
        mean_gradient(theirs, 1.0, 2**-9),
        *(mean_gradient(resolved(stage, 2, 1), 1.0, 2**-9) for stage in (1, 2, 3)),
        mean_gradient(resolved(1, 2, 1, data_types={"grad_accum_dtype": "bf16"}), 1.0, 2**-9),
    ]


def test_bf16_gradients_are_added_up_in_fp32() -> None:
    """As a JSON without `data_types` leaves it, DeepSpeed adds micro-batches up in bf16."""
    assert run_ranks(1, means_over_micro_batches) == [[ROUNDED, EXACT, EXACT, EXACT, ROUNDED]]


def predivided() -> float:
    """The norm of a mean gradient of 1 in stage 3 with a factor of 2."""
    theirs = alone.config(3, gradient_clipping=0.0, gradient_predivide_factor=2.0)
    return mean_gradient({**theirs, "zero_optimization": {"stage": 3, "reduce_scatter": False}}, 1.0)


def test_a_predivided_gradient_is_halved_in_stage_3() -> None:
    """Refused here, see test_config.py."""
    assert run_ranks(2, predivided) == [0.5, 0.5]


RISING = {"enabled": True, "initial_scale_power": 4, "loss_scale_window": 1}  # the scale rises in every step


def moves_and_norms(stage: int, held: bool) -> tuple[list[float], list[float]]:
    """How far two steps of a gradient of 1 and a rate of a half move a weight in fp16, and the norms that are told."""
    subject = alone.engine(alone.config(stage, fp16=RISING, gradient_clipping=0.0))
    norms, weights = [], [1.0]
    for _ in range(2):
        if held:
            inside.hold_loss_scale(subject)
        alone.step(subject, 1.0)
        norms.append(float(subject.get_global_grad_norm()))
        ((tensor, _),) = (flats_of_stage_3 if stage == 3 else flats_of_stages_1_and_2)(subject)
        weights.append(float(tensor[0]))
    assert inside.loss_scale(subject).current > 16  # type: ignore[union-attr]
    return [before - after for before, after in itertools.pairwise(weights)], norms


def rising() -> list[tuple[list[float], list[float]]]:
    return [moves_and_norms(stage, held) for held in (False, True) for stage in (1, 2, 3)]


def test_a_rising_loss_scale_does_not_halve_a_step() -> None:
    """DeepSpeed divides by the scale of the next step. A clipped gradient does not show it."""
    (both,) = run_ranks(1, rising)
    theirs, ours = both[:3], both[3:]
    assert [moves for moves, norms in theirs] == [[0.5, 0.25]] * 3 and theirs[2][1] == [1.0, 0.5]
    assert ours == [([0.5, 0.5], [1.0, 1.0])] * 3


def test_norms_are_right_while_the_loss_scale_rises() -> None:
    """They are fp32's, to two roundings of fp16 in each of 2 layers, head and embedding."""
    (ours,) = run_ranks(1, training.run_engine, "zero3_fp16", 3, fp16=RISING)
    assert [result.loss_scale for result in ours] == [16.0, 16.0, 32.0]
    assert [result.grad_norm for result in ours] == pytest.approx(training.run_plain(3).norms, rel=8 * 2.0**-11)


# --- Under every JSON that is shipped --------------------------------------------------------------------------------

SMALLEST = 1000  # elements: losses, norms and overflow flags are smaller, a bucket of gradients is not
SHIPPED = sorted(path.stem for path in (ROOT / "ds_configs").glob("*.json"))
# Sums in stage 1 and in a pipeline, each micro-batch's own gradients in stages 2 and 3.
SENT = {name: "float16" if "fp16" in name else "float32" for name in SHIPPED}
SENT |= {name: "bfloat16" for name in SHIPPED if name.endswith("bf16") and name[:5] in ("zero2", "zero3", "long_")}


def sent_in(names: list[str], layout: Layout, folder: Path) -> dict[str, list[str]]:
    return {name: one_step(name, layout, folder) for name in names}


def one_step(name: str, layout: Layout, folder: Path) -> list[str]:
    """The precisions in which gradients were reduced in one step."""
    from deepspeed.comm import comm

    from tests.model.engine.test_nvme import nvme

    files = folder / str(torch.distributed.get_rank())
    subject = nvme(files) if "nvme" in name else training.trainer(name, layout, micro=4)
    seen: set[str] = set()
    places = [(torch.distributed, "all_reduce"), (torch.distributed, "reduce"), (comm.cdb, "reduce_scatter_function")]
    with pytest.MonkeyPatch.context() as patch:
        for place, kind in places:
            patch.setattr(place, kind, noting(getattr(place, kind), seen))
        training.step(subject, training.batches(1)[0], micro=2 if "nvme" in name else 4)
    return sorted(seen)


def noting(reduce: Any, seen: set[str]) -> Any:
    def noted(*args: Any, **options: Any) -> Any:
        tensors = [x for x in (*args, *options.values()) if isinstance(x, torch.Tensor)]
        seen.update(str(x.dtype).removeprefix("torch.") for x in tensors if x.numel() >= SMALLEST)
        return reduce(*args, **options)

    return noted


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_gradients_travel_as_they_are_summed(half: str, tmp_path: Path) -> None:
    """Every shipped JSON, on two ranks or two stages of two; pipelines reduce the tied embedding's gradient too."""
    names = [name for name in SHIPPED if ("fp16" in name) == (half == "fp16")]
    flat = sorted(
        (name for name in names if "pipeline" not in name), key=lambda name: "hpz" in name
    )  # keeps its groups
    seen = run_ranks(2, sent_in, flat, Layout(), tmp_path)
    seen += run_ranks(4, sent_in, sorted(set(names) - set(flat)), Layout(pp=2), tmp_path)
    for each in seen:
        assert each == {name: [SENT[name]] for name in each}
    assert {name for each in seen for name in each} == set(names)


# --- Rates -----------------------------------------------------------------------------------------------------------

CYCLE = {"cycle_min_lr": 0.001, "cycle_max_lr": 0.005, "cycle_first_step_size": 4}  # 0.001, 0.002, 0.003, …


def their_rates(root: Path) -> tuple[float, float, float]:
    """The rate that moved the weight, the one that DeepSpeed then tells, and the one that it logs."""
    adam = {"type": "AdamW", "params": {"lr": 0.3, "weight_decay": 0.0, "torch_adam": True}}
    monitor = {"enabled": True, "output_path": str(root), "job_name": "run"}
    subject = alone.engine(
        alone.config(1, optimizer=adam, scheduler={"type": "OneCycle", "params": CYCLE}, csv_monitor=monitor)
    )
    alone.step(subject, 1.0)
    moved = 1 - float(subject.module.weight.detach())
    with open(root / "run" / "Train_Samples_lr.csv") as stream:
        logged = float(list(csv.reader(stream))[-1][1])
    return moved, subject.get_lr()[0], logged


def our_rates(root: Path) -> tuple[float, float, list[str]]:
    """The rate that moved a bias, the one that the step tells, and what DeepSpeed logs."""
    monitor = {"enabled": True, "output_path": str(root), "job_name": "run"}
    section = {"type": "OneCycle", "params": {**CYCLE, "cycle_momentum": False}}
    subject = training.trainer("zero1_fp32", scheduler=section, csv_monitor=monitor)
    bias = subject.deepspeed.module.final_norm.bias
    result = training.step(subject, training.batches(1)[0])
    return float(bias.abs().max()), result.learning_rate, [path.name for path in (root / "run").glob("*.csv")]


def test_the_rate_of_a_step_is_the_one_that_it_used(tmp_path: Path) -> None:
    """DeepSpeed's scheduler steps within the step: what is read after it belongs to the next one."""
    ((moved, told, logged),) = run_ranks(1, their_rates, tmp_path / "theirs")
    assert moved == pytest.approx(0.001, rel=1e-3) and told == logged == pytest.approx(0.002)
    ((moved, told, files),) = run_ranks(1, our_rates, tmp_path / "ours")
    assert moved == pytest.approx(0.001, rel=1e-3) and told == 0.001 and files == []
