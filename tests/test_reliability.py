"""docs/reliability.md is about all checks, and names tests that exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PAGE = TESTS.parent / "docs" / "reliability.md"
CHECKS = range(1, 55)


def rows() -> Iterator[list[str]]:
    """The rows of the table: number, when, then, shown by."""
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0].isdecimal():
            yield cells


def test_every_check_has_one_row():
    assert [int(cells[0]) for cells in rows()] == list(CHECKS)


@pytest.mark.parametrize("cells", list(rows()), ids=lambda cells: cells[0])
def test_the_tests_of_a_row_exist(cells: list[str]):
    assert len(cells) == 4
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", cells[3])
    assert named or cells[3].startswith("not here: "), "say what shows it, or why nothing does"
    for path, name in named:
        defined = ast.walk(ast.parse((TESTS / path).read_text()))
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        assert name in {node.name for node in defined if isinstance(node, functions)}
