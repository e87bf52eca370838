"""Nodes of the configuration become objects; what other people's classes object to, in one line.

A node names its class in `_target_`, which may be anybody's. Hydra wraps whatever goes wrong there
in an error of its own, several lines long; here the option is named and the reason given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

OBJECTIONS = (ValueError, OSError, OmegaConfBaseException, MisconfigurationException)
CALLED = re.compile(r"Error in call to target '([\w.]+)'")
PLACE = re.compile(r"full_key: ([\w.]+)")


def build(node: Any, name: str, kind: type | None = None, **parts: Any) -> Any:
    """The object that a node describes.

    Args:
        node: with a `_target_`.
        name: of the node, as it is typed.
        kind: what the object must be; None takes anything.
        parts: arguments that are objects already.

    Raises:
        ValueError: for a target that cannot be imported or called, options that it does not take,
            and objects of another kind.
    """
    if not isinstance(node, (DictConfig, Mapping)) or not node.get("_target_"):
        raise ValueError(f"{name}={node}: give a node with the _target_ of a class and its options")
    try:
        made = instantiate(node, **parts, _convert_="all")
    except InstantiationException as error:
        reason = _reason(name, error)
        if reason is None:
            raise
        raise ValueError(reason) from error
    except TypeError as error:  # options that cannot be read as any
        raise ValueError(f"{name}: {error}") from error
    if kind is not None and not isinstance(made, kind):
        raise ValueError(
            f"{name}._target_={node['_target_']} makes a {type(made).__name__}: give a "
            f"{kind.__name__}"
        )
    return made


def _reason(name: str, error: InstantiationException) -> str | None:
    """What was wrong with a node, in a line; None where code of ours failed on its own account."""
    text, cause = str(error), error.__cause__
    place = PLACE.search(text)
    if place is not None:
        name = place[1] if place[1].startswith(name) else f"{name}.{place[1]}"
    if cause is None or isinstance(cause, ImportError):
        first = text.split(", set env var")[0].split("\nfull_key")[0]
        return f"{name}._target_: {' '.join(first.split())}"
    called = CALLED.search(text)
    ours = called is not None and called[1].startswith("lingbot.")
    if isinstance(cause, OBJECTIONS) and ours:
        return str(cause)  # which name their option themselves
    if isinstance(cause, (*OBJECTIONS, TypeError)) or not ours:
        return f"{name}: {str(cause) or type(cause).__name__}"
    return None
