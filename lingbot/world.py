"""Worlds in and out: a trained world is a folder that drives anywhere.

A folder holds `transformer.safetensors`, `text_encoder.safetensors` and `codec/` as diffusers has
it, all in float16, and `world.json`, which says what they were trained with. Worlds that come with
the package are known by name.

    python -m lingbot.world CHECKPOINT FOLDER    makes a world, or a codec, of a run's checkpoint
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig
from torch import nn

from lingbot.building import build
from lingbot.checkpoints.atomic import atomic_folder
from lingbot.checkpoints.merging import check_exportable, merged_state
from lingbot.checkpoints.run_checkpoint import check_checkpoint
from lingbot.checkpoints.weights import TEXT_ENCODER, TRANSFORMER, save_weights
from lingbot.checkpoints.world_file import (
    BYTES,
    FORMAT,
    LATENTS,
    UMT5,
    read_world_file,
    write_world_file,
)
from lingbot.checkpoints.world_folder import CODEC, check_files, find_world
from lingbot.cli.arguments import for_hydra
from lingbot.cli.noise import silence
from lingbot.cli.terminal import make_tolerant
from lingbot.codec.folder import CONFIG
from lingbot.codec.text import ByteTextEncoder, UMT5TextEncoder
from lingbot.codec.video import VideoCodec, load_codec
from lingbot.errors import UserError
from lingbot.launch import check_options, compose_command, refusing
from lingbot.memory import check_fits
from lingbot.module import LingBotModule
from lingbot.parallel.sharding import is_sharded
from lingbot.parts import check_parts, weigh
from lingbot.run_export import (
    check_codec_export,
    load_checkpoint,
    load_run,
    record_of,
    save_codec,
)

__all__ = [
    "check_checkpoint", "check_export", "load_checkpoint", "load_world", "save_world",
]  # fmt: skip

log = logging.getLogger(__name__)


def load_world(world: str | Path | None = None, overrides: Sequence[str] = ()) -> LingBotModule:
    """A world ready to drive, with the options it was trained with; works in a notebook.

    Args:
        world: as `weights=` takes it: the folder of a world or of a public checkpoint, or the name
            of a world that comes with the package. None leaves it to `conf/generate.yaml`.
        overrides: as on the command line: `["conditioner_cache=off", "codec.dtype=bfloat16"]`.

    Raises:
        ValueError: (`lingbot.launch.UserError`) for a world that is not there, files that are not
            what they should be, and options that contradict the world.
        hydra.errors.HydraException: for overrides that do not compose.
    """
    with refusing():
        chosen = [] if world is None else for_hydra([f"weights={find_world(world)}"])
        cfg = compose_world([*chosen, *overrides])
        check_options(cfg)
        check_files(cfg)
        module: LingBotModule = build(cfg.module, "module", LingBotModule)
        check_parts(module)
        check_fits({"weights": sum(weigh(module, 4)[:3])}, "cpu")
        module.configure_model()
    return module.eval()


def save_world(
    module: LingBotModule,
    folder: str | Path,
    trained: Mapping[str, Any] | None = None,
    fps: int | None = None,
) -> None:
    """Write the world as `load_world(folder)` takes it; it appears whole or not at all.

    A world that is there already is replaced. Where its weights are sharded, all ranks call this
    and the first one writes.

    Args:
        module: a built one; adapted layers are merged, see `lingbot.checkpoints.merging`.
        folder: where the world goes.
        trained: what it was trained from; None keeps what the world says that it was loaded from.
        fps: of its clips, likewise.

    Raises:
        ValueError: a module that is not built yet, or holds what a world cannot.
        FileExistsError: the folder holds something that is not a world.
    """
    if module.transformer is None:
        raise ValueError("there is nothing to save: call configure_model() first")
    check_export(folder)
    check_exportable(module.transformer, module.config)
    before = None if module.weights is None else read_world_file(Path(module.weights))
    if before is not None:
        trained = before.trained if trained is None else trained
        fps = before.options["fps"] if fps is None else fps
    states = {TRANSFORMER: merged_state(module.transformer)}
    if not isinstance(module.text_encoder, UMT5TextEncoder):  # comes with its own checkpoint
        states[TEXT_ENCODER] = merged_state(module.text_encoder)
    if is_sharded(module.transformer) and dist.get_rank() != 0:
        return
    with atomic_folder(folder) as made:
        for name, state in states.items():
            save_weights(state, made / name, torch.float16)
        unrounded(module.codec).save(made / CODEC)
        write_world_file(describe(module, trained, fps), made)
        for file in made.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors lets only the owner read
    log.info("the world is in %s", folder)


def describe(
    module: LingBotModule, trained: Mapping[str, Any] | None, fps: int | None
) -> dict[str, Any]:
    """What `world.json` says of a built module; the names are those of the commands' options."""
    camera, sampler, cache = module.camera, module.sampler, module.kv_cache
    return {
        "format": FORMAT,
        "model": asdict(module.config),
        "frames_per_chunk": camera.frames_per_chunk,
        "schedule": sampler.schedule.kind,
        "sampler": {
            "schedule": {"shift": sampler.schedule.shift},
            "indices": list(sampler.indices),
        },
        "kv_cache": {"window": cache.window, "sink": cache.sink},
        "camera": {
            "height": camera.height,
            "width": camera.width,
            "intrinsics": list(camera.intrinsics),
            "translation_scale": camera.scale.live,
        },
        "text": describe_text(module.text_encoder),
        "latents": {name: list(module.codec.vae.config[name]) for name in LATENTS},
        "fps": fps,
        "trained": None if trained is None else dict(trained),
    }


