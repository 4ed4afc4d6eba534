"""The house stays in order: who imports whom, what is imported when, what the README promises."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands.__main__ import COMMANDS
from recipes.registry import ROOT, names

# From the roof to the ground: imports point down.
ROOMS = (
    "bench",
    "commands",
    "launch",
    "training",
    "inference",
    "run",
    "planner",
    "recipes",
    "model",
    "data",
    "support",
)
LEVEL = {room: ROOMS.index(room) for room in ROOMS} | {"model": ROOMS.index("data")}  # neither is above the other
HEAVY = ("torch", "deepspeed", "transformers", "datasets")
SOURCES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(tree: ast.AST) -> set[str]:
    """Every module that is imported, `from x import y` as x and as x.y."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def is_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def arrows(path: Path) -> set[str]:
    """The modules of this project that a file imports, a recipe's main guard left out."""
    tree = ast.parse(path.read_text())
    if path.parent.name == "recipes":
        tree.body = [node for node in tree.body if not is_guard(node)]
    return {name for name in imports(tree) if name.split(".")[0] in (*ROOMS, "tests")}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_down(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        for name in arrows(path):
            other = name.split(".")[0]
            assert other == room or (other in LEVEL and LEVEL[other] > LEVEL[room]), f"{path} imports {name}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in SOURCES}
    waiting = {name: arrows(path) & modules.keys() - {name} for name, path in modules.items()}
    while ready := {name for name, needed in waiting.items() if not needed}:
        waiting = {name: needed - ready for name, needed in waiting.items() if name not in ready}
    assert not waiting


def test_deepspeed_is_imported_in_few_places() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in SOURCES
        if any(name.split(".")[0] == "deepspeed" for name in imports(ast.parse(path.read_text())))
    }
    assert found == {"model/engine/build.py", "model/engine/inside.py", "model/pipeline.py"}


def test_few_places_ask_which_engine_runs() -> None:
    """Behind `Engine` nobody asks for pipelines or ZeRO stages: building, the engines and the JSON's checks do."""
    question = re.compile(r"(\.pp|zero_stage|zero_stage\(\w+\)) [=<>!]=? \d")
    rooms = [ROOT / "model" / "engine", ROOT / "model" / "checkpoint", ROOT / "training"]
    found = {path.stem for room in rooms for path in room.glob("*.py") if question.search(path.read_text())}
    assert found == {"build", "config", "sharded"}


def test_help_and_reading_recipes_load_nothing_heavy() -> None:
    """What keeps `--help` under a second is what is not imported; a count of modules does not depend on the machine.

    One interpreter is started, and each command is a fork of it.
    """
    lines = [("commands", name) for name in COMMANDS] + [("recipes",), *((f"recipes.{name}",) for name in names())]
    code = f"""
import os, runpy, sys
for module, *more in {lines!r}:
    for flag, status in (("--help", 0), ("--no-such-flag", 2)):
        if not os.fork():
            sys.argv = [module, *more, flag]
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(1, 2)
            try:
                runpy.run_module(module, run_name="__main__", alter_sys=False)
                found = None
            except SystemExit as end:
                found = end.code
            os._exit(found != status or any(name in sys.modules for name in {HEAVY!r}))
        if os.wait()[1]:
            print(module, *more, flag)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_requirement_is_pinned_and_says_why() -> None:
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    for line in lines:
        assert re.fullmatch(r'[\w-]+==[\d.]+( ; python_version < "[\d.]+")? +# .+', line), line


def test_the_readme_names_only_what_exists() -> None:
    text = "\n".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    makefile = (ROOT / "Makefile").read_text()
    sizes = {name.removeprefix("gpt_").replace("_", ".") for name in names()}
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE)) | sizes
    for pattern in re.findall(r"^([a-z]+-)%:", makefile, re.MULTILINE):
        targets |= {pattern + size for size in sizes}
    assert set(re.findall(r"(?:^|`)make ([a-z0-9][\w.-]*)", text, re.MULTILINE)) <= targets
    for path in re.findall(r"`((?:" + "|".join((*ROOMS, "ds_configs", "tests", "docs")) + r")/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ((?:recipes|bench)[\w.]*)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists() or (ROOT / module / "__main__.py").exists(), module


@pytest.mark.parametrize("name", names())
def test_the_readme_s_table_has_every_recipe(name: str) -> None:
    assert f"`{name}`" in (ROOT / "README.md").read_text()
