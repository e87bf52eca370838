"""Weights in and out: our own world folders and the two public checkpoint layouts.

A world folder holds `transformer.safetensors` (and `text_encoder.safetensors`, where the encoder
was trained along); the public ones hold `lingbot_world_fast/` (original) or `transformer/`
(Diffusers-style) with safetensors shards and an index. All use the same parameter names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lingbot.checkpoints.atomic import atomic_file

TRANSFORMER = "transformer.safetensors"
TEXT_ENCODER = "text_encoder.safetensors"
PUBLIC_FOLDERS = ("lingbot_world_fast", "transformer", ".")


def load_weights(transformer: nn.Module, text_encoder: nn.Module, folder: str | Path) -> None:
    """Loads the transformer from any layout, and the text encoder where the folder has one.

    Raises:
        FileNotFoundError: when the folder holds no transformer.
        ValueError: when names or shapes differ; nothing has been changed then.
    """
    folder = Path(folder)
    load_into(transformer, transformer_files(folder))
    if (folder / TEXT_ENCODER).is_file():
        load_into(text_encoder, [folder / TEXT_ENCODER])


def transformer_files(folder: Path) -> list[Path]:
    """Safetensors files that hold the transformer of a checkpoint folder.

    Raises:
        FileNotFoundError: when there are none, or the index names a shard that is not there.
    """
    if (folder / TRANSFORMER).is_file():
        return [folder / TRANSFORMER]
    for name in PUBLIC_FOLDERS:
        if indices := sorted((folder / name).glob("*.safetensors.index.json")):
            shards = set(json.loads(indices[0].read_text())["weight_map"].values())
            files = [indices[0].parent / shard for shard in sorted(shards)]
            if missing := [file.name for file in files if not file.is_file()]:
                raise FileNotFoundError(f"{indices[0]} names shards that are not there: {missing}")
            return files
        if files := sorted((folder / name).glob("*.safetensors")):
            return files
    raise FileNotFoundError(
        f"no transformer in {folder}: expected {TRANSFORMER}, or safetensors in one of "
        f"{', '.join(PUBLIC_FOLDERS[:2])}"
    )


def load_into(module: nn.Module, files: list[Path]) -> None:
    """Copies the tensors of `files` into the module's parameters, in the module's own precision.

    Raises:
        ValueError: when names or shapes differ, before anything is copied.
    """
    parameters = module.state_dict()
    shapes = {name: tuple(shape) for name, shape in _shapes(files)}
    wrong = [
        f"{name}: file {shapes[name]}, model {tuple(parameters[name].shape)}"
        for name in sorted(shapes.keys() & parameters.keys())
        if shapes[name] != tuple(parameters[name].shape)
    ]
    missing, unknown = parameters.keys() - shapes.keys(), shapes.keys() - parameters.keys()
    if missing or unknown or wrong:
        raise ValueError(
            f"{files[0].parent} does not hold this model: {len(missing)} tensors missing "
            f"{sorted(missing)[:3]}, {len(unknown)} unknown {sorted(unknown)[:3]}, "
            f"{len(wrong)} of another shape {wrong[:3]}; is it another model= preset?"
        )
    with torch.no_grad():
        for file in files:
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (no mapping)
                    parameters[name].copy_(tensors.get_tensor(name))


def save_weights(state: Mapping[str, Tensor], file: str | Path, dtype: torch.dtype) -> None:
    """Writes a module's state as safetensors in `dtype`; the file appears whole or not at all."""
    made = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in state.items()}
    with atomic_file(file) as partial:
        save_file(made, partial, metadata={"format": "pt"})


def _shapes(files: list[Path]) -> Iterator[tuple[str, list[int]]]:
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no mapping)
                yield name, tensors.get_slice(name).get_shape()
