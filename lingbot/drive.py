"""From options to a drive: controls, first frame, Trainer; what cannot be driven is refused here.

Nothing in this file loads weights or starts processes, so that every check comes before both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence, Sized

import lightning as L
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from lingbot.camera.controls import VIDEO_FRAMES
from lingbot.checkpoints.world_folder import check_files
from lingbot.data.blockworld import make_scene, render
from lingbot.data.control_stream import ControlStream
from lingbot.data.first_frame import read_image
from lingbot.launch import build_all, check_seed
from lingbot.module import LingBotModule
from lingbot.parallel.sequence_parallel import SequenceParallelMixin
from lingbot.parallel.strategy import SequenceParallelStrategy

__all__ = [
    "build_drive", "build_trainer", "check_files", "check_history", "first_frame", "video_frames",
]  # fmt: skip

log = logging.getLogger(__name__)


def build_drive(cfg: DictConfig) -> ControlStream:
    """The controls, one a realtime step, from the folder or the actions.

    Raises:
        ValueError: for actions, a folder, steps or prompt events that cannot be driven.
    """
    if cfg.folder is not None and cfg.actions is not None:
        raise ValueError(
            f"actions={cfg.actions!r} and folder={cfg.folder!r} both say where to go: give one"
        )
    shape = (cfg.frames_per_chunk, cfg.num_steps, dict(cfg.prompt_events or {}))
    if cfg.folder is not None:
        return ControlStream.from_folder(cfg.folder, *shape)
    actions = cfg.sample_drive if cfg.actions is None else cfg.actions
    return ControlStream.from_actions(actions, *shape)


def first_frame(cfg: DictConfig, drive: ControlStream) -> tuple[Tensor, str]:
    """Where the world starts: the first frame, uint8 [H, W, 3], and the prompt.

    Raises:
        ValueError: when there is no image to start from, or no prompt for the one that is given.
    """
    prompt = cfg.prompt if cfg.prompt is not None else drive.prompt
    if prompt is not None and not prompt.strip():
        raise ValueError("the prompt is empty: say what the world is, as in prompt='dusk, sand'")
    height, width = cfg.camera.height, cfg.camera.width
    path = cfg.image or drive.first_image
    if path is not None:
        if prompt is None:
            raise ValueError(f"image={str(path)!r} needs a prompt: say what it shows, prompt=...")
        return read_image(path, height, width), prompt
    if cfg.scene is None:
        raise ValueError("this world starts from a picture: give image=PATH, or a folder with one")
    scene = make_scene(check_seed(cfg.scene_seed), prompt or "")
    frame = render(scene, torch.eye(4)[None], height=height, width=width)[0]
    return frame, prompt or str(scene.prompt)


def check_history(module: LingBotModule, drive: Sized) -> None:
    """Raises ValueError where a cache that keeps the whole history would fill up on the way."""
    cache, needed = module.kv_cache, len(drive) * module.grid.frames
    if cache.window == -1 and needed > cache.max_frames:
        raise ValueError(
            f"{len(drive)} realtime steps are {needed} latent frames, and kv_cache.max_frames="
            f"{cache.max_frames}: choose kv_cache=sliding, or kv_cache.max_frames={needed}"
        )


def build_trainer(
    cfg: DictConfig, module: LingBotModule, callbacks: Sequence[L.Callback] = ()
) -> L.Trainer:
    """The Trainer with its callbacks and these; several ranks drive sequence-parallel.

    Raises:
        ValueError: for ranks that the model's heads or a chunk's tokens cannot be split over.
    """
    parts = {
        "callbacks": [*build_all(cfg.callbacks), *callbacks],
        "logger": False,
        "_convert_": "all",
    }
    trainer: L.Trainer = instantiate(cfg.trainer, **parts)
    if trainer.world_size > 1 and not isinstance(trainer.strategy, SequenceParallelMixin):
        if instantiate(cfg.strategy) != "auto":
            raise ValueError(
                f"{trainer.world_size} ranks would each drive the same world under "
                f"{type(trainer.strategy).__name__}: choose strategy=sequence_parallel"
            )
        log.info("driving on %d ranks: strategy=sequence_parallel", trainer.world_size)
        trainer = instantiate(cfg.trainer, strategy=SequenceParallelStrategy(), **parts)
    if isinstance(trainer.strategy, SequenceParallelMixin):
        if trainer.strategy.data_size > 1:
            raise ValueError(
                f"{trainer.strategy.data_size} groups of {trainer.strategy.sequence_size} ranks "
                "would each drive the same world: leave strategy.sequence_size at auto, or take "
                f"trainer.devices={trainer.strategy.sequence_size}"
            )
        trainer.strategy.check(module.grid.tokens, module.config.num_heads)
    return trainer


def video_frames(module: LingBotModule, drive: ControlStream) -> int:
    """Video frames that a drive makes."""
    return 1 + VIDEO_FRAMES * (len(drive) * module.grid.frames - 1)
