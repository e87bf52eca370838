"""What a composed configuration must hold to, beyond the types of its options.

Hydra refuses an unknown key unless it begins with `+`, which adds one; on our own groups nobody
reads what is added, so that a misspelt key would change nothing without a word.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from lingbot.conf.renamed import check_renamed

# values that are one, whichever of them is set: what the second is derived from
DERIVED = {
    "camera.frames_per_chunk": "frames_per_chunk",
    "objective.frames_per_chunk": "frames_per_chunk",
    "data.frames_per_chunk": "frames_per_chunk",
    "data.height": "camera.height",
    "data.width": "camera.width",
}
OURS = "lingbot."


def check_configuration(cfg: DictConfig) -> None:
    """Refuses keys that nobody reads, names from before, and values of one thing that differ.

    Raises:
        ValueError: naming the keys and what to do instead.
    """
    check_renamed(cfg)
    for path, node in _schemas(cfg):
        unknown = [str(key) for key in node if str(key) not in _known(path, node)]
        if unknown:
            name = f"{path}.{unknown[0]}" if path else unknown[0]
            known = [key for key in _known(path, node) if not key.startswith("_")]
            near = get_close_matches(unknown[0], known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"{name}: there is no such option; {hint}")
    _check_command(cfg)
    for key, source in DERIVED.items():
        if key.startswith("data.") and "camera" not in cfg.module:
            continue  # a codec is trained at any size
        value, other = (OmegaConf.select(cfg, name, default=None) for name in (key, source))
        if None not in (value, other) and value != other:
            raise ValueError(
                f"{key}={value} and {source}={other} must be alike: set {source} alone, from "
                f"which {key} is taken"
            )


def _check_command(cfg: DictConfig) -> None:
    """Experiments and debug settings say in `meant_for` which commands they were made for."""
    for choice, commands in cfg.get("meant_for", {}).items():
        if cfg.command not in commands:
            raise ValueError(
                f"{choice} is for {' or '.join(f'lingbot-{name}' for name in commands)}, not for "
                f"lingbot-{cfg.command}"
            )


def _schemas(node: DictConfig, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Nodes that have a schema of ours, by their dotted paths, the outermost first."""
    kind = OmegaConf.get_type(node)
    target = node.get("_target_")
    ours = target is None or str(target).startswith(OURS)  # another's class has its own options
    if is_dataclass(kind) and kind.__module__.startswith(OURS) and ours:
        yield path, node
    for key in node:
        if not isinstance(key, str):  # numbers in {step: prompt}
            continue
        if OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key):
            continue
        value = node[key]
        if isinstance(value, DictConfig):
            yield from _schemas(value, f"{path}.{key}" if path else key)


def _known(path: str, node: DictConfig) -> list[str]:
    """What the schema names, and what its constructor takes besides."""
    kind: Any = OmegaConf.get_type(node)
    names = [field.name for field in fields(kind)]
    target = node.get("_target_")
    if target is not None:
        try:
            parameters = inspect.signature(get_object(target)).parameters.values()
        except (ImportError, TypeError) as error:
            raise ValueError(
                f"{path}._target_={target}: there is nothing of that name to call"
            ) from error
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names += [p.name for p in parameters if p.kind in named and p.name not in names]
    return [name for name in names if not name.startswith("_")] + [
        "_target_", "_partial_", "_convert_", "_recursive_",
    ]  # fmt: skip
