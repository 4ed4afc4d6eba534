"""How DeepSpeed 0.19.8 goes wrong where it is configured, built and launched, a test each, beside our remedy.

Not shown: that on a CPU its shared-memory reduction crashes where LOCAL_SIZE is not set, for it would take the test
down and half a minute to compile; what is shown is that it has no place for a group.
"""

import dataclasses
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from launch import local
from model.engine import config as engine_config
from model.engine import held, inside
from model.engine.build import build, quiet_deepspeed, start_process_group
from model.engine.rules import broken_by_layout
from model.layout import Layout
from recipes.registry import ROOT
from support.errors import CrashedError, UserError
from tests.distributed import run_ranks
from tests.model import alone, training
from tests.patience import wait_until


def test_another_version_of_deepspeed_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import deepspeed

    assert deepspeed.__version__.split("+")[0] in inside.EXAMINED
    assert inside.unexamined_version() == ""
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"deepspeed": "0.19.8+cu130"}[name])
    assert inside.unexamined_version() == ""
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"deepspeed": "0.20.0"}[name])
    said = inside.unexamined_version()
    assert said.startswith("DeepSpeed 0.20.0 is installed, and this project was checked with 0.19.8 only: ")
    assert said.count("\n") == 0


def test_every_reach_into_deepspeed_names_a_file_of_it_and_a_test() -> None:
    """Each function of `inside.py` but the check of the version, and each of `held.py`."""
    import deepspeed

    package, tests = Path(deepspeed.__file__).parent, ROOT / "tests"
    known = set(re.findall(r"def (test_\w+)", "".join(path.read_text() for path in tests.rglob("test_*.py"))))
    found = [*inspect.getmembers(inside, inspect.isfunction), *inspect.getmembers(held, inspect.isfunction)]
    functions = dict(found)
    mine = {name for name, function in functions.items() if function.__module__ in (inside.__name__, held.__name__)}
    for name in mine - {"unexamined_version"}:
        text = inspect.getdoc(functions[name]) or ""
        files = re.findall(r"[\w/]+\.py", text[text.index("Read in") :])
        assert files and all((package / file).exists() for file in files), name
        shown = re.findall(r"test_\w+", text[text.index("Shown by") :])
        assert shown and set(shown) <= known, name


def accepts_a_typing_error() -> bool:
    from deepspeed.runtime.config import DeepSpeedConfig

    return bool(DeepSpeedConfig(alone.config(1, gradient_cliping=1.0)).gradient_clipping is not None)


def test_a_mistyped_key_is_ignored_in_silence() -> None:
    assert run_ranks(1, accepts_a_typing_error) == [True]
    with pytest.raises(ValueError, match="unknown key gradient_cliping; did you mean gradient_clipping"):
        engine_config.check({"gradient_cliping": 1.0}, "x")


# --- Kernels that are compiled at the start --------------------------------------------------------------------------


