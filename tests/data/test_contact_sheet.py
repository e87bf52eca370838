"""Contact sheets: every frame is where its row and column say, and unfit rows are refused."""

from __future__ import annotations

import numpy as np
import pytest

from lingbot.data.contact_sheet import draw_contact_sheet, spread_frames


def _row(*shades: int, height: int = 48, width: int = 160) -> np.ndarray:
    return np.stack([np.full((height, width, 3), shade, np.uint8) for shade in shades])


def test_frames_stand_in_rows_and_columns_under_title_and_headings():
    rows = [("generated", _row(10, 20, 30)), ("truth", _row(40, 50))]
    sheet = np.asarray(draw_contact_sheet(rows, ["a", "b", "c"], "a title", group=2))
    solid = {shade: np.argwhere((sheet == shade).all(-1)) for shade in (10, 20, 30, 40, 50)}
    corners = {shade: tuple(where.min(0)) for shade, where in solid.items()}
    for shade, where in solid.items():
        assert np.ptp(where, axis=0).tolist() == [47, 159], shade
    assert corners[10][0] == corners[20][0] == corners[30][0] < corners[40][0]
    assert corners[10][1] == corners[40][1] < corners[20][1] == corners[50][1] < corners[30][1]


def test_small_frames_are_enlarged_by_a_whole_factor():
    sheet = np.asarray(draw_contact_sheet([("x", _row(77, height=20, width=30))], min_width=100))
    assert np.ptp(np.argwhere((sheet == 77).all(-1)), axis=0).tolist() == [79, 119]


@pytest.mark.parametrize(
    ("rows", "headings", "message"),
    [
        ([], None, "at least one row"),
        ([("x", _row(1).astype(float))], None, "'x' is float64"),
        ([("x", _row(1)), ("y", _row(1, height=50))], None, "48x160, 50x160"),
        ([("x", _row(1, 2))], ["a"], "1 headings for 2 columns"),
    ],
)
def test_rows_that_do_not_fit_together_are_refused(rows, headings, message):
    with pytest.raises(ValueError, match=message):
        draw_contact_sheet(rows, headings)


def test_frames_are_spread_from_first_to_last():
    assert spread_frames(93, 5) == [0, 23, 46, 69, 92]
    assert spread_frames(3, 8) == [0, 1, 2]
    with pytest.raises(ValueError, match="0 frames"):
        spread_frames(0, 4)
