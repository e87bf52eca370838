"""What is going to be compared on which drive; all that can be refused before a weight exists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from lingbot.benchmark.plan import DTYPES, with_dtype
from lingbot.benchmark.settings import Setting, configurations, plain
from lingbot.building import build
from lingbot.data.blockworld import render
from lingbot.data.blockworld_clips import SPLIT_SIZE, BlockWorldClips
from lingbot.data.blockworld_words import log_unheard
from lingbot.data.control_stream import MOST_STEPS, ControlStream
from lingbot.data.first_frame import read_image
from lingbot.data.video_file import FASTEST
from lingbot.device import choose_device
from lingbot.drive import check_files, check_history
from lingbot.fidelity.recording import LongDrive
from lingbot.memory import Need, check_fits, driving_need
from lingbot.model.checks import check_count, check_prompt, check_seed
from lingbot.module import LingBotModule
from lingbot.parts import check_parts
from lingbot.scores import video_length

# parts of a module that change how a world is made, not which one it is
MAY_DIFFER = (
    "kernels", "kv_cache", "conditioner_cache", "decode", "codec.dtype", "codec.memory_format",
    "text_encoder.dtype",
)  # fmt: skip
COMPARABLE = (
    "kernels, kv_cache, conditioner_cache, dtype, codec.dtype, codec.memory_format or text.dtype"
)


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Args:
        settings: the reference first, their dtypes decided.
        drive: the same for all.
        layers: whose keys and values are compared.
        device: where they run.
    """

    settings: tuple[Setting, ...]
    drive: LongDrive
    layers: tuple[int, ...]
    device: torch.device


def build_plan(cfg: DictConfig, overrides: Sequence[str]) -> Plan:
    """The plan that the configuration describes.

    Raises:
        ValueError: for settings, a drive or layers that cannot be compared.
    """
    if cfg.compare is None:
        raise ValueError(
            "compare=null: name a reference and what is measured against it, as in "
            "compare=kernels:[reference,fp8]"
        )
    check_count("num_chunks", cfg.num_chunks, 1, MOST_STEPS)
    check_count("fps", cfg.fps, 1, FASTEST)
    device = choose_device(cfg.device)
    composed = configurations(cfg, overrides)
    settings = tuple(
        with_dtype(Setting(label, plain(one.module), one.dtype), device.type)
        for label, one in composed
    )
    check_same_world(cfg.compare, settings)
    for _, one in composed:
        check_files(one)
    modules: list[LingBotModule] = [build(s.module, "module", LingBotModule) for s in settings]
    layers = choose_layers(cfg.layers, modules[0].config.num_layers)
    for setting, module in zip(settings, modules, strict=True):
        check_parts(module)
        check_history(module, range(cfg.num_chunks))
        dtype = DTYPES[setting.dtype]
        check_fits(driving_need(module, dtype), device.type)
        check_fits(recorded(module, cfg.num_chunks, len(layers), dtype.itemsize), "cpu")
    drive = build_drive(composed[0][1])
    modules[0].camera.chunk(drive.controls[0])  # refuses what it cannot follow
    return Plan(settings, drive, layers, device)


def recorded(module: LingBotModule, chunks: int, layers: int, item: int) -> Need:
    """What the reference's drive takes in main memory: frames, and rows of some layers."""
    rows = 2 * layers * module.grid.tokens * module.config.dim * item
    pixels = module.camera.height * module.camera.width
    frames = video_length(chunks, module.grid.frames) * pixels * 3
    return {"keys and values": chunks * rows, "frames": frames}


def check_same_world(compare: str, settings: Sequence[Setting]) -> None:
    """Raises ValueError for a setting whose frames the reference's say nothing about."""
    first = settings[0]
    true = dict(_leaves(first.module))
    for other in settings[1:]:
        values = dict(_leaves(other.module))
        differ = [
            name
            for name in {**true, **values}
            if true.get(name) != values.get(name) and not _may_differ(name)
        ]
        if differ:
            raise ValueError(
                f"compare={compare!r}: {other.label} is another world than {first.label}, with "
                f"another {', '.join(differ[:3])}{' ...' if differ[3:] else ''}, and their frames "
                f"cannot be compared: choose {COMPARABLE}"
            )
        if other.dtype != first.dtype and first.module["weights"] is None:
            raise ValueError(
                f"compare={compare!r}: random weights of {other.dtype} are others than those of "
                f"{first.dtype}: give weights=FOLDER"
            )


def choose_layers(layers: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The layers whose keys and values are compared: first, middle and last, or those given.

    Raises:
        ValueError: for layers that the model does not have, or that are named twice.
    """
    if layers is None:
        return tuple(sorted({0, count // 2, count - 1}))
    if not layers or len(set(layers)) < len(layers) or not all(0 <= n < count for n in layers):
        raise ValueError(
            f"layers={list(layers)}: give different numbers from 0 to {count - 1}, the model has "
            f"{count} layers; or null for first, middle and last"
        )
    return tuple(layers)


def build_drive(cfg: DictConfig) -> LongDrive:
    """A scene's first frame, prompt and random drive; first frame and prompt may be others.

    Raises:
        ValueError: for a scene that there is not, or without room for a drive this long; for an
            image without a prompt.
    """
    given = None if cfg.prompt is None else check_prompt(cfg.prompt, "prompt=")
    if cfg.image is not None and given is None:
        raise ValueError(f"image={cfg.image!r} needs a prompt: say what it shows, prompt=...")
    check_count("scene", cfg.scene, 0, SPLIT_SIZE - 1)
    height, width = cfg.camera.height, cfg.camera.width
    length = video_length(cfg.num_chunks, cfg.frames_per_chunk)
    clips = BlockWorldClips(
        "test", cfg.scene + 1, max(length, 2), height, width, cfg.camera.intrinsics
    )
    try:
        drawn = clips.drive(cfg.scene)
    except RuntimeError as error:
        raise ValueError(f"scene={cfg.scene}, num_chunks={cfg.num_chunks}: {error}") from error
    image: Tensor
    if cfg.image is not None:
        image = read_image(cfg.image, height, width)
    else:
        image = render(drawn.scene, drawn.poses[:1], clips.intrinsics, height, width)[0]
    stream = ControlStream.from_actions(drawn.actions, cfg.frames_per_chunk, cfg.num_chunks)
    if cfg.image is None and given is not None:
        log_unheard(given)
    prompt = drawn.prompt if given is None else given
    return LongDrive(image, prompt, stream.steps, check_seed(cfg.seed))


def _may_differ(name: str) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in MAY_DIFFER)


def _leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of a nested node by their dotted names."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
