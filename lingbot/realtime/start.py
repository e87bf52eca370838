"""Where a world begins: its first frame, its prompt, and the seed of its noise."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lingbot.data.first_frame import FrameSource, first_frame_of
from lingbot.model.checks import check_prompt, check_seed


class Start(NamedTuple):
    """The beginning of a world; image uint8 [H, W, 3]."""

    image: Tensor
    prompt: str
    seed: int


def next_start(
    last: Start | None,
    image: FrameSource | None,
    prompt: str | None,
    seed: int | None,
    size: tuple[int, int],
) -> Start:
    """The start that is asked for; what is None is as it was at the last one, the seed 0 at first.

    Args:
        last: the start before, if there was one.
        image: see `lingbot.data.first_frame.first_frame_of`.
        prompt, seed: see `Start`.
        size: height and width of the session's pictures.

    Raises:
        FileNotFoundError: no such image file.
        ValueError: for what is no first frame, no prompt or no seed.
        RuntimeError: without an image or a prompt where there has been none.
    """
    if last is None and (image is None or prompt is None):
        raise RuntimeError(
            "the session has no world yet: give its first frame and prompt, as in "
            "reset(image, 'dusk, sand', seed=0)"
        )
    # what comes from the last start passes its checks again
    return Start(
        first_frame_of(last.image if last and image is None else image, *size),  # type: ignore[arg-type]
        check_prompt(last.prompt if last and prompt is None else prompt),
        check_seed((last.seed if last else 0) if seed is None else seed),
    )
