"""Gives a training that goes on the options of the run that its checkpoint lies in.

`ckpt_path=RUN/checkpoints/last.ckpt` alone is enough. What is typed beside it, or set by an
experiment that is, wins, unless the weights could not be what it says.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from lingbot.checkpoints.run_checkpoint import RUN_CONFIG, read_run_config, run_of
from lingbot.checkpoints.trust import check_targets
from lingbot.checkpoints.world_folder import find_world, same_codec
from lingbot.checkpoints.world_options import Chosen

log = logging.getLogger(__name__)

# of this command, whatever the run had
OF_THE_COMMAND = ("ckpt_path", "trust_run_code", "paths", "command")
# what weights are of, but for what may change without them
OF_THE_WEIGHTS = ("model", "text", "codec", "module._target_", "weights")
NOT_OF_THE_WEIGHTS = ("dtype", "memory_format")
TEXT_FOLDER = "text.folder"  # where UMT5 is, which no checkpoint holds


def apply_run(cfg: DictConfig, overrides: Sequence[str]) -> bool:
    """Changes a configuration in place into that of the run which `ckpt_path` goes on with.

    Call it while the Hydra that composed `cfg` is at work, which knows its experiments.

    Args:
        cfg: of any command; only a training has a `ckpt_path`.
        overrides: what was typed.

    Returns:
        Whether there is such a run; a checkpoint that lies in none leaves `cfg` as it is.

    Raises:
        ValueError: the run's configuration cannot be read, is of no training, would run code of
            somebody else's, or is contradicted by what was typed.
    """
    checkpoint = cfg.get("ckpt_path")
    if checkpoint is None or not Path(checkpoint).exists():
        return False
    try:
        run = run_of(Path(checkpoint))
    except FileNotFoundError as error:
        log.warning("%s; the options are those of this command", error)
        return False
    theirs = read_run_config(run)
    if theirs.get("command") != cfg.command:
        raise ValueError(f"{run / RUN_CONFIG} is no training's: lingbot-train goes on with those")
    check_targets(theirs, cfg.trust_run_code, run / RUN_CONFIG)
    chosen = Chosen(overrides)
    for key, option in _chosen(chosen).items():
        _check_kept(key, option, cfg, theirs, run)
    _take(cfg, theirs, chosen, overrides)
    typed = [text for key, text in chosen.typed.items() if key != "ckpt_path"]
    log.info("going on with the options of %s%s", run, f", but {' '.join(typed)}" if typed else "")
    return True


def _chosen(chosen: Chosen) -> dict[str, str]:
    """Keys of the configuration that somebody has chosen, each with the option that did."""
    keys = {**chosen.by_experiment, **chosen.typed}
    outside = ("hydra", "experiment", "debug", "meant_for", *OF_THE_COMMAND)
    return {
        key: text for key, text in keys.items() if key.split(".")[0].split("/")[0] not in outside
    }


def _check_kept(key: str, option: str, cfg: DictConfig, theirs: DictConfig, run: Path) -> None:
    """Refuses an option that says of the weights what they are not."""
    names = ["module._target_"] if key == "module" else [key]
    for name in names:
        if not any(name == part or name.startswith(f"{part}.") for part in OF_THE_WEIGHTS):
            return
        here, there = _value(cfg, name), _value(theirs, name)
        if here == there or name == TEXT_FOLDER or name.endswith(NOT_OF_THE_WEIGHTS):
            continue
        if name in ("codec", "codec.folder") and _is_moved(cfg.codec, theirs.codec):
            continue
        shown = "" if isinstance(there, dict) else f" with {name}={there}"
        raise ValueError(
            f"{option}: the training in {run} goes on{shown or ' with another'}; leave it out, or "
            "begin a training of its own without ckpt_path"
        )


def _value(cfg: DictConfig, name: str) -> Any:
    """A value, resolved; of a group without what does not tell weights apart."""
    node = OmegaConf.select(cfg, name)
    if name == "weights" and node is not None:
        return str(find_world(node))
    if not OmegaConf.is_config(node):
        return node
    plain = OmegaConf.to_container(node, resolve=True)
    if name == "text" and isinstance(plain, dict):
        plain.pop("folder", None)
    return (
        {key: value for key, value in plain.items() if key not in NOT_OF_THE_WEIGHTS}
        if isinstance(plain, dict)
        else plain
    )


def _is_moved(here: DictConfig, there: DictConfig) -> bool:
    """Whether two trained codecs are one, as far as can be told: the first may be gone."""
    folders = [Path(codec.folder) for codec in (here, there) if codec.get("folder") is not None]
    if len(folders) < 2:
        return False
    return not folders[1].is_dir() or same_codec(*folders)


def _take(cfg: DictConfig, theirs: DictConfig, chosen: Chosen, overrides: Sequence[str]) -> None:
    """The run's values, with those that were chosen put into them."""
    own = OmegaConf.to_container(cfg, resolve=False)
    taken = OmegaConf.to_container(theirs, resolve=False)
    assert isinstance(own, dict)
    assert isinstance(taken, dict)
    for key in _chosen(chosen):
        _set(taken, key.split("."), own)
    for text in overrides:
        if text.startswith("~"):
            _remove(taken, text[1:].partition("=")[0].split("."))
    taken["meant_for"] = {**taken.get("meant_for", {}), **own["meant_for"]}
    with open_dict(cfg):
        for name, value in taken.items():
            if name not in OF_THE_COMMAND:
                cfg[name] = value
        if not {"paths", "paths.data_dir", "paths.root_dir"} & chosen.typed.keys():
            cfg.paths.data_dir = theirs.paths.data_dir  # whose clips are encoded already


def _set(taken: dict[Any, Any], path: list[str], own: Any) -> None:
    """Puts the value at a path of `own` into `taken`, where there is one."""
    for name in path[:-1]:
        if not isinstance(own, dict) or name not in own:
            return
        own = own[name]
        if not isinstance(taken.get(name), dict):
            taken[name] = {}
        taken = taken[name]
    if isinstance(own, dict) and path[-1] in own:
        taken[path[-1]] = own[path[-1]]


def _remove(taken: Any, path: list[str]) -> None:
    for name in path[:-1]:
        taken = taken.get(name) if isinstance(taken, dict) else None
    if isinstance(taken, dict):
        taken.pop(path[-1], None)
