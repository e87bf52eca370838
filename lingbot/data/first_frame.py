"""First frames from image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


def read_image(path: str | Path, height: int, width: int) -> Tensor:
    """An image file as uint8 [height, width, 3]: scaled to cover the frame, then cut at its centre.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not an image.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no first frame at {path}: give the path of an image file")
    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert("RGB"), (width, height), Image.Resampling.LANCZOS)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image that can be read (JPEG, PNG, ...)") from error
    return torch.from_numpy(np.array(fitted))
