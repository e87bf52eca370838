"""Whether a run's saved configuration may be built: it names classes and functions, so it is code.

A run folder that somebody else made can name `os.system` where a module belongs. Allowed without a
word are the targets that the package's own YAML files name, classes of the package that Hydra has a
use for, and short families of torch, Lightning and W&B. A world folder names nothing that is built.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.strategies import Strategy
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lingbot.conf import schemas

PACKAGE = "lingbot"
# modules whose public classes of one kind are allowed; a path through a module's own imports, as
# torch.optim.optimizer.os.system, is none of them
FAMILIES: dict[str, type] = {
    "torch.optim": Optimizer,
    "torch.optim.lr_scheduler": LRScheduler,
    "lightning.pytorch.callbacks": Callback,
    "lightning.pytorch.strategies": Strategy,
}
SINGLE = {
    "lightning.Trainer",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.loggers.CSVLogger",
    "lightning.pytorch.loggers.TensorBoardLogger",
    "lightning.pytorch.loggers.WandbLogger",
    "wandb.Settings",
}
OWN_KINDS = (nn.Module, Callback, LightningDataModule, Optimizer, Strategy)
# what else these take could send the user's API key to somebody's server, or start a program
ONLY_THESE_ARGUMENTS = {
    "wandb.Settings": {"init_timeout", "mode", "silent", "quiet", "disable_git", "save_code"},
    "lightning.pytorch.loggers.WandbLogger": {
        "name", "save_dir", "version", "offline", "dir", "id", "anonymous", "project", "log_model",
        "prefix", "checkpoint_name", "group", "tags", "mode", "settings", "job_type", "notes",
        "entity", "resume",
    },
}  # fmt: skip
HYDRAS_OWN = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
INNERMOST = re.compile(r"\$\{([^${}]*)\}")
NODE = re.compile(r"[\w.\[\]]+")
RESOLVER = re.compile(r"([\w.]+):(.*)", re.DOTALL)
FROM_ENVIRONMENT = re.compile(r"""(\w+)(,\s*["']?[\w.-]*["']?)?""")
ENVIRONMENT = "<environment>"  # stands for an allowed ${oc.env:...} while what is around it is read
REFUSED = "<refused>"
TRUST = "trust_run_code=true"


def check_targets(
    cfg: DictConfig | dict[str, Any],
    trusted: bool = False,
    source: object = "the run's configuration",
    remedy: str = TRUST,
) -> None:
    """Refuses a configuration that would run anything but what the package and its libraries offer.

    Call it on a run's whole configuration, unresolved, before any of it is instantiated.

    Args:
        cfg: as `OmegaConf.load` reads it.
        trusted: whether the user vouches for whoever made the run; nothing is checked then.
        source: where it comes from, for the message.
        remedy: what a user types to vouch for it.

    Raises:
        ValueError: for a target or an interpolation that is not allowed.
    """
    if trusted:
        return
    plain = OmegaConf.to_container(cfg, resolve=False) if OmegaConf.is_config(cfg) else cfg
    for path, node in _nodes(plain):
        objection = _objection(node)
        if objection:
            raise ValueError(
                f"{source}: {path or 'it'} {objection}, and whoever made the run may have meant it "
                f"to run on your machine; if you trust them, say so by {remedy}"
            )


def _nodes(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All nodes, this one included, with their dotted paths."""
    yield path, node
    listed = enumerate(node) if isinstance(node, (list, tuple)) else ()
    for key, value in node.items() if isinstance(node, dict) else listed:
        yield from _nodes(key)
        yield from _nodes(value, f"{path}.{key}" if path else str(key))


def _objection(node: Any) -> str | None:
    """What speaks against one node, its children aside."""
    if isinstance(node, dict) and "_target_" in node:
        target = node["_target_"]
        if not isinstance(target, str) or not is_allowed(target):
            return f"names {target!r}, which is not among what runs may build unasked"
        arguments = ONLY_THESE_ARGUMENTS.get(target)
        extra = sorted(map(str, node.keys() - arguments - HYDRAS_OWN)) if arguments else []
        settings = node.get("settings") if target.endswith("WandbLogger") else None
        if isinstance(settings, dict):
            allowed = ONLY_THESE_ARGUMENTS["wandb.Settings"] | HYDRAS_OWN
            extra += [f"settings.{name}" for name in sorted(map(str, settings.keys() - allowed))]
        if extra or (arguments and "_args_" in node):
            return f"gives {target} more than runs may unasked: {', '.join(extra) or '_args_'}"
    if isinstance(node, str) and "${" in node and not is_plain_interpolation(node):
        return f"is {node!r}, which does more than look values of the run up"
    return None


def is_allowed(target: str) -> bool:
    """Whether Hydra may call what `target` names."""
    if target in SINGLE or target in _of_our_files()[0]:
        return True
    module, _, name = target.rpartition(".")
    if not name.isidentifier() or name.startswith("_"):
        return False
    if module in FAMILIES:
        found = getattr(importlib.import_module(module), name, None)
        return isinstance(found, type) and issubclass(found, FAMILIES[module])
    if module.partition(".")[0] != PACKAGE:
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    if not isinstance(found, type) or found.__module__.partition(".")[0] != PACKAGE:
        return False
    return issubclass(found, OWN_KINDS)


def is_plain_interpolation(text: str) -> bool:
    """Whether a value only looks up other values of the configuration, or asks our own resolvers.

    Of the environment, those variables can be read that the package's own files read.
    """
    _, resolvers, variables = _of_our_files()

    def replaced(match: re.Match[str]) -> str:
        inside = match[1].strip()
        if REFUSED in inside:
            return REFUSED
        if NODE.fullmatch(inside):
            return "node"
        asked = RESOLVER.fullmatch(inside)
        if asked is None or asked[1] not in resolvers:
            return REFUSED
        if asked[1] == "oc.env":
            read = FROM_ENVIRONMENT.fullmatch(asked[2].strip())
            return ENVIRONMENT if read and read[1] in variables else REFUSED
        if asked[1] == "oc.decode" and asked[2].strip() != ENVIRONMENT:
            return REFUSED  # it makes nodes out of text, and they could have targets
        return "value"

    while INNERMOST.search(text):
        text = INNERMOST.sub(replaced, text)
    return REFUSED not in text and "${" not in text


@cache
def _of_our_files() -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Targets, resolvers and environment variables that the package's own configuration names."""
    text = "\n".join(
        file.read_text(encoding="utf-8") for file in _yaml_files(files("lingbot.conf"))
    )
    targets = set(re.findall(r"_target_:\s*([\w.]+)", text))
    targets |= {kind._target_ for kind in vars(schemas).values() if hasattr(kind, "_target_")}
    resolvers = {name for name in re.findall(r"\$\{([\w.]+):", text) if name != "hydra"}
    variables = set(re.findall(r"\$\{oc\.env:(\w+)", text))
    return frozenset(targets), frozenset(resolvers), frozenset(variables)


def _yaml_files(folder: Traversable) -> Iterator[Traversable]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _yaml_files(entry)
        elif entry.name.endswith(".yaml"):
            yield entry
