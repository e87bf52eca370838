"""Where a world begins: its first frame, its prompt, and the seed of its noise."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Start(NamedTuple):
    """The beginning of a world; image uint8 [H, W, 3]."""

    image: Tensor
    prompt: str
    seed: int


def next_start(
    last: Start | None,
    image: Tensor | None,
    prompt: str | None,
    seed: int | None,
    size: tuple[int, int],
) -> Start:
    """The start that is asked for; what is None is as it was at the last one, the seed 0 at first.

    Args:
        last: the start before, if there was one.
        image, prompt, seed: see `Start`.
        size: height and width of the session's pictures.

    Raises:
        ValueError: for an image of another size or type, an empty prompt, a negative seed.
        RuntimeError: without an image or a prompt where there has been none.
    """
    if last is None:
        if image is None or prompt is None:
            raise RuntimeError(
                "the session has no world yet: give its first frame and prompt, as in "
                "reset(image, 'dusk, sand', seed=0)"
            )
        last = Start(image, prompt, 0)
    start = Start(
        last.image if image is None else image,
        last.prompt if prompt is None else prompt,
        last.seed if seed is None else seed,
    )
    if start.image.dtype != torch.uint8 or tuple(start.image.shape) != (*size, 3):
        raise ValueError(
            f"the first frame is {tuple(start.image.shape)} {start.image.dtype}; this session "
            f"takes uint8 {(*size, 3)}: read it with lingbot.data.first_frame.read_image"
        )
    if not start.prompt.strip():
        raise ValueError("the prompt is empty: say what the world is, as in 'dusk, sand'")
    if start.seed < 0:
        raise ValueError(f"seed={start.seed}: give a whole number from 0 on")
    return start
