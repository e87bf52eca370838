"""What a module is going to be made of, known before a weight exists.

Codec and text encoder come out of factories, which are called when everything else is checked.
Those of this package that make new ones are called here on the meta device, where nothing is held
and nothing takes time; what comes from files is only weighed. Other people's factories are left
alone, and count as nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lingbot.codec.text import ByteTextEncoder, UMT5TextEncoder
from lingbot.codec.video import DTYPES, VideoCodec, build_codec, load_codec
from lingbot.model.sizes import count_parameters, transformer_parameters
from lingbot.model.transformer import TransformerConfig
from lingbot.module import LingBotModule


class Weights(NamedTuple):
    """Bytes of a module's weights.

    Args:
        transformer, text_encoder, codec: as they are built.
        trained: numbers that a training changes, of transformer and text encoder.
    """

    transformer: int
    text_encoder: int
    codec: int
    trained: int


def weigh(module: LingBotModule, item: int) -> Weights:
    """What the parts of a module will take.

    Args:
        item: bytes of a number of the transformer, and of a text encoder trained with it.
    """
    transformer = transformer_parameters(module.config)
    small = _small_text_parameters(module._make_text_encoder)
    text = small * item if small else _stored(module._make_text_encoder, "text_encoder")
    return Weights(transformer * item, text, weigh_codec(module._make_codec), transformer + small)


def weigh_codec(make: Callable[..., Any]) -> int:
    """Bytes of a codec's weights in the dtype that it is going to have."""
    outline = outline_codec(make)
    if outline is None:
        return _stored(make, ".")
    return count_parameters(outline) * outline.dtype.itemsize


def check_parts(module: LingBotModule) -> None:
    """Refuses a codec or text encoder that the transformer cannot work with.

    Raises:
        ValueError: sizes that make none, or that are not those of the transformer.
    """
    check_codec(module._make_codec, module.config)
    options = _options(module._make_text_encoder)
    width, length = options.get("text_dim"), options.get("text_len")
    if width is not None and width != module.config.text_dim:
        raise ValueError(
            f"text.text_dim={width} and model.text_dim={module.config.text_dim} must be alike"
        )
    if length is not None and length > module.config.text_len:
        raise ValueError(
            f"text.text_len={length} is more than model.text_len={module.config.text_len}"
        )
    _small_text_parameters(module._make_text_encoder)


def check_codec(make: Callable[..., Any], config: TransformerConfig | None = None) -> None:
    """Refuses a new codec of sizes that make none, or with other latents than a transformer's.

    Raises:
        ValueError: naming them.
    """
    outline = outline_codec(make)
    if outline is None or config is None:
        return
    if outline.latent_channels != config.out_channels:
        raise ValueError(
            f"codec.z_dim={outline.latent_channels} and model.out_channels={config.out_channels} "
            "must be alike: the channels of a latent"
        )


def outline_codec(make: Callable[..., Any]) -> VideoCodec | None:
    """A new codec without its weights, on the meta device; None where files say what it is.

    Raises:
        ValueError: for sizes that make no codec.
    """
    if _maker(make) is not build_codec:
        _check_dtype(make, "codec")
        return None
    try:
        with torch.device("meta"):
            return make()
    except (AssertionError, IndexError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"codec: an autoencoder takes no such sizes ({error})") from error


def _small_text_parameters(make: Callable[..., Any]) -> int:
    """Parameters of the text encoder that is trained along; 0 of any other."""
    if _maker(make) is not ByteTextEncoder:
        _check_dtype(make, "text")
        return 0
    with torch.device("meta"):
        return count_parameters(make())


def _check_dtype(make: Callable[..., Any], group: str) -> None:
    dtype = _options(make).get("dtype")
    if _maker(make) in (load_codec, UMT5TextEncoder) and dtype not in DTYPES:
        raise ValueError(f"{group}.dtype={dtype!r}: choose one of {', '.join(DTYPES)}")


def _stored(make: Callable[..., Any], place: str) -> int:
    """Of weights in files, at the least: float32 that becomes bfloat16 leaves half of them."""
    folder = _options(make).get("folder")
    if folder is None:
        return 0
    return sum(file.stat().st_size for file in (Path(folder) / place).glob("*.safetensors")) // 2


def _maker(make: Callable[..., Any]) -> Callable[..., Any]:
    return make.func if isinstance(make, partial) else make


def _options(make: Callable[..., Any]) -> dict[str, Any]:
    return dict(make.keywords) if isinstance(make, partial) else {}
