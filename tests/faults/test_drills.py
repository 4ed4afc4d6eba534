"""Every drill of docs/reliability.md is held by tests that exist."""

import ast
import re

import pytest

from recipes.registry import ROOT

ROWS = re.findall(r"^\| (\d+) \| (.+) \| (\S+::.+) \|$", (ROOT / "docs" / "reliability.md").read_text(), re.MULTILINE)


def test_all_drills_are_listed_in_their_order() -> None:
    assert [int(number) for number, _, _ in ROWS] == list(range(1, 32))


@pytest.mark.parametrize("number", [number for number, _, _ in ROWS])
def test_a_drill_is_held(number: str) -> None:
    file = ""
    for holder in ROWS[int(number) - 1][2].split(", "):
        named, name = holder.split("::")
        file = named or file
        assert name.startswith("test_")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{number}: {holder}"
