"""Safetensors files of weights: opened, listed and copied so that an error names the file.

What lies in a folder of weights came over a network and may be a git-lfs pointer, cut off, a pipe,
another model, or numbers that are none. All of it is a `ValueError` with the file's path.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

LFS_POINTER = b"version https://git-lfs"
INDEX = "*.safetensors.index.json"
LARGEST_INDEX = 100_000_000  # bytes; that of 18 B parameters has 200,000


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies, and its shape there."""

    file: Path
    shape: tuple[int, ...]


def check_file(file: Path) -> None:
    """Refuses what is no ordinary file, and what only points to one; it is not read further.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a folder, pipe or device; a git-lfs pointer; an empty file.
    """
    try:
        mode = file.stat().st_mode
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: there is no such file") from error
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
        raise ValueError(f"{file} is {kind}, where a file of weights belongs")
    with open(file, "rb") as opened:
        start = opened.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise ValueError(
            f"{file} is a git-lfs pointer, not the weights themselves: fetch them by `git lfs pull`"
        )
    if not start:
        raise ValueError(f"{file} is empty: copy or download it again")


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """A safetensors file, opened.

    Raises:
        FileNotFoundError, ValueError: as `check_file`, and for what is no whole safetensors file.
    """
    check_file(file)
    try:
        with safe_open(file, "pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(
            f"{file} is no whole safetensors file ({error}): copy or download it again"
        ) from error


def tensor_files(folder: Path) -> list[Path]:
    """Safetensors files in a folder: the shards that its index names, or all there are.

    Raises:
        FileNotFoundError: the index names a shard that is not there.
        ValueError: the index cannot be read, or names files outside its folder.
    """
    indices = sorted(folder.glob(INDEX))
    if not indices:
        return sorted(folder.glob("*.safetensors"))
    index = indices[0]
    shards = sorted(set(read_index(index).values()))
    missing = [shard for shard in shards if not os.path.lexists(folder / shard)]
    if missing:
        raise FileNotFoundError(f"{index} names shards that are not there: {missing}")
    return [folder / shard for shard in shards]


def read_index(index: Path) -> dict[str, str]:
    """Names of tensors to names of shards, as an index has them.

    Raises:
        ValueError: for what is no index, and for shards that would lie outside its folder.
    """
    check_file(index)
    if index.stat().st_size > LARGEST_INDEX:
        raise ValueError(f"{index} is no index of weights: it has more than 100 MB")
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{index} is no JSON ({error}): copy or download it again") from error
    weight_map = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map, which says which file holds which tensor")
    for shard in weight_map.values():
        inside = isinstance(shard, str) and shard not in ("", ".", "..")
        if not inside or Path(shard).name != shard:
            raise ValueError(
                f"{index} names {shard!r}: shards lie beside their index, nothing else is read"
            )
    return weight_map


def stored_tensors(files: Sequence[Path]) -> dict[str, Stored]:
    """All tensors of the files by name; only headers are read.

    Raises:
        FileNotFoundError, ValueError: for a file that cannot be used, or one name in two files.
    """
    found: dict[str, Stored] = {}
    for file in files:
        with open_tensors(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no mapping)
                if name in found:
                    raise ValueError(f"{name} is in {found[name].file} and in {file}: remove one")
                found[name] = Stored(file, tuple(tensors.get_slice(name).get_shape()))
    return found


def check_tensors(state: Mapping[str, Tensor], files: Sequence[Path], remedy: str) -> None:
    """Refuses files whose tensors have other names or shapes than a module's state.

    Args:
        state: of the module, which may be on the meta device.
        files: safetensors.
        remedy: how the message ends.

    Raises:
        FileNotFoundError, ValueError: naming files and tensors; nothing has been copied.
    """
    stored = stored_tensors(files)
    missing, unknown = state.keys() - stored.keys(), stored.keys() - state.keys()
    wrong = [
        f"{name} is {list(stored[name].shape)} in {stored[name].file.name}, "
        f"{list(state[name].shape)} in the model"
        for name in sorted(stored.keys() & state.keys())
        if stored[name].shape != tuple(state[name].shape)
    ]
    if missing or unknown or wrong:
        place = files[0] if len(files) == 1 else files[0].parent
        said = [
            f"{len(names)} tensors {words} ({', '.join(sorted(names)[:3])})"
            for names, words in ((missing, "missing"), (unknown, "unknown"))
            if names
        ]
        said += [f"{len(wrong)} of another shape ({'; '.join(wrong[:2])})"] if wrong else []
        raise ValueError(f"{place} does not hold this model: {', '.join(said)}; {remedy}")


@torch.no_grad()
def copy_tensors(module: nn.Module, files: Sequence[Path], remedy: str) -> None:
    """Copies the tensors of files into the module's own, in the module's precision.

    Raises:
        FileNotFoundError, ValueError: as `check_tensors`, before anything is copied; and for
            values that are not finite, which are found on the way.
    """
    state = module.state_dict()
    check_tensors(state, files, remedy)
    for file in files:
        with open_tensors(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no mapping)
                state[name].copy_(tensors.get_tensor(name))
                check_finite(state[name], f"{file}: {name}")


def check_finite(tensor: Tensor, name: str) -> None:
    """Raises ValueError for NaN or infinity anywhere in a tensor of weights.

    Extremes are one read of the memory (a third of a second a billion parameters on one core, a
    fifth of what copying them takes) and hand NaN on, where `isfinite` takes 9 s to write a mask.
    """
    if tensor.numel() and not all(bool(end.isfinite()) for end in torch.aminmax(tensor)):
        raise ValueError(
            f"{name} holds NaN or infinite values: the training that made it diverged, or the file "
            "is damaged"
        )
