"""The Triton kernel that writes rows into other ranks' memory, see `lingbot.parallel.mailbox`."""

# Triton's arguments are pointers and numbers of its own: annotations would say what they are not.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def push_rows(
    rows, inbox, peers, count, width, stride, start, UNIT: tl.constexpr, W: tl.constexpr
):  # fmt: skip
    """Row r * count + i of `rows`, each `width` wide, to rank r: its inbox + start + i * stride.

    `peers` [ranks] is how far the ranks' inboxes lie from this one's, in UNIT elements.
    """
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, W)
    real = column < width
    value = tl.load(rows + row * width + column, mask=real)
    place = tl.load(peers + row // count) * UNIT + start + (row % count) * stride
    tl.store(inbox + place + column, value, mask=real)
