"""From options to a drive: controls, first frame, Trainer; what cannot be driven is refused here.

Nothing in this file loads weights or starts processes, so that every check comes before both.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence, Sized
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig
from torch import Tensor

from lingbot.building import build
from lingbot.camera.controls import VIDEO_FRAMES
from lingbot.camera.translation import TranslationScale
from lingbot.checkpoints.world_folder import check_files
from lingbot.cli.trainer import make_trainer
from lingbot.data.blockworld import make_scene, render
from lingbot.data.blockworld_words import log_unheard
from lingbot.data.control_stream import ControlStream
from lingbot.data.first_frame import read_image
from lingbot.launch import build_all, check_seed, rank
from lingbot.model.checks import check_prompt
from lingbot.module import LingBotModule
from lingbot.parallel.sequence_parallel import SequenceParallelMixin
from lingbot.parallel.strategy import SequenceParallelStrategy
from lingbot.parts import check_parts

__all__ = [
    "build_drive", "build_trainer", "check_files", "check_history", "first_frame", "video_frames",
]  # fmt: skip

log = logging.getLogger(__name__)

SCENE = "blockworld"  # the one that first frames are rendered of


def build_module(cfg: DictConfig, kind: type = LingBotModule) -> Any:
    """The module that the configuration describes, of which no weight exists yet.

    Raises:
        ValueError: for parts that cannot be, or that do not fit each other.
    """
    module = build(cfg.module, "module", kind)
    if isinstance(module, LingBotModule):
        check_parts(module)
    return module


def check_controls(module: LingBotModule, drive: ControlStream) -> None:
    """Raises ValueError for controls that the camera cannot follow."""
    module.camera.chunk(drive[0])
    module.camera.reset()


def build_drive(cfg: DictConfig) -> ControlStream:
    """The controls, one a realtime step, from the folder or the actions.

    By which length their translations are going to be divided is logged.

    Raises:
        ValueError: for actions, a folder, steps or prompt events that cannot be driven.
    """
    if cfg.folder is not None and cfg.actions is not None:
        raise ValueError(
            f"actions={cfg.actions!r} and folder={cfg.folder!r} both say where to go: give one"
        )
    shape = (cfg.frames_per_chunk, cfg.num_steps, cfg.prompt_events)
    if cfg.folder is not None:
        drive = ControlStream.from_folder(cfg.folder, *shape, kind=cfg.camera.kind)
    else:
        actions = cfg.sample_drive if cfg.actions is None else cfg.actions
        drive = ControlStream.from_actions(actions, *shape)
    if cfg.camera.kind != "act":  # whose rays have no origins
        scale = TranslationScale(cfg.camera.translation_scale, cfg.camera.recorded_scale)
        scale.log_choice(drive[0].largest_step)
    return drive


def first_frame(cfg: DictConfig, drive: ControlStream) -> tuple[Tensor, str]:
    """Where the world starts: the first frame, uint8 [H, W, 3], and the prompt.

    What a scene chooses by itself is logged, and what it does not understand.

    Raises:
        ValueError: when there is no image to start from, or no prompt for the one that is given.
    """
    prompt = drive.prompt if cfg.prompt is None else check_prompt(cfg.prompt, "prompt=")
    height, width = cfg.camera.height, cfg.camera.width
    path = drive.first_image if cfg.image is None else cfg.image
    if path is not None:
        if prompt is None:
            raise ValueError(f"image={str(path)!r} needs a prompt: say what it shows, prompt=...")
        return read_image(path, height, width), prompt
    if cfg.scene is None:
        raise ValueError("this world starts from a picture: give image=PATH, or a folder with one")
    if cfg.scene != SCENE:
        raise ValueError(f"scene={cfg.scene!r}: give {SCENE}, or null with image=PATH")
    if rank() == 0:
        for words in [prompt, *(controls.prompt for controls in drive)]:
            log_unheard(words or "")
    scene = make_scene(check_seed(cfg.scene_seed, "scene_seed"), prompt or "")
    frame = render(scene, torch.eye(4)[None], height=height, width=width)[0]
    if prompt is None:
        prompt = str(scene.prompt)
        log.info("No prompt was given: the scene chose %r.", prompt)
    return frame, prompt


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
    parts: dict[str, Any] = {
        "callbacks": [*build_all(cfg.callbacks), *callbacks],
        "logger": False,
    }
    trainer = make_trainer(cfg, **parts)
    if trainer.world_size > 1 and not isinstance(trainer.strategy, SequenceParallelMixin):
        if build(cfg.strategy, "strategy") != "auto":
            raise ValueError(
                f"{trainer.world_size} ranks would each drive the same world under "
                f"{type(trainer.strategy).__name__}: choose strategy=sequence_parallel"
            )
        log.info("driving on %d ranks: strategy=sequence_parallel", trainer.world_size)
        parts["strategy"] = SequenceParallelStrategy()
        trainer = make_trainer(cfg, **parts)
    if isinstance(trainer.strategy, SequenceParallelMixin):
        if trainer.strategy.data_size > 1:
            raise ValueError(
                f"{trainer.strategy.data_size} groups of {trainer.strategy.sequence_size} ranks "
                "would each drive the same world: leave strategy.sequence_size at auto, or take "
                f"trainer.devices={trainer.strategy.sequence_size}"
            )
        trainer.strategy.check(module.grid.tokens, module.config.num_heads)
    return trainer


def video_frames(frames_per_chunk: int, steps: int) -> int:
    """Video frames of that many realtime steps."""
    return 1 + VIDEO_FRAMES * (steps * frames_per_chunk - 1) if steps else 0
