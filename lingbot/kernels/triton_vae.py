"""The Triton kernels of `vae_rows`: one program takes a few rows, a row's channels together."""

# Triton's arguments are pointers and numbers of its own: annotations would say what they are not.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def norm(
    x, out, bias, gamma, rows, root, C: tl.constexpr, COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
):  # fmt: skip
    """out = SiLU(RMSNorm(x + bias) * gamma) of rows of C; root is that of C.

    Rows of `out` have COLUMNS numbers, zeros from C on. Without `bias` nothing is added.
    """
    row = tl.program_id(0).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    column = tl.arange(0, WIDTH)
    mask = column < C
    inside = (row[:, None] < rows) & mask[None, :]
    scale = tl.load(gamma + column, mask=mask, other=0.0).to(tl.float32) * root
    value = tl.load(x + row[:, None] * C + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        value += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)[None, :]
    length = tl.sqrt(tl.sum(value * value, axis=1))
    value = value / tl.maximum(length, 1e-12)[:, None] * scale[None, :]
    value = value * tl.sigmoid(value)
    inside = (row[:, None] < rows) & (column < COLUMNS)[None, :]
    places = row[:, None] * COLUMNS + column[None, :]
    tl.store(out + places, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def add(
    x, out, bias, y, rows, root, C: tl.constexpr, COLUMNS: tl.constexpr,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr,
):  # fmt: skip
    """out = x + bias + y, rows [rows, C]; called like `norm`."""
    row = tl.program_id(0).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    column = tl.arange(0, WIDTH)
    mask = column < C
    inside = (row[:, None] < rows) & mask[None, :]
    places = row[:, None] * C + column[None, :]
    value = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)[None, :]
    value += tl.load(y + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + places, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def spread(
    x, out, rows, height, width, times, C: tl.constexpr, WIDTH: tl.constexpr, HEIGHT: tl.constexpr
):  # fmt: skip
    """Rows [frames, height, width, times, C] to [frames, times, 2 height, 2 width, C]."""
    row = tl.program_id(0).to(tl.int64) * HEIGHT + tl.arange(0, HEIGHT)
    column = tl.arange(0, WIDTH)
    inside = (row[:, None] < rows) & (column < C)[None, :]
    value = tl.load(x + row[:, None] * C + column[None, :], mask=inside)
    pixel, time = row // times, row % times
    line, across = pixel // width, pixel % width
    frame = (line // height) * times + time
    corner = ((frame * height + line % height) * 2 * width + across) * 2
    for place in tl.static_range(4):
        to = corner + (place // 2) * 2 * width + place % 2
        tl.store(out + to[:, None] * C + column[None, :], value, mask=inside)
