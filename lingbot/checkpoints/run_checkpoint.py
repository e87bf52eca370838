"""Checkpoints of training runs: what they hold, read without running anything they contain.

One rank writes a file; ranks with sharded weights leave a folder, whose index and whose small
values are pickles that torch would run. Both are read here with what a checkpoint needs and nothing
else.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import torch
import torch.distributed.checkpoint as distributed_checkpoint
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, filesystem, metadata
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    TensorStorageMetadata,
)

from lingbot.model.tensor_files import check_file

RUN_CONFIG = Path(".hydra") / "config.yaml"
RUN_OVERRIDES = Path(".hydra") / "overrides.yaml"
METADATA, STATE = ".metadata", "state_dict"  # of a checkpoint in shards; of any checkpoint
REST = "meta.pt"  # beside the shards: what is no tensor
TRUST = "trust_run_code=true"


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint lies in.

    Raises:
        FileNotFoundError: it lies in none.
    """
    for folder in checkpoint.absolute().parents:
        if (folder / RUN_CONFIG).is_file():
            return folder
    raise FileNotFoundError(
        f"{checkpoint} is not in the folder of a run: {RUN_CONFIG} says what it holds"
    )


def read_run_config(run: Path) -> DictConfig:
    """A run's configuration as it was saved, unresolved; see `trust.check_targets`.

    Raises:
        ValueError: it cannot be read.
    """
    cfg = _read_yaml(run / RUN_CONFIG)
    if not isinstance(cfg, DictConfig) or "module" not in cfg:
        raise ValueError(f"{run / RUN_CONFIG} is no configuration of a run: it has no module")
    return cfg


def read_overrides(run: Path) -> list[str] | None:
    """What was typed to begin a run, or None where that was not kept.

    Raises:
        ValueError: it cannot be read.
    """
    file = run / RUN_OVERRIDES
    return [str(option) for option in _read_yaml(file)] if file.exists() else None


def _read_yaml(file: Path) -> Any:
    check_file(file)
    try:
        return OmegaConf.load(file)
    except Exception as error:  # of yaml, of omegaconf, of decoding
        said = " ".join(str(error).split())
        raise ValueError(f"{file} cannot be read: {said}") from error


def check_checkpoint(checkpoint: str | Path, folders: bool = True, trusted: bool = False) -> None:
    """Refuses what is no checkpoint, one of the wrong kind, and one that would run code.

    Args:
        folders: whether it may be the folder that ranks with sharded weights leave.
        trusted: whether the user vouches for whoever made it.

    Raises:
        FileNotFoundError, ValueError: naming it.
    """
    checkpoint = Path(checkpoint)
    if (checkpoint / METADATA).is_file():
        if not folders:
            raise ValueError(
                f"{checkpoint} is a checkpoint of sharded weights: go on from it with "
                "strategy=sharded_sequence_parallel, on any number of ranks"
            )
        if not trusted:
            check_shards(checkpoint)
    elif checkpoint.is_dir():
        raise FileNotFoundError(
            f"{checkpoint} is no checkpoint: give a .ckpt in the checkpoints folder of a run"
        )
    elif not checkpoint.exists():
        raise FileNotFoundError(f"no checkpoint at {checkpoint}")
    else:
        check_file(checkpoint)


def read_file(file: Path, trusted: bool = False) -> dict[str, Any]:
    """A checkpoint file, tensors mapped rather than read; nothing in it is run unless trusted.

    Raises:
        ValueError: it cannot be read, or is no checkpoint.
    """
    check_file(file)
    try:
        found = torch.load(file, "cpu", weights_only=not trusted, mmap=True)
    except Exception as error:  # zip, pickle and torch have one each
        said = str(error).partition("\n")[0]
        raise ValueError(
            f"{file} cannot be read ({said}): it is cut off, or no checkpoint of this package; "
            "a run's older ones lie beside it"
        ) from error
    if not isinstance(found, dict) or not isinstance(found.get(STATE), dict):
        raise ValueError(f"{file} is no checkpoint of a training: it holds no {STATE}")
    return found


def read_step(checkpoint: Path, trusted: bool = False) -> int:
    """How many training steps it is from the start."""
    folder = checkpoint.is_dir()
    held = read_rest(checkpoint, trusted) if folder else read_file(checkpoint, trusted)
    return int(held.get("global_step", 0))


def read_rest(folder: Path, trusted: bool = False) -> dict[str, Any]:
    """What a folder of shards says besides its tensors."""
    file = folder / REST
    if not file.exists():
        return {}
    check_file(file)
    try:
        return dict(torch.load(file, "cpu", weights_only=not trusted))
    except Exception as error:
        raise ValueError(f"{file} cannot be read: {str(error).partition(chr(10))[0]}") from error


