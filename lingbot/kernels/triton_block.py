"""Triton kernels over rows of channels: what lies between the matmuls of a block.

One program is one token: its channels are read once, all arithmetic on them is float32, and the
next matmul's input is written as it wants it, in the weights' dtype or in fp8 with the row's scale.
`lingbot.kernels.triton_ops` launches them; `lingbot.model.ops` says what they compute.
D channels, W the next power of two, L tokens that share a modulation.
"""

# Triton's arguments are pointers and numbers of its own: annotations would say what they are not.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def read(pointer, column, mask):
    return tl.load(pointer + column, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def vector_of(table, modulation, which, vector, column, mask, D):
    """Vector `which` of a block's six: its own parameter plus the time's."""
    return read(table + which * D, column, mask) + read(
        modulation + (vector * 6 + which) * D, column, mask
    )


@triton.jit
def layer_norm(value, mask, D, eps):
    mean = tl.sum(value, axis=0) / D
    value = tl.where(mask, value - mean, 0.0)
    return value * tl.rsqrt(tl.sum(value * value, axis=0) / D + eps)


@triton.jit
def write(value, out, scales, row, column, mask, D, FP8_MAX: tl.constexpr):
    """The row in the dtype of `out`; with FP8_MAX not 0 in fp8, its scale beside it."""
    if FP8_MAX > 0:
        scale = tl.maximum(tl.max(tl.abs(value), axis=0), 1e-12) / FP8_MAX
        tl.store(scales + row, scale)
        value = value / scale
    tl.store(out + row * D + column, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def norm_modulate(
    x, modulation, table, out, scales, L, D, eps, FP8_MAX: tl.constexpr, W: tl.constexpr
):  # fmt: skip
    """out = LayerNorm(x) * (1 + scale) + shift, with the first two of the six vectors."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, W)
    mask = column < D
    value = layer_norm(read(x + row * D, column, mask), mask, D, eps)
    shift = vector_of(table, modulation, 0, row // L, column, mask, D)
    scale = vector_of(table, modulation, 1, row // L, column, mask, D)
    write(value * (1 + scale) + shift, out, scales, row, column, mask, D, FP8_MAX)


@triton.jit
def gate_camera_norm(
    x, y, modulation, table, cam_scale, cam_shift, weight, bias, moved, out, scales, L, D, eps,
    FP8_MAX: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """moved = (x + gate * y) * (1 + cam_scale) + cam_shift; out = LayerNorm(moved), weighted."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, W)
    mask = column < D
    gate = vector_of(table, modulation, 2, row // L, column, mask, D)
    value = read(x + row * D, column, mask) + gate * read(y + row * D, column, mask)
    value = value * (1 + read(cam_scale + row * D, column, mask))
    value += read(cam_shift + row * D, column, mask)
    tl.store(moved + row * D + column, value, mask=mask)
    value = layer_norm(value, mask, D, eps)
    value = value * read(weight, column, mask) + read(bias, column, mask)
    write(value, out, scales, row, column, mask, D, FP8_MAX)


@triton.jit
def add_norm_modulate(
    x, y, modulation, table, moved, out, scales, L, D, eps, FP8_MAX: tl.constexpr, W: tl.constexpr
):  # fmt: skip
    """moved = x + y; out = LayerNorm(moved) * (1 + scale) + shift, with vectors 3 and 4."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, W)
    mask = column < D
    value = read(x + row * D, column, mask) + read(y + row * D, column, mask)
    tl.store(moved + row * D + column, value, mask=mask)
    value = layer_norm(value, mask, D, eps)
    shift = vector_of(table, modulation, 3, row // L, column, mask, D)
    scale = vector_of(table, modulation, 4, row // L, column, mask, D)
    write(value * (1 + scale) + shift, out, scales, row, column, mask, D, FP8_MAX)


@triton.jit
def gate_add(x, y, modulation, table, out, L, D, W: tl.constexpr):
    """out = x + gate * y, with the last of the six vectors."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, W)
    mask = column < D
    gate = vector_of(table, modulation, 5, row // L, column, mask, D)
    value = read(x + row * D, column, mask) + gate * read(y + row * D, column, mask)
    tl.store(out + row * D + column, value, mask=mask)


@triton.jit
def rms_norm(x, weight, out, D, eps, W: tl.constexpr):
    """out = RMSNorm(x), with weights."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, W)
    mask = column < D
    value = read(x + row * D, column, mask)
    value = value * tl.rsqrt(tl.sum(value * value, axis=0) / D + eps) * read(weight, column, mask)
    tl.store(out + row * D + column, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def deliver(place, made, rank, peers, mask, PEERS: tl.constexpr):
    """Write to `place` or, with PEERS, as far from it as the memory of each number's rank lies."""
    if PEERS == 0:
        tl.store(place, made, mask=mask)
    else:
        for peer in tl.static_range(PEERS):
            distance = tl.load(peers + peer) * 16  # in units that keep wide writes aligned
            tl.store(place + distance, made, mask=mask & (rank == peer))


@triton.jit
def norm_rotate_pack(
    x, norm_q, norm_k, cos, sin, out_q, out_k, out_v, q_peers, kv_peers,
    x_row, x_tensor,
    q_row, q_rank, q_head, kv_row, kv_rank, kv_head, positions, heads, FIRST: tl.constexpr, D, eps,
    VALUE_SCALE: tl.constexpr, FP8_MAX: tl.constexpr, WIDTH: tl.constexpr, PEERS: tl.constexpr,
    W: tl.constexpr,
):  # fmt: skip
    """q, k, v of a token to where attention or the exchange takes them; q and k normed and rotated.

    Program (row, n) takes tensor n of x [rows, n, D], counted from FIRST: 0 is q, 1 is k, 2 is v.
    The outputs are [rows, ranks, heads, WIDTH] by their strides, cos and sin [positions, WIDTH/2].
    With PEERS ranks each rank's part lies in its own memory, as much further on as `q_peers` and
    `kv_peers` [ranks] say. With FP8_MAX not 0 they are in fp8, values times VALUE_SCALE.
    """
    row = tl.program_id(0).to(tl.int64)
    tensor = tl.program_id(1)
    column = tl.arange(0, W)
    mask = column < D
    value = read(x + row * x_row + tensor * x_tensor, column, mask)
    if tensor + FIRST < 2:
        of_q, of_k = read(norm_q, column, mask), read(norm_k, column, mask)
        value = value * tl.rsqrt(tl.sum(value * value, axis=0) / D + eps)
        value = value * tl.where(tensor + FIRST == 1, of_k, of_q)
        even, odd = tl.split(tl.reshape(value, (W // 2, 2)))
        pair = tl.arange(0, W // 2)
        angle = (row % positions) * (WIDTH // 2) + pair % (WIDTH // 2)
        c, s = tl.load(cos + angle), tl.load(sin + angle)
        value = tl.interleave(even * c - odd * s, even * s + odd * c)
    if FP8_MAX > 0:
        if tensor + FIRST == 2:
            value = value * VALUE_SCALE
        value = tl.minimum(tl.maximum(value, -FP8_MAX), FP8_MAX)
    made = value.to(out_k.dtype.element_ty)
    head = column // WIDTH
    rank, head = head // heads, head % heads
    place = row * kv_row + rank * kv_rank + head * kv_head + column % WIDTH
    if tensor + FIRST == 0:
        place = row * q_row + rank * q_rank + head * q_head + column % WIDTH
        deliver(out_q + place, made, rank, q_peers, mask, PEERS)
    elif tensor + FIRST == 1:
        deliver(out_k + place, made, rank, kv_peers, mask, PEERS)
    else:
        deliver(out_v + place, made, rank, kv_peers, mask, PEERS)


@triton.jit
def quantise(
    x, other, out, scales, D,
    ACTIVATION: tl.constexpr, ADD: tl.constexpr, FP8_MAX: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """out = x in fp8, and the scale of each row.

    With ACTIVATION 1 of its GELU (the tanh form), 2 of its SiLU; with ADD of x + other.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, W)
    mask = column < D
    value = read(x + row * D, column, mask)
    if ADD:
        value += read(other + row * D, column, mask)
    if ACTIVATION == 2:
        value = value * tl.sigmoid(value)
    if ACTIVATION == 1:
        inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        value = value * tl.sigmoid(2 * inner)  # 0.5 * (1 + tanh(z)) is sigmoid(2 z)
    write(value, out, scales, row, column, mask, D, FP8_MAX)
