"""Nodes of the configuration become objects, or one line that says why not."""

from __future__ import annotations

from typing import Any

import pytest
from hydra.errors import InstantiationException
from lightning import Callback
from omegaconf import OmegaConf

from lingbot.building import build


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (None, "x=None: give a node with the _target_"),
        (5, "x=5: give a node"),
        ({"a": 1}, "give a node with the _target_"),
        ({"_target_": ""}, "give a node with the _target_"),
        ({"_target_": "lingbot.nothing"}, r"x\._target_: .*'lingbot.nothing'$"),
        ({"_target_": "os.path"}, r"x\._target_: Expected a callable"),
        ({"_target_": "builtins.dict"}, r"x\._target_=builtins.dict makes a dict: give a Callback"),
        ({"_target_": "lingbot.callbacks.VideoWriter", "path": None}, "x: expected str"),
        ({"_target_": "lingbot.callbacks.VideoWriter", "path": "a", "b": 1}, "x: .*argument 'b'"),
        ({"_target_": "lingbot.callbacks.VideoWriter", "path": "a", "fps": 0}, "^fps=0: give"),
        ({"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "a", "mode": "up"},
         "^x: "),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_told_with_its_name_in_one_line(node: Any, message: str) -> None:
    given = OmegaConf.create(node) if isinstance(node, dict) else node
    with pytest.raises(ValueError, match=message) as refusal:
        build(given, "x", Callback)
    assert "HYDRA_FULL_ERROR" not in str(refusal.value)


def test_a_nested_node_is_told_by_its_place() -> None:
    node = {"_target_": "lightning.Trainer", "strategy": {"_target_": "nowhere.Strategy"}}
    with pytest.raises(ValueError, match=r"trainer\.strategy\._target_: .*nowhere\.Strategy"):
        build(OmegaConf.create(node), "trainer")


class Broken(Callback):
    """Fails by a mistake of its own."""

    def __init__(self) -> None:
        raise KeyError("mistake")


def test_a_mistake_in_our_own_code_is_no_refusal(monkeypatch) -> None:
    monkeypatch.setattr(Broken, "__module__", "lingbot.callbacks.broken")
    monkeypatch.setattr("lingbot.callbacks.VideoWriter", Broken)
    with pytest.raises(InstantiationException):
        build(OmegaConf.create({"_target_": "lingbot.callbacks.VideoWriter"}), "x")


def test_parts_that_are_objects_already_are_handed_on() -> None:
    node = OmegaConf.create({"_target_": "builtins.dict", "a": 1})
    assert build(node, "x", dict, b=Callback) == {"a": 1, "b": Callback}