def reduced_in_pairs() -> tuple[float, float]:
    """The sum over ranks 0 and 1 or 2 and 3: as this project starts DeepSpeed, and with its shared-memory kernel.

    The kernel is a stand-in of the same signature, over all ranks as the real one.
    """
    from deepspeed import comm
    from deepspeed.comm.comm import cdb

    rank = torch.distributed.get_rank()
    group = [torch.distributed.new_group(pair) for pair in ([0, 1], [2, 3])][rank // 2]

    def reduce() -> float:
        number = torch.tensor([rank + 1.0])
        comm.inference_all_reduce(number, group=group)
        return float(number)

    assert cdb.shm_comm_op is None
    ours = reduce()
    library = torch.library.Library("deepspeed", "DEF")
    library.define("inference_all_reduce_(Tensor(a!) self) -> Tensor(a!)")
    library.impl("inference_all_reduce_", lambda x: torch.distributed.all_reduce(x) or x, "CPU")
    cdb.shm_vector_kernel_level = 2
    return ours, reduce()


def test_the_shared_memory_reduction_ignores_its_group() -> None:
    """By hand: 1 + 2 and 3 + 4. `quiet_deepspeed` leaves the kernel out."""
    assert run_ranks(4, reduced_in_pairs) == [(3.0, 10.0), (3.0, 10.0), (7.0, 10.0), (7.0, 10.0)]
    import deepspeed

    sources = Path(deepspeed.__file__).parent / "ops" / "csrc" / "cpu" / "comm"
    assert '"inference_all_reduce_(Tensor(a!) self) -> Tensor(a!)"' in (sources / "shm_interface.cpp").read_text()


def build_behind_a_lock(folder: Path, torchs_own: bool) -> tuple[bool, str]:
    """Whether a build that has come upon a lock waits for a second and more, and how it ends; none compiles.

    Where it waits the lock is removed in the end.
    """
    from deepspeed.accelerator import get_accelerator
    from torch.utils import cpp_extension, file_baton

    if torchs_own:
        cpp_extension.FileBaton = file_baton.FileBaton
    cpp_extension._write_ninja_file_and_build_library = lambda **given: None
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    builder = get_accelerator().create_op_builder("CPUAdamBuilder")
    builder.cxx_args = list  # it would try the compiler out, which takes seconds
    ended: list[str] = []

    def build() -> None:
        try:
            builder.load(verbose=False)
        except ImportError as error:
            ended.append(str(error))

    thread = threading.Thread(target=build, daemon=True)
    thread.start()

    def stands_still() -> bool:
        return "baton.wait()" in "".join(traceback.format_stack(sys._current_frames().get(thread.ident or 0)))

    wait_until(lambda: not thread.is_alive() or stands_still(), os.getpid())
    thread.join(1)
    if waits := thread.is_alive():
        (folder / "cpu_adam" / "lock").unlink()
    wait_until(lambda: not thread.is_alive(), os.getpid())
    return waits, "".join(ended)


@pytest.mark.parametrize("torchs_own", [True, False])
def test_a_build_that_was_killed_hangs_all_later_ones(tmp_path: Path, torchs_own: bool) -> None:
    """torch waits for it; `model.engine.baton` takes its place. Then the kernel is loaded, of which there is none."""
    lock = tmp_path / "cpu_adam" / "lock"
    lock.parent.mkdir()
    lock.touch()
    ((waits, ended),) = run_ranks(1, build_behind_a_lock, tmp_path, torchs_own)
    assert waits is torchs_own and "cpu_adam.so: cannot open" in ended and not lock.exists()


# --- The cut of a pipeline -------------------------------------------------------------------------------------------


def test_a_pipeline_is_cut_by_cost_and_not_as_deepspeed_would() -> None:
    """By hand: the head, 2,048 x 64, costs as much as 2.5 blocks, so that the second of two stages gets one of the four
    blocks. DeepSpeed counts parameters, and the embedding has as many as the head: it gives each stage two blocks.
    """
    quiet_deepspeed()
    from deepspeed.pipe import PipelineModule

    from model.pipeline import meta_model, pretended_world

    config = dataclasses.replace(training.DEEP, vocab_size=2048)
    with pretended_world(Layout(pp=2), 2, 1) as grid:
        pipeline: Any = meta_model(config, grid, ("",) * 4, torch.float32)
        assert pipeline.parts == [0, 5, 8]  # embedding, positions and three blocks; a block, norm and head
        assert {name.split(".")[1] for name in pipeline.plain_names().values()} == {"3", "weight", "bias"}
        PipelineModule._partition_layers(pipeline, "parameters")
        assert pipeline.parts == [0, 4, 8]


# --- The launcher ----------------------------------------------------------------------------------------------------

PDSH = """#!/bin/sh
# As pdsh: everything after "-w hosts" goes to a shell on each of them.
while [ "$1" != -w ]; do shift; done; shift 2
exec sh -c "$*"
"""


def launch_over_pdsh(folder: Path) -> tuple[str, list[str]]:
    """What DeepSpeed's launcher logs, and the command with which it would end a run."""
    import logging

    from deepspeed.launcher import multinode_runner, runner
    from deepspeed.utils import logger

    os.chdir(folder)
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    os.environ["UCX_NOTE"] = "$(touch by_variable)"
    Path("pdsh").write_text(PDSH)
    Path("pdsh").chmod(0o755)
    Path("hosts").write_text("localhost slots=1\n")
    Path(".deepspeed_env").write_text("TOKEN=very secret $(touch by_file)\n")
    sys.executable = "true"  # stands in for the ranks
    logged, commands = list[str](), list[Any]()
    handler = logging.Handler()
    handler.emit = lambda record: logged.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    kept = multinode_runner.PDSHRunner.get_cmd

    def get_cmd(*args: Any) -> Any:
        commands.append(kept(*args))
        return commands[0]

    multinode_runner.PDSHRunner.get_cmd = get_cmd
    where = ["--hostfile", "hosts", "--force_multi", "--no_ssh_check", "--master_addr", "127.0.0.1"]
    runner.main([*where, "train.py", "--note", "$(touch by_argument)"])
    return "\n".join(logged), commands[0][1]


def test_the_launcher_lets_other_machines_run_what_it_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ((logged, kill),) = run_ranks(1, launch_over_pdsh, tmp_path)
    assert {path.name for path in tmp_path.glob("by_*")} == {"by_variable", "by_file", "by_argument"}
    assert "very secret" in logged
    # On an interrupt it ends whatever launcher it finds. `local.run` passes signals on to pdsh itself, past it.
    assert "pkill -f " in kill and "world_info" not in " ".join(kill)
    command = local.deepspeed_command("recipes.gpt_tiny", [], 1, "hosts")
    assert command[command.index("--log_level") + 1] == "critical"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"runs/\$\(touch x\) holds '\$', which a shell on the other machines"):
        local.check_remote(["--run-dir", "runs/$(touch x)"])
    with pytest.raises(ValueError, match=r"\.deepspeed_env line 1 holds '\$'") as caught:
        local.check_remote([])
    assert "secret" not in str(caught.value)
    (tmp_path / ".deepspeed_env").write_text("TOKEN=one word or two\n")
    local.check_remote(["--set", "optimizer.betas=[0.9,0.95]", "data.corpus=/shared/my texts/*.jsonl"])
    monkeypatch.setenv("NCCL_NOTE", "`date`")
    with pytest.raises(ValueError, match=r"\$NCCL_NOTE holds '`'"):
        local.check_remote([])


