"""What becomes of a run whose checkpoints are damaged, foreign, gone, or not the same for all ranks."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import write
from model.checkpoint.format import completed, damage, facts, folder_of, manifest, step_of, write_manifest
from model.checkpoint.read import load, load_checked, load_newest
from model.checkpoint.together import told
from model.checkpoint.write import save
from model.engine.engine import Engine
from support.errors import CrashedError, UserError
from tests.distributed import run_ranks
from tests.model import training

TIE = {"run": "a" * 16, "recipe": "b" * 64, "data": "c" * 64}
OTHER = {**TIE, "run": "f" * 16}
SHARD = "rank-00001.safetensors"


@dataclass
class Place:
    """What the loop keeps."""

    step: int


def accepts(state: dict[str, Any]) -> Place:
    return Place(**state)


class Bomb:
    """What a malicious file may hold: something that acts as it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def sealed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """A change of a manifest by somebody who seals it again."""

    def act(folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_text())["manifest"]
        change(content)
        write_manifest(folder, content)

    return act


def pickled(folder: Path) -> None:
    """A pickle in the place of every file but the manifest, which vouches for them."""
    content = manifest(folder)
    for file in (*content["files"], "index.json"):
        torch.save({"0.weight": Bomb(folder.parent / "mark")}, folder / file)
    content |= {"index": facts(folder / "index.json")}
    content["files"] = {name: facts(folder / name) for name in content["files"]}
    write_manifest(folder, content)


def exchanged(name: str, how: Callable[[Path, Path], object]) -> Callable[[Path], object]:
    """Another run's checkpoint, or another of this run, in the place of one."""

    def act(folder: Path) -> None:
        shutil.rmtree(folder)
        how(folder.parents[1] / name, folder)

    return act


def shard(act: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: act(folder / SHARD)


# What is done to the newest of two checkpoints, and what is said of it.
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a shard of zero bytes": (shard(lambda file: file.write_bytes(b"")), "has 0 bytes where its manifest says"),
    "a truncated shard": (shard(lambda file: os.truncate(file, 1000)), "has 1000 bytes where"),
    "a flipped bit": (shard(flip), "is not the file that its manifest describes"),
    "a missing shard": (shard(Path.unlink), f"{SHARD} is missing"),
    "a shard of an older step, of the same size": (
        lambda folder: shutil.copy(folder_of(folder.parent, 1) / SHARD, folder),
        "is not the file that its manifest describes",
    ),
    "pickles, vouched for": (pickled, "is no index of a checkpoint"),
    "an empty manifest": (lambda folder: (folder / "manifest.json").write_text(""), "manifest.json cannot be read"),
    "a torn manifest": (lambda folder: os.truncate(folder / "manifest.json", 300), "manifest.json cannot be read"),
    "a manifest that is a list": (lambda folder: (folder / "manifest.json").write_text("[]"), "was changed or torn"),
    "a manifest too deep": (lambda folder: (folder / "manifest.json").write_text("[" * 10**6), "cannot be read"),
    "a changed manifest": (
        lambda folder: (folder / "manifest.json").write_text(
            (folder / "manifest.json").read_text().replace('"bytes": ', '"bytes": 1')
        ),
        "was changed or torn",
    ),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "cannot be read"),
    "no files in it": (sealed(lambda content: content.pop("files")), "is not whole: files: Field required"),
    "no engine in it": (sealed(lambda content: content.update(engine={})), "is not whole: engine.optimizer_step"),
    "sizes that are texts": (
        sealed(lambda content: content["files"][SHARD].update(bytes="9")),
        f"is not whole: files.{SHARD}.bytes",
    ),
    "an unknown field in the state": (
        sealed(lambda content: content["state"].update(mood=1)), "another state than this run has: .*mood"
    ),
    "a state of another step": (
        sealed(lambda content: content["state"].update(step=1)), "is of step 1, not of step 2"
    ),
    "a manifest of another step": (exchanged("ours/step-00000001", shutil.copytree), "is of step 1, not of step 2"),
    "a name that leads elsewhere": (
        sealed(lambda content: content["files"].update({f"../../{SHARD}": content["files"].pop(SHARD)})),
        r"names the file '\.\./\.\./rank-00001.safetensors'",
    ),
    "no index": (lambda folder: (folder / "index.json").unlink(), "index.json cannot be read"),
    "a changed index": (lambda folder: flip(folder / "index.json"), "index.json is not the file that its manifest"),
    "another run's, copied": (exchanged("theirs/step-00000002", shutil.copytree), "its run is ffffffffffffffff, not"),
    "another run's, by a link": (
        exchanged("theirs/step-00000002", lambda there, folder: folder.symlink_to(there)), "belongs to another run"
    ),
    "of other data": (sealed(lambda content: content["tie"].update(data="d" * 64)), "its data is dddddddddddddddd"),
    "of no run": (sealed(lambda content: content.update(tie={})), "its run is unknown"),
}  # fmt: skip


