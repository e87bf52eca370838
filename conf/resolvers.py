"""Functions that the YAML files call: a run's own folder, and the folder of a shipped world."""

from __future__ import annotations

from importlib.resources import files

from omegaconf import DictConfig, OmegaConf

from lingbot.cli.folders import claim_folder


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


def register_resolvers() -> None:
    """Makes `${shipped_world:NAME}`, `${instance_of:GROUP}` and `${claim_folder:PARENT}` known.

    The last is asked once in a composed configuration, which remembers the folder.
    """
    OmegaConf.register_new_resolver("instance_of", instance_of, replace=True)
    OmegaConf.register_new_resolver("shipped_world", shipped_world, replace=True)
    OmegaConf.register_new_resolver("claim_folder", claim_folder, use_cache=True, replace=True)
