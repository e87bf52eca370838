"""A video autoencoder's folder, read with suspicion: diffusers' loader takes nearly anything.

It overlooks config keys it does not know and makes missing weights up at random, which drives a
world to wrong pictures without a word. Here the class, the stride, the latents' statistics and
every tensor are what the package works with, or the file and the difference are named.
"""

from __future__ import annotations

import inspect
import json
import math
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import nn

from lingbot.model.tensor_files import check_file, check_tensors, copy_tensors, tensor_files

CONFIG = "config.json"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CLASS = "AutoencoderKLWan"
STRIDE = (
    4,
    8,
    8,
)  # video frames, rows and columns of a latent one, which the transformer counts on
CHANNELS = 16
LARGEST_CONFIG = 1_000_000  # bytes
REMEDY = "the autoencoder that config.json beside it describes has others"


def check_codec(folder: str | Path) -> dict[str, Any]:
    """The config of a folder whose autoencoder can be loaded, with what it leaves to diffusers.

    Only headers of weights are read.

    Raises:
        FileNotFoundError: there is no such folder, config or file of weights.
        ValueError: naming the file and what is wrong with it.
    """
    folder = Path(folder)
    with torch.device("meta"):
        vae = _build(read_config(folder), folder / CONFIG)
    check_tensors(vae.state_dict(), weights_files(folder), REMEDY)
    return dict(vae.config)


def load_vae(folder: str | Path, dtype: torch.dtype) -> AutoencoderKLWan:
    """The autoencoder of a folder, its weights in `dtype`.

    Raises:
        FileNotFoundError, ValueError: as `check_codec`, and for weights that are not finite.
    """
    folder = Path(folder)
    vae = _build(read_config(folder), folder / CONFIG)
    nn.Module.to(vae, dtype)  # diffusers' own warns of what it keeps in float32: nothing, here
    copy_tensors(vae, weights_files(folder), REMEDY)
    return vae.eval()


def weights_files(folder: Path) -> list[Path]:
    """Its safetensors: shards of an index, or the one file.

    Raises:
        FileNotFoundError, ValueError: there are none, or they cannot be used.
    """
    files = tensor_files(folder)
    one = folder / WEIGHTS_FILE
    if one in files or not files:
        files = [one]
        check_file(one)
    return files


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json says, without what begins with an underscore.

    Raises:
        FileNotFoundError: there is none.
        ValueError: for another class, keys that it does not take, another stride, channels or
            statistics that nothing can be normalised with.
    """
    file = folder / CONFIG
    if not file.exists():
        raise FileNotFoundError(
            f"no codec in {folder}: it needs {CONFIG} and {WEIGHTS_FILE}, as in the `vae` folder "
            "of a Diffusers-style checkpoint."
        )
    check_file(file)
    if file.stat().st_size > LARGEST_CONFIG:
        raise ValueError(f"{file} is no config of an autoencoder: it has more than 1 MB")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON ({error}): copy or download it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__}, where a config belongs")
    if found.get("_class_name", CLASS) != CLASS:
        raise ValueError(f"{file} is of a {found['_class_name']}; worlds are decoded by an {CLASS}")
    config = {key: value for key, value in found.items() if not key.startswith("_")}
    unknown = config.keys() - inspect.signature(AutoencoderKLWan.__init__).parameters.keys()
    if unknown:
        raise ValueError(
            f"{file} has keys that {CLASS} does not take: {', '.join(sorted(unknown))}; is it of "
            "another model, or of a newer diffusers?"
        )
    return config


def check_config(vae: AutoencoderKLWan, file: object) -> None:
    """Refuses an autoencoder whose latents are not what the transformer is made for.

    Raises:
        ValueError: for another stride or number of channels, or statistics that are not one finite
            mean and one positive deviation a channel.
    """
    config = vae.config
    halvings = 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1)
    built = (2 ** sum(map(bool, config.temperal_downsample)), halvings, halvings)
    said = (config.scale_factor_temporal, config.scale_factor_spatial, config.scale_factor_spatial)
    for stride in (built, said):
        if stride != STRIDE:
            raise ValueError(
                f"{file} has a stride of {'x'.join(map(str, stride))} (frames, rows, columns); "
                f"worlds have {'x'.join(map(str, STRIDE))}"
            )
    if config.z_dim != CHANNELS:
        raise ValueError(f"{file} has z_dim={config.z_dim}; worlds have {CHANNELS} channels")
    for name, least in (("latents_mean", -math.inf), ("latents_std", 0.0)):
        values = getattr(config, name)
        fitting = isinstance(values, (list, tuple)) and len(values) == CHANNELS
        if not fitting or not all(_is_number(value) and value > least for value in values):
            raise ValueError(
                f"{file} has {name}={values}: it takes {CHANNELS} finite numbers"
                + (" above 0" if least == 0 else "")
            )


def _build(config: dict[str, Any], file: Path) -> AutoencoderKLWan:
    try:
        vae = AutoencoderKLWan.from_config(config)
    except Exception as error:  # whatever diffusers and torch make of nonsense
        raise ValueError(f"{file} describes no autoencoder that can be built: {error}") from error
    check_config(vae, file)
    return vae


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
