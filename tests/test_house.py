"""The house stays in order: who imports whom, what is imported when, what the README promises."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from setuptools.discovery import PEP420PackageFinder

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
DOCS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NEW_RECIPE = ("50m", "345m")  # CONTRIBUTING.md shows how to add gpt_50m
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


def test_a_command_is_thin() -> None:
    lines = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "commands").glob("*.py")}
    assert {name for name, count in lines.items() if count > 80} == set()


def test_few_places_ask_which_engine_runs() -> None:
    """Behind `Engine` nobody asks for pipelines or ZeRO stages: building, the engines and the JSON's checks do."""
    question = re.compile(r"(\.pp|zero_stage|zero_stage\(\w+\)) [=<>!]=? \d")
    rooms = [ROOT / "model" / "engine", ROOT / "model" / "checkpoint", ROOT / "training"]
    found = {path.stem for room in rooms for path in room.glob("*.py") if question.search(path.read_text())}
    assert found == {"build", "rules", "sharded", "values"}


def test_help_and_reading_recipes_load_nothing_heavy() -> None:
    """What keeps `--help` under a second is what is not imported; a count of modules does not depend on the machine.

    One interpreter is started, and each command is a fork of it. Listing the recipes reads all of them.
    """
    lines = [*(("commands", name) for name in COMMANDS), ("recipes",), ("recipes.gpt_tiny",)]
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


@pytest.mark.parametrize("name", names())
def test_every_recipe_starts_alike(name: str) -> None:
    guard = """if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the project, also where this file is run by its path
    from commands.pretrain import main

    main(__file__)
"""
    assert (ROOT / "recipes" / f"{name}.py").read_text().split('"""', 2)[2].startswith(f"\n\n{guard}\n")


def pins(file: str) -> dict[str, str]:
    """The versions that a file of requirements pins; each line says why it is there."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and line[0] not in "#-"]
    found = [re.fullmatch(r'([\w-]+)==([\d.]+)( ; python_version < "[\d.]+")? +# .+', line) for line in lines]
    assert all(found), lines[found.index(None)]
    return {each[1]: each[2] for each in found if each}


def test_every_requirement_is_pinned_and_says_why() -> None:
    node, more = pins("requirements.txt"), pins("requirements-dev.txt")
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert not node.keys() & {*more, "pytest", "ruff", "mypy", "megatron-core"}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    exact = dict(line.split("==") for line in lines)  # no other operator, no hash, no local version
    assert (node | more).items() <= exact.items()
    assert all(re.fullmatch(r"[\w.]+", version) for version in exact.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in project["optional-dependencies"].values():
        assert dict(line.split("==") for line in extra).items() <= more.items()


def test_the_package_has_every_room_but_the_benchmarks() -> None:
    """What `pip install` takes along, as setuptools finds it."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    packages = PEP420PackageFinder.find(str(ROOT), exclude=found["exclude"], include=found["include"])
    code = {path.relative_to(ROOT).parent.as_posix().replace("/", ".") for path in SOURCES}
    assert code - {"bench"} <= set(packages)
    assert {package.split(".")[0] for package in packages} == {*ROOMS, "ds_configs"} - {"bench"}


def test_the_docs_name_only_what_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    sizes = {name.removeprefix("gpt_").replace("_", ".") for name in names()}
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE)) | sizes
    for pattern in re.findall(r"^([a-z]+-)%:", makefile, re.MULTILINE):
        targets |= {pattern + size for size in sizes}
    text = "\n".join(path.read_text() for path in DOCS).replace(*NEW_RECIPE)
    assert set(re.findall(r"(?:^|`)make ([a-z0-9][\w.-]*)", text, re.MULTILINE)) <= targets
    for path in re.findall(r"`((?:" + "|".join((*ROOMS, "ds_configs", "tests", "docs")) + r")/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\((?!http)([^)#]+)", text):
        assert any((ROOT / folder / path).exists() for folder in ("", "docs", "docs/clusters")), path
    for module in re.findall(r"python -m ((?:recipes|bench)[\w.]*)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists() or (ROOT / module / "__main__.py").exists(), module
    for name, rest in re.findall(r"(?:stagecraft|-m commands) ([a-z][\w-]*)([^`#\n]*)", text):
        assert name in COMMANDS, name
        drawn = ("sampling_flags",)
        shared = {
            "pretrain": ("start_flags",),
            "generate": drawn,
            "chat": drawn,
            "evaluate": ("task_flags",),
            "plan": ("decode_flags",),
        }
        more = shared.get(name, ())
        source = "".join(
            (ROOT / "commands" / f"{file}.py").read_text() for file in (name.replace("-", "_"), "cli", *more)
        )
        for flag in re.findall(r"--[a-z_-]+", rest):
            assert f'"{flag}"' in source, f"{name} {flag}"


def test_the_recipe_that_contributing_shows_is_one() -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    shown: dict[str, Any] = {}
    exec(code[0], shown)
    assert (shown["RECIPE"].name, round(shown["RECIPE"].model.num_parameters / 1e6)) == ("gpt_50m", 51)


def test_lines_of_docs_are_short() -> None:
    lines = [line for path in DOCS for line in path.read_text().splitlines()]
    assert [line for line in lines if len(line) >= 120 and line[0] != "|"] == []  # a row of a table is one line


@pytest.mark.parametrize("name", names())
def test_the_readme_s_table_has_every_recipe(name: str) -> None:
    assert f"`{name}`" in (ROOT / "README.md").read_text()
