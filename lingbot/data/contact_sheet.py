"""Contact sheets: rows of frames under headings, to compare generated with true at a glance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_PAPER, _INK, _SOFT = (250, 250, 248), (38, 44, 54), (110, 118, 130)
_GAP, _MARGIN, _FONT = 4, 14, 14


def spread_frames(num_frames: int, columns: int) -> list[int]:
    """Indices of at most `columns` frames, evenly spread from the first to the last."""
    if num_frames < 1 or columns < 1:
        raise ValueError(f"Cannot choose {columns} of {num_frames} frames; both must be 1 or more.")
    return np.linspace(0, num_frames - 1, min(columns, num_frames)).round().astype(int).tolist()


def draw_contact_sheet(
    rows: Sequence[tuple[str, NDArray[np.uint8]]],
    headings: Sequence[str] | None = None,
    title: str | None = None,
    group: int = 1,
    min_width: int = 160,
) -> Image.Image:
    """Lay out rows of frames with a label on the left and headings on top.

    Args:
        rows: (label, uint8 frames [N, H, W, 3]); a label may have several lines. Frames have one
            size; a row may be shorter than the others.
        headings: one a column.
        title: a line over everything.
        group: rows that belong together (2 for generated over true); groups are set apart.
        min_width: narrower frames are enlarged by a whole factor, so that pixels stay pixels.

    Raises:
        ValueError: no rows, frames that are not uint8 [N, H, W, 3] of one size, or headings that do
            not match the longest row.
    """
    height, width, columns = _measure(rows, headings)
    scale = max(1, -(-min_width // width))
    cell_w, cell_h = width * scale, height * scale
    font, bold = ImageFont.load_default(_FONT), ImageFont.load_default(_FONT + 4)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    labels = [pen.multiline_textbbox((0, 0), label, font=font) for label, _ in rows]
    left = _MARGIN + round(max(box[2] for box in labels)) + _MARGIN
    top = _MARGIN + (2 * _FONT + 4 if title else 0) + (_FONT + 10 if headings else 0)
    breaks = (len(rows) - 1) // group
    sheet_w = left + columns * (cell_w + _GAP) - _GAP + _MARGIN
    sheet_h = top + len(rows) * (cell_h + _GAP) - _GAP + breaks * _MARGIN + _MARGIN
    if title:
        sheet_w = max(sheet_w, round(pen.textlength(title, font=bold)) + 2 * _MARGIN)
    sheet = Image.new("RGB", (sheet_w, sheet_h), _PAPER)
    pen = ImageDraw.Draw(sheet)
    if title:
        pen.text((_MARGIN, _MARGIN), title, fill=_INK, font=bold)
    for column, heading in enumerate(headings or ()):
        middle = left + column * (cell_w + _GAP) + cell_w // 2
        pen.text((middle, top - 6), heading, fill=_SOFT, font=font, anchor="ms")
    for row, (label, frames) in enumerate(rows):
        y = top + row * (cell_h + _GAP) + (row // group) * _MARGIN
        box = labels[row]
        pen.multiline_text((_MARGIN, y + (cell_h - box[3]) // 2), label, fill=_INK, font=font)
        for column, pixels in enumerate(frames):
            picture = Image.fromarray(pixels).resize((cell_w, cell_h), Image.Resampling.NEAREST)
            sheet.paste(picture, (left + column * (cell_w + _GAP), y))
    return sheet


def _measure(
    rows: Sequence[tuple[str, NDArray[np.uint8]]], headings: Sequence[str] | None
) -> tuple[int, int, int]:
    """(height, width, columns) of a sheet whose rows fit together."""
    if not rows:
        raise ValueError("A contact sheet needs at least one row of frames.")
    for label, frames in rows:
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
            shape = f"{frames.dtype} {list(frames.shape)}"
            raise ValueError(f"Row {label!r} is {shape}; frames must be uint8 [N, H, W, 3].")
    sizes = {frames.shape[1:3] for _, frames in rows}
    if len(sizes) > 1:
        found = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
        raise ValueError(f"Frames of a contact sheet have one size, these have {found}; resize.")
    columns = max(len(frames) for _, frames in rows)
    if headings is not None and len(headings) != columns:
        raise ValueError(
            f"{len(headings)} headings for {columns} columns; give one for every frame of the "
            "longest row."
        )
    height, width = sizes.pop()
    return height, width, columns