def test_the_launcher_ends_well_when_its_inner_process_is_killed(tmp_path: Path) -> None:
    """DeepSpeed's `deepspeed` exits 0; why `launch.local.run` is not believed until the run has left its report."""
    (tmp_path / "sleeper.py").write_text("import time\nopen('up', 'w')\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", "1", "--no_local_rank", "sleeper.py"]
    env = {**os.environ, "DS_ACCELERATOR": "cpu"}
    process = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until((tmp_path / "up").exists, process.pid)
    children = psutil.Process(process.pid).children(recursive=True)
    inner = next(child for child in children if child.children())
    inner.send_signal(signal.SIGKILL)
    wait_until(lambda: process.poll() is not None, process.pid)
    assert process.returncode == 0
    for child in children:
        if child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
            child.kill()


# --- Precision -------------------------------------------------------------------------------------------------------


def refused_and_allowed() -> str:
    """What DeepSpeed says to fp16 where the CPU does not know it; then an engine as this project starts DeepSpeed."""
    from deepspeed.accelerator import get_accelerator

    fp16 = alone.config(1, "fp16")
    get_accelerator().is_fp16_supported = lambda: False
    with pytest.raises(ValueError) as refusal:
        alone.engine(fp16)
    quiet_deepspeed()
    alone.step(alone.engine(fp16), 1.0)
    return str(refusal.value)


def test_fp16_is_refused_on_a_cpu_that_computes_it_in_software() -> None:
    assert run_ranks(1, refused_and_allowed) == ["Type fp16 is not supported on your device."]


def refused(precision: dict[str, Any]) -> str:
    """What is said of a JSON that was changed after our checks."""
    config = training.engine_json("zero1_bf16", 1)
    config["bf16"] |= precision
    with pytest.raises(UserError) as caught:
        build(training.CONFIG, training.SINGLE, config, training.SEED, training.ENTRIES)
    return str(caught.value)


def test_what_only_deepspeed_refuses_is_one_line_too() -> None:
    (said,) = run_ranks(1, refused, {"bf16_optimizer_states": True})
    assert said.startswith("DeepSpeed refuses this JSON: bf16_optimizer_states requires bf16_master_weights_and_grads")


def times_a_pipeline() -> None:
    config = training.engine_json("pipeline_fp32", 1)
    config["wall_clock_breakdown"] = True
    layout = Layout(pp=2)
    subject = build(training.config_for(layout), layout, config, training.SEED, training.ENTRIES)
    training.step(subject, training.batches(1)[0])


def test_a_pipeline_cannot_be_timed() -> None:
    with pytest.raises(AssertionError, match="bwd_microstep timer has already been started"):
        run_ranks(2, times_a_pipeline)
    (problem,) = broken_by_layout({"wall_clock_breakdown": True, "zero_optimization": {"stage": 1}}, Layout(pp=2))
    assert problem.what.startswith("wall_clock_breakdown does not go with layout.pp 2")


def test_a_port_that_is_taken_is_one_line_and_no_wrong_input(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        world = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**world, "MASTER_PORT": str(holder.getsockname()[1])}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(CrashedError, match="the ranks cannot meet: "):
            start_process_group()
