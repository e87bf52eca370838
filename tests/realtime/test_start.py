"""Where a session begins: one set of checks for whoever starts it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lingbot.realtime.start import next_start

SIZE = (16, 24)
FRAME = torch.arange(16 * 24 * 3, dtype=torch.int64).remainder(251).to(torch.uint8).view(16, 24, 3)


def test_what_is_not_given_is_as_it_was_at_the_last_start() -> None:
    first = next_start(None, FRAME, " dusk ", None, SIZE)
    assert (first.prompt, first.seed) == ("dusk", 0)
    again = next_start(first, None, None, np.int64(3), SIZE)
    assert torch.equal(again.image, FRAME)
    assert (again.prompt, again.seed, type(again.seed)) == ("dusk", 3, int)
    other = next_start(again, None, "night", None, SIZE)
    assert (other.prompt, other.seed) == ("night", 3)


def test_images_arrays_and_files_start_a_world_as_tensors_do(tmp_path) -> None:
    array = FRAME.numpy()
    Image.fromarray(array).save(tmp_path / "frame.png")
    for image in (
        array,
        Image.fromarray(array),
        tmp_path / "frame.png",
        str(tmp_path / "frame.png"),
    ):
        assert torch.equal(next_start(None, image, "dusk", 0, SIZE).image, FRAME)


@pytest.mark.parametrize(
    ("image", "prompt", "seed", "complaint"),
    [
        (FRAME.float(), "dusk", 0, "the first frame is a tensor"),
        (FRAME.float().numpy(), "dusk", 0, "the first frame is an array"),
        (object(), "dusk", 0, "the first frame is a object"),
        (FRAME, "", 0, "the prompt is empty"),
        (FRAME, ["dusk"], 0, "give a string"),
        (FRAME, "dusk", -1, "seed=-1"),
        (FRAME, "dusk", 2**32, "seed=4294967296"),
        (FRAME, "dusk", 0.5, "seed=0.5"),
        (FRAME, "dusk", "0", "seed='0'"),
    ],
)
def test_what_starts_no_world_is_refused(image, prompt, seed, complaint) -> None:
    last = next_start(None, FRAME, "noon", 1, SIZE)
    for before in (None, last):
        with pytest.raises(ValueError, match=complaint):
            next_start(before, image, prompt, seed, SIZE)


@pytest.mark.parametrize(("image", "prompt"), [(None, "dusk"), (FRAME, None), (None, None)])
def test_a_first_start_needs_an_image_and_a_prompt(image, prompt) -> None:
    with pytest.raises(RuntimeError, match="no world yet"):
        next_start(None, image, prompt, 0, SIZE)
