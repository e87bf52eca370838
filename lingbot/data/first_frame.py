"""The frame a world starts from, from whatever people have it in."""

from __future__ import annotations

import logging
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from lingbot.data.image_file import Picture, load_picture, plain_picture

log = logging.getLogger(__name__)

FrameSource: TypeAlias = "Tensor | NDArray[Any] | Image.Image | str | PathLike[str]"


def first_frame_of(image: FrameSource, height: int, width: int) -> Tensor:
    """A first frame, uint8 [height, width, 3].

    Args:
        image: a tensor that is one already; or what is scaled to cover the frame and cut at its
            centre: a NumPy array uint8 [H, W, 3], a PIL image, the path of an image file.
        height: of the frame in pixels.
        width: likewise.

    Raises:
        FileNotFoundError: no such file.
        ValueError: for a tensor or array of another type or shape, and for files and images that
            are no plain picture, see `lingbot.data.image_file`.
    """
    if isinstance(image, Tensor):
        return _check_frame(image, height, width)
    if isinstance(image, (str, PathLike)):
        return read_image(Path(image) if image else "", height, width)
    if isinstance(image, np.ndarray):
        return _fit(Picture(Image.fromarray(_check_array(image))), height, width, "the first frame")
    if isinstance(image, Image.Image):
        name = str(getattr(image, "filename", "") or "the first frame")
        return _fit(plain_picture(image, name), height, width, name)
    raise ValueError(
        f"the first frame is a {type(image).__name__}: give the path of an image file, a PIL image "
        "or a NumPy array uint8 [H, W, 3]"
    )


def read_image(path: str | Path, height: int, width: int) -> Tensor:
    """An image file as uint8 [height, width, 3]: scaled to cover the frame, then cut at its centre.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no plain picture, see `lingbot.data.image_file`.
    """
    return _fit(load_picture(path), height, width, str(path))


def _fit(picture: Picture, height: int, width: int, name: str) -> Tensor:
    image = picture.image
    for remark in picture.remarks:
        log.info("%s %s.", name, remark)
    ratio = image.width * height / (image.height * width)
    seen = min(ratio, 1 / ratio)
    if seen < 0.5:
        log.info(
            "%s has %dx%d pixels, of which %.2g%% are seen in a frame of %dx%d.",
            *(name, image.width, image.height, 100 * seen, width, height),
        )
    fitted = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted))


def _check_frame(frame: Tensor, height: int, width: int) -> Tensor:
    if frame.dtype != torch.uint8 or tuple(frame.shape) != (height, width, 3):
        raise ValueError(
            f"the first frame is a tensor {tuple(frame.shape)} {frame.dtype}: give uint8 "
            f"{(height, width, 3)}, or a NumPy array, PIL image or file of any size"
        )
    return frame


def _check_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(
            f"the first frame is an array {array.shape} {array.dtype}: give uint8 [H, W, 3]; of "
            "floats from 0 to 1, (255 * array).round().astype('uint8')"
        )
    return np.ascontiguousarray(array)
