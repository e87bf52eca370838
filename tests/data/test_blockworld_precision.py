"""BlockWorld's pixels do not depend on the precision around them."""

from __future__ import annotations

import pytest
import torch

from lingbot.data.blockworld_clips import BlockWorldClips


def pixels() -> torch.Tensor:
    return BlockWorldClips("test", 1, num_frames=5, height=16, width=24)[0]["frames"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_pixels_are_the_same_under_another_default_dtype(dtype: torch.dtype) -> None:
    expected = pixels()
    torch.set_default_dtype(dtype)
    try:
        made = pixels()
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(made, expected)


def test_pixels_are_the_same_under_autocast() -> None:
    expected = pixels()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pixels(), expected)
