"""Folders that `weights=` may name, and what must be in them before anything is built.

A name is a folder, here or anywhere, or a world that comes with the package. Nothing in this file
reads more than configs and headers, so a missing tokenizer is told before the weights are read.
"""

from __future__ import annotations

import json
import logging
import os
from filecmp import cmp
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from lingbot.checkpoints.weights import REMEDY, TEXT_ENCODER, TRANSFORMER, transformer_files
from lingbot.checkpoints.world_file import LATENTS, WorldFile, read_world_file
from lingbot.codec.folder import CONFIG, WEIGHTS_FILE, check_codec
from lingbot.codec.text import ENCODER_FOLDER, check_umt5
from lingbot.conf.resolvers import shipped_world, shipped_worlds
from lingbot.model import CausalLingBotTransformer
from lingbot.model.tensor_files import check_tensors

log = logging.getLogger(__name__)

CODEC = "codec"
UMT5_TARGET = "lingbot.codec.text.UMT5TextEncoder"


def find_world(weights: str | Path) -> Path:
    """The folder that `weights=` means: one that is there, or that of a shipped world.

    A folder of a shipped world's name wins where it holds a transformer, and a log line says so.

    Raises:
        FileNotFoundError: neither a folder nor a shipped world.
        ValueError: something else than a folder, or nothing at all.
    """
    if not str(weights):
        raise ValueError(
            "weights= is empty: give a world's name or folder, or null for random ones"
        )
    folder = Path(weights).expanduser()
    shipped = isinstance(weights, str) and weights in shipped_worlds()
    if folder.is_dir() and (not shipped or _holds_transformer(folder)):
        if shipped:
            log.warning(
                "weights=%s: the folder %s, not the shipped world", weights, folder.absolute()
            )
        return folder.absolute()
    if shipped:
        return Path(shipped_world(str(weights)))
    if os.path.lexists(folder) and not folder.is_dir():
        raise ValueError(
            f"weights={str(weights)!r} is no folder: give a world's; `python -m lingbot.world "
            "CHECKPOINT FOLDER` makes one of a checkpoint"
        )
    if len(folder.parts) == 1:
        raise FileNotFoundError(
            f"weights={str(weights)!r}: there is no such folder here, and no world {folder.name!r} "
            f"is shipped; there are: {', '.join(shipped_worlds())}"
        )
    raise FileNotFoundError(
        f"no world in {folder.absolute()}: there is no such folder; a world's holds {TRANSFORMER} "
        f"and {CODEC}/"
    )


def check_files(cfg: DictConfig) -> None:
    """Refuses weights, a codec or a text encoder that are not there, or not what `cfg` describes.

    Raises:
        FileNotFoundError, ValueError: naming the file and the difference; nothing has been loaded.
    """
    text, codec = cfg.text, cfg.codec
    for group in ("codec", "text"):
        place = cfg[group].get("folder")
        if place is not None and not Path(place).is_dir():
            raise FileNotFoundError(f"{group}.folder={place!r}: there is no such folder")
    if text.get("_target_") == UMT5_TARGET:
        check_text(cfg)
    folder = None if cfg.weights is None else Path(cfg.weights)
    if codec.get("folder") is not None:
        config = check_codec(codec.folder)
        world = None if folder is None else read_world_file(folder)
        if world is not None:
            check_latents(world, config, Path(codec.folder) / CONFIG)
    if folder is not None:
        check_weights(folder, cfg)


def check_weights(folder: Path, cfg: DictConfig) -> None:
    """Refuses a transformer or trained text encoder of other tensors than `cfg` describes."""
    files = transformer_files(folder)
    with torch.device("meta"):
        transformer = CausalLingBotTransformer(instantiate(cfg.model, _convert_="all"))
        check_tensors(transformer.state_dict(), files, REMEDY)
        encoder = folder / TEXT_ENCODER
        if encoder.exists() and cfg.text.get("_target_") != UMT5_TARGET:
            made = instantiate(cfg.text, _convert_="all")()
            check_tensors(made.state_dict(), [encoder], "is it another text= choice?")


def check_text(cfg: DictConfig) -> None:
    """Refuses a UMT5 that is not there, or whose width is not the model's `text_dim`."""
    check_umt5(cfg.text.folder)
    file = Path(cfg.text.folder) / ENCODER_FOLDER / "config.json"
    try:
        width = json.loads(file.read_text(encoding="utf-8")).get("d_model")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is no config of a text encoder ({error})") from error
    if width != cfg.model.text_dim:
        raise ValueError(f"{file} has d_model={width}, and model.text_dim={cfg.model.text_dim}")


def check_latents(world: WorldFile, config: dict[str, Any], file: Path) -> None:
    """Refuses a codec whose latents are normalised otherwise than the world's training had them."""
    for name in LATENTS:
        if config.get(name) != world.latents[name]:
            raise ValueError(
                f"{file} has another {name} than {world.file}: the world was trained in other "
                "latents; export it again, or take the codec it was exported with"
            )


def same_codec(one: Path, other: Path) -> bool:
    """Whether two codec folders hold the same files, byte by byte."""
    if one.resolve() == other.resolve():
        return True
    if not all((folder / WEIGHTS_FILE).is_file() for folder in (one, other)):
        return False
    return all(cmp(one / name, other / name, shallow=False) for name in (CONFIG, WEIGHTS_FILE))


def _holds_transformer(folder: Path) -> bool:
    try:
        return bool(transformer_files(folder))
    except FileNotFoundError:
        return False
