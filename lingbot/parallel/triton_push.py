"""The Triton kernel that writes rows into other ranks' memory, see `lingbot.parallel.mailbox`."""

# Triton's arguments are pointers and numbers of its own: annotations would say what they are not.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def push_rows(
    rows, inbox, peers, ranks, count, width, stride, start, UNIT: tl.constexpr, W: tl.constexpr
):  # fmt: skip
    """Row r * count + i of `rows`, each `width` wide, to rank r: its inbox + start + i * stride.

    `peers` [ranks] is how far the ranks' inboxes lie from this one's, in UNIT elements. Programs
    side by side write to different ranks: no link waits while another is at work.
    """
    program = tl.program_id(0)
    rank, row = program % ranks, (program // ranks).to(tl.int64)
    column = tl.arange(0, W)
    real = column < width
    value = tl.load(rows + (rank * count + row) * width + column, mask=real)
    place = tl.load(peers + rank) * UNIT + start + row * stride
    tl.store(inbox + place + column, value, mask=real)