def describe_text(encoder: nn.Module) -> dict[str, Any]:
    """A text encoder's description: its name and sizes, or the class of one that is not ours."""
    if isinstance(encoder, ByteTextEncoder):
        kernel_size = encoder.mix.kernel_size[0]
        sizes = {"text_dim": encoder.text_dim, "text_len": encoder.text_len}
        return {"encoder": BYTES, **sizes, "kernel_size": kernel_size}
    if isinstance(encoder, UMT5TextEncoder):
        return {"encoder": UMT5, "text_len": encoder.text_len, "folder": str(encoder.folder)}
    return {"encoder": f"{type(encoder).__module__}.{type(encoder).__qualname__}"}


def unrounded(codec: VideoCodec) -> VideoCodec:
    """The codec as its folder has it, where it is held in less than float32 and still the same.

    A codec that was read in bfloat16 would leave rounded, and be another one after every training.
    """
    if codec.dtype == torch.float32 or codec.folder is None or not codec.folder.is_dir():
        return codec
    whole = load_codec(codec.folder)
    held = codec.vae.state_dict()
    same = all(
        torch.equal(value.to(codec.dtype), held[name].cpu())
        for name, value in whole.vae.state_dict().items()
    )
    return whole if same else codec


def check_export(folder: str | Path) -> None:
    """Raises FileExistsError for a folder that holds something that is not a world."""
    folder = Path(folder)
    free = not os.path.lexists(folder) or (folder.is_dir() and not any(folder.iterdir()))
    if not free and not (folder / TRANSFORMER).is_file():
        raise FileExistsError(f"{folder} holds something else than a world: give another folder")


def compose_world(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of `lingbot-generate`; a Hydra that is at work already goes on after."""
    return compose_command("generate", overrides)


def export(checkpoint: Path, folder: Path, trusted: bool = False) -> None:
    """Makes a world, or a codec, of a training run's checkpoint.

    Raises:
        FileNotFoundError, ValueError: as `load_run`.
        FileExistsError: the folder holds something else.
    """
    if not (folder / CONFIG).is_file():  # a codec, perhaps to be replaced by another
        check_export(folder)
    module, cfg = load_run(checkpoint, trusted)
    if isinstance(module, LingBotModule):
        check_export(folder)
        save_world(module, folder, record_of(checkpoint, cfg), cfg.get("fps"))
    else:
        check_codec_export(folder)
        save_codec(module, cfg, folder)  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m lingbot.world",
        description="Make a world of a training run's checkpoint, or a codec of a codec's.",
    )
    parser.add_argument(
        "checkpoint", type=Path, help="a .ckpt, file or folder, in the folder of its run"
    )
    parser.add_argument("folder", type=Path, help="where the world or codec goes")
    parser.add_argument(
        "--trust-run-code",
        action="store_true",
        help="build whatever the run's configuration names: you know who made the run",
    )
    make_tolerant()
    silence()
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with refusing():
            export(arguments.checkpoint, arguments.folder, arguments.trust_run_code)
    except UserError as refusal:
        parser.exit(2, f"lingbot.world: {refusal}\n")


if __name__ == "__main__":
    main()
