"""The house stays in order: who imports whom, what is imported when, what the README promises."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.registry import ROOT, names

ROOMS = ("recipes", "model", "data", "launch")
HEAVY = ("torch", "deepspeed", "transformers", "datasets")
COMMANDS = [
    "recipes",
    *(
        f"recipes.{job}"
        for job in ("plan", "prepare", "evaluate", "generate", "export", "rehearse", "report", "clean", "inspect")
    ),
]
SOURCES = [path for room in (*ROOMS, "bench", "tests") for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", ["model", "data", "launch"])
def test_rooms_import_no_sibling(room: str) -> None:
    others = set(ROOMS) - {room} | {"tests", "bench"}
    for path in (ROOT / room).rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & others, path


def test_deepspeed_is_imported_in_few_places() -> None:
    found = {str(p.relative_to(ROOT)) for p in SOURCES if any(i.split(".")[0] == "deepspeed" for i in imports(p))}
    assert {path for path in found if not path.startswith("tests/")} == {"model/engine/engine.py", "model/pipeline.py"}


@pytest.mark.parametrize("module", COMMANDS + [f"recipes.{name}" for name in names()])
def test_help_and_reading_recipes_load_nothing_heavy(module: str) -> None:
    """What keeps `--help` under a second is what is not imported; a count of modules does not depend on the machine."""
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['x', '--help']\n"
        "try: runpy.run_module(sys.argv.pop(0) and MODULE, run_name='__main__', alter_sys=False)\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        f"loaded = [m for m in {HEAVY!r} if m in sys.modules]\n"
        "assert not loaded, loaded\n"
    ).replace("sys.argv.pop(0) and MODULE", repr(module))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


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
    for path in re.findall(r"`((?:recipes|ds_configs|model|data|launch|tests|bench|docs)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ((?:recipes|bench)[\w.]*)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists() or (ROOT / module / "__main__.py").exists(), module


@pytest.mark.parametrize("name", names())
def test_the_readme_s_table_has_every_recipe(name: str) -> None:
    assert f"`{name}`" in (ROOT / "README.md").read_text()
