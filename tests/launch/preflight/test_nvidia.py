"""GPUs as a made-up `nvidia-smi` tells them."""

import dataclasses
from pathlib import Path

import pytest

from launch.preflight import compare, nvidia
from launch.preflight.node import Node
from launch.preflight.nvidia import Board, Boards
from planner.finding import Check

H100 = "NVIDIA H100 80GB HBM3"
GOOD = f"0, {H100}, 81559, 1, 0, Not Active, Not Active, Not Active, Not Active"
BAD = f"1, {H100}, 81559, 30000, 3, Active, Not Active, Not Active, Active"
NO_ECC = f"2, {H100}, 81559, 1, [N/A], Not Active, Not Active, Not Active, Not Active"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that stands before the others."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    program(tmp_path, "dmesg", "echo 'NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.'")
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def smi(folder: Path, lines: list[str], rows: list[str], word: str = "clocks_event_reasons") -> None:
    """An nvidia-smi that knows only one of the two words for reasons."""
    said, remapped = "\n".join(lines), "\n".join(rows)
    script = f"""case "$1" in
--query-remapped-rows*) cat <<'END'
{remapped}
END
;;
*{word}*) cat <<'END'
{said}
END
;;
*) echo 'Field is not a valid field to query.'; exit 2;;
esac"""
    program(folder, "nvidia-smi", script)


@pytest.mark.parametrize("word", ["clocks_event_reasons", "clocks_throttle_reasons"])
def test_boards_are_read(word: str, tools: Path) -> None:
    smi(tools, [GOOD, BAD, NO_ECC], ["a, No, No", "b, Yes, No", "c, No, Yes"], word)
    assert nvidia.boards() == Boards(
        (
            Board(0, H100, 81559, 1),
            Board(1, H100, 81559, 30000, 3, ("hw_slowdown", "sw_thermal_slowdown"), remap_pending=True),
            Board(2, H100, 81559, 1, remap_failed=True),
        ),
        xids=("Xid 79 of PCI:0000:3b:00",),
    )


def test_only_the_chosen_boards_count(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tools, [GOOD, BAD, NO_ECC], [])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert [board.index for board in nvidia.boards().boards] == [0, 2]


def test_a_driver_that_does_not_answer_is_said(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tools, "nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18")
    wrong = "Failed to initialize NVML: Driver/library version mismatch"
    assert nvidia.boards() == Boards(problem=f"nvidia-smi ends with status 18: {wrong}")
    program(tools, "nvidia-smi", "exec sleep 60")
    monkeypatch.setattr(nvidia, "SECONDS", 0.2)
    assert nvidia.boards().problem == "nvidia-smi does not answer within 0 s"
    monkeypatch.setenv("PATH", "/nowhere")
    assert nvidia.boards() == Boards(problem="there is no nvidia-smi")


def test_a_log_that_nobody_may_read_says_nothing(tools: Path) -> None:
    smi(tools, [GOOD], [])
    program(tools, "dmesg", "echo 'dmesg: read kernel buffer failed: Operation not permitted' >&2; exit 1")
    assert nvidia.boards().xids is None


def nodes(count: int = 280, ranks: int = 8) -> list[Node]:
    """Machines of 8 good GPUs."""
    gpus = Boards(tuple(Board(index, H100, 81559, 4) for index in range(8)))
    return [Node(f"n{number:03d}", ranks, gpus, memory=10**12) for number in range(count)]


def changed(node: Node, index: int, **values: object) -> Node:
    """The machine with another GPU."""
    boards = list(node.gpus.boards)
    boards[index] = dataclasses.replace(boards[index], **values)  # type: ignore[arg-type]
    return dataclasses.replace(node, gpus=dataclasses.replace(node.gpus, boards=tuple(boards)))


def lines(check: Check) -> list[str]:
    return [each.line for each in check.findings]


def test_good_gpus_of_280_machines() -> None:
    check = compare.gpus(nodes(), "h100", 8)
    assert (check.state, check.seen) == ("ok", f"2,240 {H100} of 80 GiB on 280 machines")


def test_gpus_that_others_use_are_named() -> None:
    every = nodes()
    every[3] = changed(every[3], 2, used=40 * 1024)
    check = compare.gpus(every, "h100", 8)
    assert check.state == "fail"
    assert lines(check) == [
        "memory is used on n003 GPU 2, up to 40.0 GiB, before a rank begins; end the processes there that nvidia-smi "
        "lists"
    ]


def test_machines_with_other_or_fewer_gpus_are_named() -> None:
    every = nodes()
    every[5] = changed(every[5], 7, name="NVIDIA H200", memory=143771)
    every[9] = dataclasses.replace(every[9], gpus=Boards(every[9].gpus.boards[:7]))
    every[11] = dataclasses.replace(every[11], gpus=Boards(problem="nvidia-smi ends with status 9"))
    mute, short, odd = lines(compare.gpus(every, "h100", 8))
    assert mute.startswith("no GPU can be asked on n011: nvidia-smi ends with status 9; ")
    assert short.startswith("n009 has 7 GPUs for 8; ")
    assert odd.startswith(f"n005 GPU 7 is NVIDIA H200, the others are {H100}; ")


def test_another_gpu_than_planned_is_a_warning() -> None:
    check = compare.gpus(nodes(2), "a100-80gb", 8)
    assert check.state == "warn" and lines(check)[0].startswith(f"the GPUs are {H100}, and the plan is for a100-80gb; ")
    none = compare.gpus([Node("a", 2, Boards(problem="there is no nvidia-smi"))], "h100", 8)
    assert none.state == "warn" and "a run here computes on the CPU" in lines(none)[0]
    assert compare.gpus([Node("a", 2, Boards(problem="there is no nvidia-smi"))], "cpu", 2).state == "ok"


def test_gpus_that_are_not_well_are_named() -> None:
    every = nodes(4)
    every[0] = changed(every[0], 0, ecc=2)
    every[1] = changed(every[1], 1, remap_failed=True, remap_pending=True)
    every[2] = changed(every[2], 2, remap_pending=True, slow=("hw_thermal_slowdown",))
    every[3] = dataclasses.replace(every[3], gpus=dataclasses.replace(every[3].gpus, xids=("Xid 79 of PCI:0",)))
    check = compare.gpus(every, "", 0)
    assert [(each.line.split(";")[0], each.spoils) for each in check.findings] == [
        ("uncorrected ECC errors on n000 GPU 0", True),
        ("memory rows could not be remapped on n001 GPU 1", True),
        ("memory rows wait to be remapped on n002 GPU 2", False),
        ("the clock is held down on n002 GPU 2 (hw_thermal_slowdown)", False),
        ("the kernel's log has GPU errors on n003: Xid 79 of PCI:0", False),
    ]


def test_the_fullest_rank_has_to_fit() -> None:
    every = nodes(3)
    assert compare.memory(every, 70e9, 0.0).state == "ok"
    every[1] = changed(every[1], 4, used=20_000)
    (line,) = lines(compare.memory(every, 70e9, 0.0))
    assert line.startswith("the fullest rank needs 70.0 GB by the planner, and n001 GPU 4 has 64.5 free; ")


def test_the_host_has_to_hold_what_is_offloaded() -> None:
    (line,) = lines(compare.memory(nodes(3), 70e9, 2e11))
    assert line.startswith("n000, n001, n002: 1000.0 GB of memory are free and the ranks need 1600.0; ")
    cpu = [Node("a", 2, memory=5 * 10**9)]
    (line,) = lines(compare.memory(cpu, 2.6e9, 0.0))
    assert line.startswith("a: 5.0 GB of memory are free and the ranks need 5.2; ")
