"""The notebooks run from top to bottom, as tests; they drive the world that the package ships."""

from __future__ import annotations

from importlib.resources import files

import pytest

from lingbot.checkpoints.weights import TRANSFORMER


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the notebooks, saying why, where there is no world to drive."""
    world = files("lingbot") / "worlds" / "blockworld" / TRANSFORMER
    if world.is_file():
        return
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.skip(reason=f"no world is shipped: {world} is missing"))
