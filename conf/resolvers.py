"""What the YAML files may ask for: when the run started, and where a shipped world lies.

Ranks started by torchrun each compose the configuration themselves. Whichever asks first leaves its
clock's time in the launcher's own store, and all take that, so that a run has one folder.
"""

from __future__ import annotations

import os
import time
from functools import cache
from importlib.resources import files

from omegaconf import DictConfig, OmegaConf


def shipped_world(name: str) -> str:
    """Folder of a world that comes with the package.

    Raises:
        ValueError: when no such world is shipped, naming those that are.
    """
    shipped = shipped_worlds()
    if name not in shipped:
        raise ValueError(f"no world {name!r} is shipped; there are: {', '.join(shipped) or 'none'}")
    return str(files("lingbot") / "worlds" / name)


def shipped_worlds() -> list[str]:
    """Names of the worlds that come with the package."""
    worlds = files("lingbot") / "worlds"
    return sorted(w.name for w in worlds.iterdir() if w.is_dir()) if worlds.is_dir() else []


def instance_of(group: str, *, _root_: DictConfig) -> DictConfig:
    """A group whose factory is called when it is instantiated, rather than handed on."""
    values = OmegaConf.to_container(_root_[group], resolve=True)
    assert isinstance(values, dict)
    return OmegaConf.create({**values, "_partial_": False})


def run_started() -> str:
    """Date and time of the run's start, the same on every rank of a torchrun launch."""
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _agreed_start()
    return time.strftime("%Y-%m-%d_%H-%M-%S")


@cache
def _agreed_start() -> str:
    import torch.distributed as dist

    store, _, _ = next(dist.rendezvous("env://"))
    return store.compare_set("lingbot/run_started", "", time.strftime("%Y-%m-%d_%H-%M-%S")).decode()


def register_resolvers() -> None:
    """Make `${shipped_world:NAME}`, `${instance_of:GROUP}` and `${run_started:}` known."""
    OmegaConf.register_new_resolver("instance_of", instance_of, replace=True)
    OmegaConf.register_new_resolver("shipped_world", shipped_world, replace=True)
    OmegaConf.register_new_resolver("run_started", run_started, use_cache=True, replace=True)