def saved_twice(engine: Engine, root: Path, tie: dict[str, str]) -> None:
    for step, samples in enumerate(training.batches(2), start=1):
        training.step(engine, samples)
        save(engine, root, step, {"step": step}, keep=5, tie=tie)


def alone(act: Callable[[], object]) -> None:
    """Do something on rank 0 while the others wait."""
    if torch.distributed.get_rank() == 0:
        act()
    torch.distributed.barrier()


def loaded(engine: Engine, root: Path) -> tuple[int | None, list[str]]:
    """The step that is gone on from, and what was passed over; -1 where nothing is left."""
    said: list[str] = []
    try:
        state = load_newest(engine, root, lambda path, why: said.append(f"{path.name}: {why}"), TIE, accepts)
    except UserError as error:
        assert "\n" not in str(error)
        return -1, [str(error)]
    return state and state["step"], said


def every_case(home: Path) -> dict[str, tuple[int | None, list[str]]]:
    """All of it with one engine, whose building takes longest."""
    engine = training.trainer("zero1_fp32")
    saved_twice(engine, home / "ours", TIE)
    saved_twice(engine, home / "theirs", OTHER)
    found = {}
    for name, (act, _) in CASES.items():
        case = home / name
        alone(partial(shutil.copytree, home / "ours", case))
        alone(partial(act, folder_of(case, 2)))
        found[name] = loaded(engine, case)
    found["all are bad"] = loaded(engine, home / "theirs")
    alone(lambda: (home / "left" / "step-00000003.partial").mkdir(parents=True))
    found["only one that was not finished"] = loaded(engine, home / "left")
    found["nothing"] = loaded(engine, home / "nowhere")
    with pytest.raises(UserError, match=r"checkpoint .* cannot be read: .*belongs to another run"):
        load_checked(engine, folder_of(home / "theirs", 2), {"run": TIE["run"]}, accepts)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[int | None, list[str]]]]:
    return run_ranks(2, every_case, tmp_path_factory.mktemp("damaged"))


@pytest.mark.parametrize("name", list(CASES))
def test_what_is_damaged_or_foreign_is_passed_over_with_its_reason(
    name: str, found: list[dict[str, tuple[int | None, list[str]]]]
) -> None:
    for each in found:
        step, said = each[name]
        assert step == 1 and len(said) == 1 and said[0].startswith("step-00000002: ") and "\n" not in said[0]
        assert re.search(CASES[name][1], said[0]), said[0]


def test_where_all_is_bad_one_line_says_so_and_where_nothing_was_saved_nothing(
    found: list[dict[str, tuple[int | None, list[str]]]],
) -> None:
    for each in found:
        step, said = each["all are bad"]
        assert step == -1 and "no checkpoint below" in said[0] and "belongs to another run" in said[0]
        assert each["only one that was not finished"] == each["nothing"] == (None, [])


