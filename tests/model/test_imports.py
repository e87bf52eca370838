"""The transformer's meaning stands by itself; what makes it faster stands above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

LINGBOT = Path(__file__).resolve().parents[2] / "lingbot"


def imported(file: Path) -> Iterator[str]:
    """Names of our modules that a file imports, at its top or anywhere else in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lingbot"):
            yield from (f"{node.module}.{name.name}" for name in node.names)
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.startswith("lingbot"))


@pytest.mark.parametrize("file", sorted((LINGBOT / "model").glob("*.py")), ids=lambda f: f.stem)
def test_the_model_imports_nothing_of_ours_but_itself(file: Path) -> None:
    assert [name for name in imported(file) if not name.startswith("lingbot.model.")] == []


@pytest.mark.parametrize("room", ["codec", "parallel"])
def test_rooms_that_kernels_stand_on_do_not_know_them(room: str) -> None:
    for file in (LINGBOT / room).glob("*.py"):
        assert [name for name in imported(file) if name.startswith("lingbot.kernels")] == []
