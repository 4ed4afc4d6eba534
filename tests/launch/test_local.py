import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import local


def hostfile(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hosts"
    path.write_text(text)
    return path


def test_a_hostfile_counts_its_slots(tmp_path: Path) -> None:
    path = hostfile(tmp_path, "# a comment\nworker-1 slots=8\n\nworker-2 slots=4 # half\n")
    assert local.read_hostfile(path) == {"worker-1": 8, "worker-2": 4}
    assert local.world_size(str(path), None) == 12


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "names no host"),
        ("worker-1\n", "line 1: 'worker-1'; write it as"),
        ("a slots=2\nb slots=x\n", "line 2"),
        ("a slots=0\n", "line 1"),
        ("a slots=99999999999\n", "line 1: 'a slots=99999999999'; write it as"),
        ("a slots=\u00b2\n", "line 1"),  # a digit, and no number
        ("a slots=1\na slots=1\n", "line 2: host a stands twice"),
        ("-oProxyCommand=x slots=1\n", "line 1: '-oProxyCommand=x' is no name of a host"),
        ("a;b slots=1\n", "is no name of a host"),
        ("a:2222 slots=1\n", "line 1: 'a:2222' is no name of a host; write a, and its port into ~/.ssh/config"),
        ("fe80::1 slots=1\n", "line 1: 'fe80::1' is no name of a host; give the IPv6 address a name"),
        ("[fe80::1]:22 slots=1\n", "give the IPv6 address a name"),
        ("\ufeffa slots=1\n", "begins with a byte order mark; save it as UTF-8 without one"),
    ],
)
def test_a_wrong_hostfile_says_the_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        local.read_hostfile(hostfile(tmp_path, text))


def test_a_hostfile_in_another_encoding_says_the_line(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_bytes(b"a slots=1\nb slots=1 # gro\xdf\n")
    with pytest.raises(ValueError, match=r"line 2: .* is not UTF-8; save the file as UTF-8"):
        local.read_hostfile(path)


def test_wrong_world_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        local.world_size("hosts", 2)
    with pytest.raises(ValueError, match="--processes is 0"):
        local.world_size(None, 0)
    with pytest.raises(ValueError, match="cannot be read"):
        local.world_size(str(tmp_path / "missing"), None)
    assert local.world_size(None, 3) == 3


def gpus(monkeypatch: pytest.MonkeyPatch, chosen: str, visible: int, boards: int, folder: Path) -> None:
    """A machine with so many boards, of which torch sees some."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    monkeypatch.setattr(local, "count_gpus", lambda: visible)
    monkeypatch.setattr(local, "DRIVER_GPUS", folder)
    for board in range(boards):
        (folder / str(board)).mkdir()


def test_chosen_devices_stay_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus(monkeypatch, "6,7", 2, 8, tmp_path)
    assert local.world_size(None, None) == 2
    command = local.deepspeed_command("recipes.gpt_tiny", [], 1, None)
    assert command[command.index("--include") + 1] == "localhost:6" and "--num_gpus" not in command
    with pytest.raises(ValueError, match="--processes is 3 but 2 GPUs are visible here"):
        local.world_size(None, 3)


@pytest.mark.parametrize("chosen", ["0", "7", "0,1,2", "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "-1", ""])
def test_chosen_devices_mean_nothing_without_gpus(chosen: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus(monkeypatch, chosen, 0, 0, tmp_path)
    assert local.world_size(None, None) == 2
    command = local.deepspeed_command("recipes.gpt_tiny", [], 2, None)
    assert command[command.index("--num_gpus") + 1] == "2" and "--include" not in command
    assert "CUDA_VISIBLE_DEVICES" not in local.environment(2)


@pytest.mark.parametrize(
    ("chosen", "visible", "words"),
    [
        ("GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", 1, "names GPU-8932f937.* by their index only"),
        ("0,MIG-GPU-8932f937/1/0", 2, "names MIG-GPU-8932f937/1/0"),
        ("7", 0, "is 7, of which this machine has 0"),
        ("0,7", 1, "is 0,7, of which this machine has 1"),
        ("0,0", 1, "each once"),
    ],
)
def test_devices_that_the_launcher_would_mistake_are_refused(
    chosen: str, visible: int, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gpus(monkeypatch, chosen, visible, 4, tmp_path)
    with pytest.raises(ValueError, match=words):
        local.world_size(None, None)


def test_a_machine_without_a_driver_has_no_gpus_and_needs_no_torch_to_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GPU_DEVICES", ("no-such-device*",))
    monkeypatch.setitem(sys.modules, "torch", None)  # an import would fail
    assert local.count_gpus() == 0
    monkeypatch.setattr(local, "GPU_DEVICES", ("nul*",))
    with pytest.raises(ImportError):
        local.count_gpus()


def test_a_run_on_this_machine_reads_no_hostfile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DeepSpeed's launcher takes /job/hostfile where nobody names another one."""
    from deepspeed.launcher import runner

    monkeypatch.setattr(runner, "DLTS_HOSTFILE", str(hostfile(tmp_path, "worker-1 slots=8\n")))
    command = local.deepspeed_command("commands.rank", ["--run-dir", "x"], 2, None)
    alone, over = (
        runner.parse_args(line[3:])
        for line in (command, local.deepspeed_command("commands.rank", [], 8, ["--hostfile", str(tmp_path / "hosts")]))
    )
    assert runner.fetch_hostfile(runner.parse_args(["x"]).hostfile) == {"worker-1": 8}
    assert runner.fetch_hostfile(alone.hostfile) is None and alone.num_gpus == 2
    assert runner.fetch_hostfile(over.hostfile) == {"worker-1": 8}


def test_ranks_find_this_project_and_nothing_that_lies_about(tmp_path: Path) -> None:
    (tmp_path / "commands.py").write_text("raise SystemExit('not this one')")
    line = [sys.executable, "-m", "commands.rank", "--help"]
    done = subprocess.run(line, cwd=tmp_path, env=local.environment(2), capture_output=True, text=True)
    assert done.returncode == 0 and "One rank of a launched run" in done.stdout


def test_hidden_boards_leave_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    gpus(monkeypatch, "-1", 0, 4, tmp_path)
    assert local.world_size(None, None) == 2


def test_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert local.environment(4)["OMP_NUM_THREADS"] == "2"
    assert local.environment(16)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert local.environment(4)["OMP_NUM_THREADS"] == "5"


def test_gpus_are_counted_anew_by_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process remembers four; one that begins now has none here, and one that cannot say is no reason to go."""
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0", "1", "2", "3"])
    assert local.gpus_left() == 0
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert local.gpus_left() == 4
    monkeypatch.setattr(local, "visible_gpus", list)
    assert local.gpus_left() is None