def test_nothing_was_unpickled(
    found: list[dict[str, tuple[int | None, list[str]]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert not list(tmp_path_factory.getbasetemp().glob("damaged*/**/mark"))


def ranks_that_see_other_folders(home: Path) -> dict[str, tuple[int | None, list[str]]]:
    """Rank 1's folder is another one than rank 0's."""
    engine, rank = training.trainer("zero1_fp32"), torch.distributed.get_rank()
    saved_twice(engine, home / "good", TIE)
    save(engine, home / "good", 3, {"step": 3}, keep=5, tie=TIE)
    training.step(engine, training.batches(2)[1])
    save(engine, home / "again", 3, {"step": 3}, keep=5, tie=TIE)

    def older(root: Path) -> None:
        shutil.rmtree(folder_of(root, 3))

    def other(root: Path) -> None:
        shutil.rmtree(folder_of(root, 3))
        shutil.copytree(folder_of(home / "again", 3), folder_of(root, 3))

    def torn(root: Path) -> None:  # a file that rank 0 looks at, and rank 1 reads
        os.truncate(folder_of(root, 3) / SHARD, 10)

    def empty(root: Path) -> None:
        shutil.rmtree(root)

    found = {}
    for act in (older, other, torn, empty):
        roots = [home / f"{act.__name__}-{number}" for number in (0, 1)]
        for root in roots:
            alone(partial(shutil.copytree, home / "good", root))
        alone(partial(act, roots[1]))
        found[act.__name__] = loaded(engine, roots[rank])
    return found


def test_ranks_agree_on_one_checkpoint_before_they_read_it(tmp_path: Path) -> None:
    first, second = run_ranks(2, ranks_that_see_other_folders, tmp_path)
    for case, words in {
        "older": "rank 1 does not see it",
        "other": "rank 1 sees another checkpoint of that step than rank 0",
        "torn": "rank 1: .*bytes where its manifest says",
    }.items():
        for step, said in (first[case], second[case]):
            assert step == 2 and len(said) == 1, said
            assert re.search(f"step-00000003: {words}", said[0]), said
    for step, said in (first["empty"], second["empty"]):
        assert step == -1 and "rank 1 does not see it" in said[0] and "it sees none" in said[0]


def kept(engine: Engine, home: Path) -> dict[str, Any]:
    """What retention leaves, case by case."""
    found: dict[str, Any] = {}

    def names(root: Path) -> list[str]:
        return sorted(path.name.removeprefix("step-000000") for path in root.iterdir())

    def saves(root: Path, *steps: int, **more: Any) -> None:
        for step in steps:
            save(engine, root, step, {"step": step}, tie=TIE, **more)

    root = home / "rotten"
    saves(root, 1, 2, 3, keep=3)
    alone(lambda: [os.truncate(folder_of(root, step) / SHARD, 9) for step in (2, 3)])
    saves(root, 4, keep=2)
    found["rotten ones do not count"] = names(root)
    saves(root, 5, keep=2)
    found["and go in the end"] = names(root)
    alone(lambda: [(folder_of(root, step) / "manifest.json").unlink() for step in (4, 5)])
    saves(root, 3, keep=9)  # a resumed run that went back
    found["those of steps that are taken again"] = names(root)

    root = home / "spared"
    saves(root, 1, 2, 3, 4, 5, keep=1, spared=lambda steps: [step for step in steps if step in (2, 9)])
    found["those that are spared stay"] = names(root)

    root = home / "ways"
    saves(root, 1, keep=2)
    alone(lambda: (root / "step-00000002.partial").write_text("a file"))
    alone(lambda: (root / "step-00000003.partial").symlink_to(home / "nowhere"))
    alone(lambda: (root / "step-00000002").write_text("a file"))
    alone(lambda: (root / "step-00000003").symlink_to(folder_of(root, 1)))
    saves(root, 2, 3, keep=2)
    found["what is in the way"] = names(root)
    found["is a link"] = [path.is_symlink() for path in completed(root)]

    root = home / "strange"
    save(engine, root, 1, {"step": 1}, keep=2, tie=OTHER)
    save(engine, root, 9, {"step": 9}, keep=2, tie=OTHER)
    alone(lambda: (root / "step-00000002").symlink_to(folder_of(home / "spared", 2)))
    saves(root, 3, 4, 5, keep=2)
    found["what is not ours stays"] = names(root)
    return found


def retention(home: Path) -> dict[str, Any]:
    engine = training.trainer("zero1_fp32")
    training.step(engine, training.batches(1)[0])
    os.umask(0o027)
    found = kept(engine, home)
    newest = completed(home / "ways")[-1]
    found["modes"] = sorted({oct(file.stat().st_mode & 0o777) for file in newest.iterdir()})
    found["damage"] = damage(newest)
    return found | {"opened": sorted(load(engine, newest).opened)}


def test_retention_counts_what_is_whole_and_touches_nothing_of_others(tmp_path: Path) -> None:
    first, second = run_ranks(2, retention, tmp_path)
    assert first["rotten ones do not count"] == ["01", "02", "03", "04"] and first["and go in the end"] == ["04", "05"]
    assert first["those of steps that are taken again"] == ["03"]
    assert first["those that are spared stay"] == ["02", "05"]
    assert first["what is in the way"] == ["02", "03"] and first["is a link"] == [False, False]
    assert first["what is not ours stays"] == ["01", "02", "04", "05", "09"]
    assert first["modes"] == ["0o640"] and first["damage"] == ""
    # With the layout that wrote a checkpoint a rank opens its own file and no other.
    assert [first["opened"], second["opened"]] == [["rank-00000.safetensors"], [SHARD]]


class Killed(BaseException):
    """The end of a process between two of its acts."""


def cut_off(root: Path) -> tuple[list[str], list[str]]:
    """A save that is cut off at each of its acts, by a kill and by a disk that fails: the names of these acts.

    After each, what is there is whole, the checkpoint before is there, and the next save succeeds.
    """
    engine, acts = training.trainer("zero1_fp32"), []
    training.step(engine, training.batches(1)[0])
    save(engine, root, 1, {"step": 1}, keep=2, tie=TIE)
    ended: dict[type[BaseException], list[str]] = {Killed: [], OSError: []}
    for error in ended:
        for number in itertools.count(1):
            with pytest.MonkeyPatch.context() as patch:
                countdown(patch, acts := [], number, error)
                try:
                    save(engine, root, 2, {"step": 2}, keep=2, tie=TIE)
                    break
                except Killed:
                    pass
                except CrashedError as caught:
                    assert "the disk fails; the last good checkpoint is" in str(caught)
            ended[error].append(acts[-1])
            assert all(not damage(path) for path in completed(root)) and folder_of(root, 1) in completed(root)
            assert loaded(engine, root)[0] in (1, 2)
        assert [step_of(path) for path in completed(root)] == [1, 2]
        shutil.rmtree(folder_of(root, 2))
    return ended[Killed], ended[OSError]


def countdown(patch: pytest.MonkeyPatch, acts: list[str], number: int, error: type[BaseException]) -> None:
    """Let the `number`-th act of a save fail."""

    def failing(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **options: Any) -> Any:
            acts.append(name)
            if len(acts) == number:
                raise error("the disk fails")
            return act(*args, **options)

        return instead

    for place, name in ((write, "save_file"), (os, "fsync"), (write, "write_manifest"), (os, "replace")):
        patch.setattr(place, name, failing(name, getattr(place, name)))


def test_a_save_that_is_cut_off_at_any_act_leaves_what_was_there(tmp_path: Path) -> None:
    ((killed, failed),) = run_ranks(1, cut_off, tmp_path)
    # The shard, the index, the manifest, the folder, its name, the list of names.
    assert killed == failed == ["save_file", "fsync", "fsync", "write_manifest", "fsync", "fsync", "replace", "fsync"]


def without_shared_storage(home: Path) -> str:
    """Each rank has a storage of its own."""
    engine, rank = training.trainer("zero1_fp32"), torch.distributed.get_rank()
    if rank:
        (home / "1" / "step-00000001.partial").mkdir(parents=True)
    with pytest.raises(UserError, match="all ranks must write to the same storage; there is no earlier") as caught:
        save(engine, home / str(rank), 1, {"step": 1}, keep=1, tie=TIE)
    return str(told(str(caught.value)))


def test_ranks_that_write_to_other_places_are_noticed_at_the_first_save(tmp_path: Path) -> None:
    assert f"{SHARD} is missing" in run_ranks(2, without_shared_storage, tmp_path)[0]
