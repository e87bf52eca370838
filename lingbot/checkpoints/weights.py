"""Weights in and out: our own world folders and the two public checkpoint layouts.

A world folder holds `transformer.safetensors` (and `text_encoder.safetensors`, where the encoder
was trained along); the public ones hold `lingbot_world_fast/` (original) or `transformer/`
(Diffusers-style) with safetensors shards and an index. All use the same parameter names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lingbot.checkpoints.atomic import atomic_file
from lingbot.model.tensor_files import check_finite, copy_tensors, tensor_files

TRANSFORMER = "transformer.safetensors"
TEXT_ENCODER = "text_encoder.safetensors"
PUBLIC_FOLDERS = ("lingbot_world_fast", "transformer", ".")
REMEDY = "is it another model= preset?"


def load_weights(transformer: nn.Module, text_encoder: nn.Module, folder: str | Path) -> None:
    """Loads the transformer from any layout, and the text encoder where the folder has one.

    Raises:
        FileNotFoundError: when the folder holds no transformer.
        ValueError: when a file cannot be used, or names or shapes differ, before anything is
            changed; when values are not finite.
    """
    folder = Path(folder)
    copy_tensors(transformer, transformer_files(folder), REMEDY)
    if (folder / TEXT_ENCODER).is_file():
        copy_tensors(text_encoder, [folder / TEXT_ENCODER], "is it another text= choice?")


def transformer_files(folder: Path) -> list[Path]:
    """Safetensors files that hold the transformer of a checkpoint folder.

    Raises:
        FileNotFoundError: when there are none, or the index names a shard that is not there.
        ValueError: when an index cannot be used.
    """
    if os.path.lexists(folder / TRANSFORMER):
        return [folder / TRANSFORMER]
    for name in PUBLIC_FOLDERS:
        if files := tensor_files(folder / name):
            return files
    raise FileNotFoundError(
        f"no transformer in {folder}: expected {TRANSFORMER}, or safetensors in one of "
        f"{', '.join(PUBLIC_FOLDERS[:2])}"
    )


def save_weights(state: Mapping[str, Tensor], file: str | Path, dtype: torch.dtype) -> None:
    """Writes a module's state as safetensors in `dtype`; the file appears whole or not at all.

    Raises:
        ValueError: for values that are not finite, as they are or in `dtype`; nothing is written.
    """
    made = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    for name, tensor in made.items():
        check_finite(tensor, f"{Path(file).name} in {str(dtype).removeprefix('torch.')}: {name}")
    with atomic_file(file) as partial:
        save_file(made, partial, metadata={"format": "pt"})
