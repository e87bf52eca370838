"""Worlds in and out: a trained world is a folder of weights that drives anywhere.

A folder holds `transformer.safetensors`, `text_encoder.safetensors` and `codec/` as diffusers has
it, all in float16. Worlds that come with the package are known by name.

    python -m lingbot.world CHECKPOINT FOLDER    makes a world of a training run's checkpoint
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as distributed_checkpoint
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lingbot.building import build
from lingbot.checkpoints.atomic import atomic_folder
from lingbot.cli.noise import silence
from lingbot.cli.terminal import make_tolerant
from lingbot.codec.text import UMT5TextEncoder
from lingbot.conf.resolvers import shipped_world
from lingbot.launch import UserError, check_options, compose_command, refusing
from lingbot.memory import check_fits
from lingbot.model.checkpoint import TEXT_ENCODER, TRANSFORMER, save_weights
from lingbot.module import FROZEN, LingBotModule
from lingbot.parallel.sharding import is_sharded, whole_state
from lingbot.parts import check_parts, weigh

log = logging.getLogger(__name__)

CODEC = "codec"
DEFAULT = "blockworld"
RUN_CONFIG = Path(".hydra") / "config.yaml"
METADATA, STATE = ".metadata", "state_dict"  # of a checkpoint in shards; of any checkpoint


def load_world(world: str | Path = DEFAULT, overrides: Sequence[str] = ()) -> LingBotModule:
    """A world ready to drive, as `conf/generate.yaml` describes it; works in a notebook.

    Args:
        world: name of a world that comes with the package, or the folder of one (a `Path`, or a
            string with a slash in it).
        overrides: as on the command line: `["conditioner_cache=off", "codec.dtype=bfloat16"]`.

    Raises:
        ValueError: (`lingbot.launch.UserError`) for a world that is not there or does not fit the
            model.
        hydra.errors.HydraException: for overrides that do not compose.
    """
    with refusing():
        cfg = compose_world([*_overrides(world), *overrides])
        check_options(cfg)
        module: LingBotModule = build(cfg.module, "module", LingBotModule)
        check_parts(module)
        check_fits({"weights": sum(weigh(module, 4)[:3])}, "cpu")
        module.configure_model()
    return module.eval()


def load_checkpoint(checkpoint: str | Path) -> LingBotModule:
    """The module of a training run at a checkpoint, averaged weights where the run averaged.

    Raises:
        FileNotFoundError: the checkpoint is not there, or does not lie in its run's folder.
        ValueError: it holds other weights than the run's configuration describes.
    """
    checkpoint = Path(checkpoint)
    check_checkpoint(checkpoint)
    configs = [folder / RUN_CONFIG for folder in checkpoint.absolute().parents]
    config = next((path for path in configs if path.is_file()), None)
    if config is None:
        raise FileNotFoundError(
            f"{checkpoint} is not in the folder of a run: {RUN_CONFIG} says what it holds"
        )
    cfg = OmegaConf.merge(OmegaConf.load(config), {"weights": None})
    with refusing():
        module = instantiate(cfg.module, _convert_="all")
        if not isinstance(module, LingBotModule):
            raise ValueError(f"{checkpoint} is of a {type(module).__name__}: it holds no world")
        module.configure_model()
    state, own = _read_state(checkpoint), module.state_dict()
    missing = [name for name in own if name not in state and not name.startswith(FROZEN)]
    unknown = [name for name in state if name not in own]
    others = [name for name in state if name in own and state[name].shape != own[name].shape]
    if missing or unknown or others:
        raise ValueError(
            f"{checkpoint} does not hold what {config} describes: {len(missing)} tensors missing "
            f"{missing[:3]}, {len(unknown)} unknown {unknown[:3]}, {len(others)} of another shape "
            f"{others[:3]}"
        )
    module.load_state_dict(state, strict=False)
    return module.eval()


def check_checkpoint(checkpoint: str | Path, folders: bool = True) -> None:
    """Raises FileNotFoundError for what is no checkpoint, ValueError for one of the wrong kind.

    Args:
        folders: whether it may be the folder that ranks with sharded weights leave.
    """
    checkpoint = Path(checkpoint)
    if (checkpoint / METADATA).is_file():
        if not folders:
            raise ValueError(
                f"{checkpoint} is a checkpoint of sharded weights: go on from it with "
                "strategy=sharded_sequence_parallel, on any number of ranks"
            )
    elif checkpoint.is_dir():
        raise FileNotFoundError(
            f"{checkpoint} is no checkpoint: give a .ckpt in the checkpoints folder of a run"
        )
    elif not checkpoint.is_file():
        raise FileNotFoundError(f"no checkpoint at {checkpoint}")


def save_world(module: LingBotModule, folder: str | Path) -> None:
    """Write the world as `load_world(folder)` takes it; it appears whole or not at all.

    A world that is there already is replaced. Where its weights are sharded, all ranks call this
    and the first one writes.

    Raises:
        ValueError: a module that is not built yet.
        FileExistsError: the folder holds something that is not a world.
    """
    folder = Path(folder).absolute()
    if module.transformer is None:
        raise ValueError("there is nothing to save: call configure_model() first")
    check_export(folder)
    states = {TRANSFORMER: whole_state(module.transformer)}
    if not isinstance(module.text_encoder, UMT5TextEncoder):  # comes with its own checkpoint
        states[TEXT_ENCODER] = whole_state(module.text_encoder)
    if is_sharded(module.transformer) and dist.get_rank() != 0:
        return
    with atomic_folder(folder) as made:
        for name, state in states.items():
            save_weights(state, made / name, torch.float16)
        module.codec.save(made / CODEC)
        for file in made.rglob("*.safetensors"):
            file.chmod(0o644)  # safetensors lets only the owner read
    log.info("the world is in %s", folder)


def check_export(folder: str | Path) -> None:
    """Raises FileExistsError for a folder that holds something that is not a world."""
    folder = Path(folder)
    free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not free and not (folder / TRANSFORMER).is_file():
        raise FileExistsError(f"{folder} holds something else than a world: give another folder")


def _read_state(checkpoint: Path) -> dict[str, Tensor]:
    """The weights in a checkpoint: a file, or the folder that ranks with sharded weights leave.

    Such a folder also has frozen weights, which the run's configuration names: they are left out.
    """
    if checkpoint.is_file():
        return dict(torch.load(checkpoint, "cpu", weights_only=True, mmap=True)[STATE])
    entries = FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    state = {
        name.removeprefix(f"{STATE}."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(f"{STATE}.")
        and not name.startswith(f"{STATE}.{FROZEN}")
        and isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings(action="ignore"):  # that there is one process, as is meant
        distributed_checkpoint.load({STATE: state}, checkpoint_id=checkpoint, no_dist=True)
    return state


def compose_world(overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of `lingbot-generate`; a Hydra that is at work already goes on after."""
    return compose_command("generate", overrides)


def _overrides(world: str | Path) -> list[str]:
    """What makes the configuration one of this world; the default one needs nothing."""
    if world == DEFAULT:
        return []
    named = isinstance(world, str) and "/" not in world
    folder = Path(shipped_world(str(world)) if named else world).absolute()
    if not (folder / TRANSFORMER).is_file():
        raise FileNotFoundError(f"no world in {folder}: it needs {TRANSFORMER} and {CODEC}/")
    return [f"weights='{folder}'"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a world of a training run's checkpoint.")
    parser.add_argument(
        "checkpoint", type=Path, help="a .ckpt, file or folder, in the folder of its run"
    )
    parser.add_argument("folder", type=Path, help="where the world goes")
    make_tolerant()
    silence()
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        with refusing():
            check_export(arguments.folder)
            module = load_checkpoint(arguments.checkpoint)
    except UserError as refusal:
        parser.exit(2, f"lingbot.world: {refusal}\n")
    save_world(module, arguments.folder)


if __name__ == "__main__":
    main()
