"""From a checkpoint to what it is of: the module of a training run, a world's or a codec's.

A run's folder says by its configuration what the checkpoint holds. That configuration names classes
and functions, so it is checked before anything of it is built; see `lingbot.checkpoints.trust`.
"""

from __future__ import annotations

import logging
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from lingbot.checkpoints.atomic import atomic_folder
from lingbot.checkpoints.run_checkpoint import (
    RUN_CONFIG,
    check_checkpoint,
    check_state,
    read_overrides,
    read_run_config,
    read_state,
    read_step,
    run_of,
)
from lingbot.checkpoints.trust import check_targets
from lingbot.checkpoints.world_file import WorldFile, read_world_file, training_record
from lingbot.codec.folder import CONFIG
from lingbot.codec.training import CodecModule, latent_statistics
from lingbot.device import choose_device
from lingbot.launch import refusing
from lingbot.module import FROZEN, LingBotModule

log = logging.getLogger(__name__)

TRUST = "--trust-run-code (or trusted=True)"


def load_run(checkpoint: str | Path, trusted: bool = False) -> tuple[L.LightningModule, DictConfig]:
    """The module of a training run at a checkpoint, and the run's configuration.

    Args:
        checkpoint: a .ckpt, file or folder, in the folder of its run.
        trusted: whether whoever made the run may have anything of theirs built.

    Raises:
        FileNotFoundError: the checkpoint is not there, or does not lie in its run's folder.
        ValueError: it cannot be read, holds other weights than the run's configuration describes,
            or would run code of somebody else's.
    """
    checkpoint = Path(checkpoint)
    check_checkpoint(checkpoint, trusted=trusted)
    run = run_of(checkpoint)
    cfg = read_run_config(run)
    check_targets(cfg, trusted, run / RUN_CONFIG, TRUST)
    with refusing():
        alone = OmegaConf.merge(cfg, {"weights": None})
        module = instantiate(alone.module, _convert_="all")
        frozen = ""
        if isinstance(module, LingBotModule):
            module.configure_model()
            frozen = FROZEN
        elif not isinstance(module, CodecModule):
            raise ValueError(f"{checkpoint} is of a {type(module).__name__}: no world and no codec")
    state = read_state(checkpoint, frozen, trusted)
    own = {name: value for name, value in module.state_dict().items() if not _starts(name, frozen)}
    check_state(checkpoint, own, state, run / RUN_CONFIG)
    module.load_state_dict(state, strict=False)
    return module.eval(), cfg


def load_checkpoint(checkpoint: str | Path, trusted: bool = False) -> LingBotModule:
    """The world of a training run at a checkpoint, averaged weights where the run averaged.

    Raises:
        FileNotFoundError, ValueError: as `load_run`, and for a checkpoint of something else.
    """
    module, _ = load_run(checkpoint, trusted)
    if not isinstance(module, LingBotModule):
        raise ValueError(f"{checkpoint} is of a {type(module).__name__}: it holds no world")
    return module


def record_of(checkpoint: Path, cfg: DictConfig) -> dict[str, Any]:
    """What the world in a checkpoint was trained from, see `training_record`."""
    typed = read_overrides(run_of(checkpoint))
    command = None if typed is None else " ".join(["lingbot-train", *typed])
    return training_record(command, read_step(checkpoint), world_before(cfg))


def world_before(cfg: DictConfig) -> WorldFile | None:
    """The description of the world that a training started from, where it is still there."""
    return None if cfg.get("weights") is None else read_world_file(Path(cfg.weights))


def save_codec(module: CodecModule, cfg: DictConfig, folder: Path) -> None:
    """Writes a trained codec as `codec.folder=` takes it.

    The statistics that normalise its latents are measured when a fit ends, and no checkpoint holds
    them: they are measured here, on clips of the run's own data.
    """
    log.info("measuring the latents on %d batches of clips", module.statistics_batches)
    torch.manual_seed(cfg.seed)
    data: L.LightningDataModule = instantiate(cfg.data, _convert_="all")
    data.setup("fit")
    codec = module.codec.to(choose_device("auto")).requires_grad_(False)
    batches = islice(data.train_dataloader(), module.statistics_batches)
    codec.set_statistics(*latent_statistics(codec, (batch["frames"] for batch in batches)))
    with atomic_folder(folder) as made:
        codec.save(made)
    log.info("the codec is in %s", folder)


def check_codec_export(folder: Path) -> None:
    """Raises FileExistsError for a folder that holds something that is not a codec."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise FileExistsError(f"{folder} holds something else than a codec: give another folder")


def _starts(name: str, prefix: str) -> bool:
    return bool(prefix) and name.startswith(prefix)
