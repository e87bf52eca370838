"""Sizes of a new `AutoencoderKLWan`, and whether they make a codec: arithmetic, before any weight.

A codec's latents stand for 4 frames of 8x8 pixels each; camera, transformer and caches count on it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from diffusers import AutoencoderKLWan

from lingbot.model.checks import check_count, check_number, check_switch

SPATIAL_STRIDE, TEMPORAL_STRIDE = 8, 4
COLOURS = 3
LARGEST = {"base_dim": 4096, "decoder_base_dim": 4096, "z_dim": 1024, "num_res_blocks": 64}
MOST_LEVELS, LARGEST_MULTIPLE = 8, 64


def check_architecture(given: Mapping[str, Any]) -> None:
    """Refuses sizes that make no codec of stride 4 x 8 x 8.

    Args:
        given: arguments of `AutoencoderKLWan`; what is left out has its default.

    Raises:
        ValueError: an unknown name, or a value that does not fit the others.
    """
    known = inspect.signature(AutoencoderKLWan.__init__).parameters
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(
            f"codec.{unknown[0]}: there is no such size of an autoencoder; there are "
            f"{', '.join(sorted(set(known) - {'self'}))}"
        )
    values = {name: parameter.default for name, parameter in known.items()} | dict(given)
    for name, high in LARGEST.items():
        if values[name] is not None or name != "decoder_base_dim":
            check_count(f"codec.{name}", values[name], high=high)
    check_number("codec.dropout", values["dropout"], low=0, high=1)
    check_switch("codec.is_residual", values["is_residual"])
    _check_levels(values["dim_mult"], values["temperal_downsample"])
    _check_patches(values)


def _check_levels(multiples: Any, halvings: Any) -> None:
    """Widths of the levels, and which of the steps between them halve time too."""
    if not 1 <= len(multiples) <= MOST_LEVELS:
        raise ValueError(f"codec.dim_mult={list(multiples)}: give 1 to {MOST_LEVELS} levels")
    for multiple in multiples:
        check_count("codec.dim_mult", multiple, high=LARGEST_MULTIPLE)
    for halving in halvings:
        check_switch("codec.temperal_downsample", halving)
    if len(halvings) != len(multiples) - 1:
        raise ValueError(
            f"codec.temperal_downsample={list(halvings)}: codec.dim_mult={list(multiples)} has "
            f"{len(multiples) - 1} steps between its levels, give one value for each"
        )
    if 2 ** sum(halvings) != TEMPORAL_STRIDE:
        raise ValueError(
            f"codec.temperal_downsample={list(halvings)}: two of them must be true, since a "
            f"latent frame stands for {TEMPORAL_STRIDE} frames"
        )


def _check_patches(values: Mapping[str, Any]) -> None:
    """Pixels of a patch and of a latent pixel, and the channels that come of them."""
    given = values["patch_size"]
    patch = 1 if given is None else check_count("codec.patch_size", given)
    stride = patch * 2 ** (len(values["dim_mult"]) - 1)
    if stride != SPATIAL_STRIDE:
        raise ValueError(
            f"codec.patch_size={given} and {len(values['dim_mult'])} levels of "
            f"codec.dim_mult make a latent pixel of {stride} pixels: {SPATIAL_STRIDE} are needed, "
            "as of patch_size=2 and three levels, or null and four"
        )
    for name in ("in_channels", "out_channels"):
        if values[name] != COLOURS * patch**2:
            raise ValueError(
                f"codec.{name}={values[name]}: patches of {patch}x{patch} pixels have "
                f"{COLOURS * patch**2} channels"
            )