def read_state(checkpoint: Path, leave_out: str = "", trusted: bool = False) -> dict[str, Tensor]:
    """The weights in a checkpoint: a file, or the folder that ranks with sharded weights leave.

    Args:
        leave_out: how names begin that are not wanted; such a folder also has frozen weights.
        trusted: whether the user vouches for whoever made it.
    """
    if checkpoint.is_file():
        return dict(read_file(checkpoint, trusted)[STATE])
    index = FileSystemReader(checkpoint).read_metadata() if trusted else read_shards(checkpoint)
    entries = index.state_dict_metadata
    state = {
        name.removeprefix(f"{STATE}."): torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in entries.items()
        if name.startswith(f"{STATE}.")
        and not (leave_out and name.startswith(f"{STATE}.{leave_out}"))
        and isinstance(entry, TensorStorageMetadata)
    }
    with warnings.catch_warnings(action="ignore"):  # that there is one process, as is meant
        distributed_checkpoint.load({STATE: state}, checkpoint_id=checkpoint, no_dist=True)
    return state


def read_shapes(checkpoint: Path, trusted: bool = False) -> dict[str, Tensor]:
    """The names and shapes of the weights in a checkpoint; of shards nothing else is read."""
    if checkpoint.is_file():
        return read_state(checkpoint, trusted=trusted)
    index = FileSystemReader(checkpoint).read_metadata() if trusted else read_shards(checkpoint)
    return {
        name.removeprefix(f"{STATE}."): torch.empty(entry.size, device="meta")
        for name, entry in index.state_dict_metadata.items()
        if name.startswith(f"{STATE}.") and isinstance(entry, TensorStorageMetadata)
    }


def check_state(
    checkpoint: Path, own: Mapping[str, Tensor], state: Mapping[str, Tensor], by: object
) -> None:
    """Refuses a checkpoint of other tensors than a module has.

    Args:
        own: the module's state that checkpoints hold; it may be on the meta device.
        state: the checkpoint's.
        by: what describes the module, for the message.

    Raises:
        ValueError: naming the checkpoint and what differs.
    """
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    others = [
        f"{name} is {list(state[name].shape)} there and {list(own[name].shape)} here"
        for name in state
        if name in own and state[name].shape != own[name].shape
    ]
    if missing or unknown or others:
        raise ValueError(
            f"{checkpoint} does not hold what {by} describes: {len(missing)} tensors missing "
            f"{missing[:3]}, {len(unknown)} unknown {unknown[:3]}, {len(others)} of another shape "
            f"{others[:3]}"
        )


INDEX_CLASSES: tuple[type, ...] = (
    *(getattr(metadata, name) for name in (
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    )),
    *(getattr(filesystem, name) for name in ("_StorageInfo", "_StoragePrefix")),
)  # fmt: skip


class _PlainMetadata(pickle.Unpickler):
    """Reads the index of a checkpoint in shards, of which torch would run whatever it names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")


ALLOWED: dict[tuple[str, str], Any] = {
    **{(kind.__module__, kind.__qualname__): kind for kind in INDEX_CLASSES},
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    ("collections", "OrderedDict"): OrderedDict,
    ("pathlib", "PosixPath"): PosixPath,
    ("pathlib", "PurePosixPath"): PurePosixPath,
}


def read_shards(folder: Path) -> Metadata:
    """The index of a checkpoint in shards.

    Raises:
        ValueError: it cannot be read, or names what an index has no use for.
    """
    file = folder / METADATA
    check_file(file)
    try:
        with open(file, "rb") as opened:
            found = _PlainMetadata(opened).load()
    except Exception as error:
        raise ValueError(
            f"{file} is no index of a checkpoint that can be read safely ({error}); if you trust "
            f"whoever made the run, say so by {TRUST}"
        ) from error
    if not isinstance(found, Metadata):
        raise ValueError(f"{file} is no index of a checkpoint")
    return found


def check_shards(folder: Path) -> None:
    """Refuses a checkpoint in shards that would run code where a training goes on from it.

    Raises:
        ValueError: naming the file.
    """
    index = read_shards(folder)
    for place, stored in (index.storage_data or {}).items():
        if not isinstance(index.state_dict_metadata.get(place.fqn), BytesStorageMetadata):
            continue
        file = folder / stored.relative_path
        if not file.resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{folder / METADATA} names {stored.relative_path!r}, outside its folder"
            )
        check_file(file)
        with open(file, "rb") as opened:
            opened.seek(stored.offset)
            value = opened.read(stored.length)
        try:
            torch.load(io.BytesIO(value), weights_only=True)
        except Exception as error:
            said = str(error).partition("\n")[0]
            raise ValueError(
                f"{file}: {place.fqn} cannot be read safely ({said}); if you trust whoever made "
                f"the run, say so by {TRUST}"
            ) from error
    read_rest(folder)
