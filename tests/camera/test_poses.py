"""Poses: what interpolation, relative motion and scaling keep, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lingbot.camera.actions import action_poses, parse_actions, rotation_x, rotation_y
from lingbot.camera.poses import (
    check_poses,
    even_positions,
    from_quaternions,
    interpolate_poses,
    relative_poses,
    scale_translations,
    to_quaternions,
)

DRIVE = action_poses(parse_actions("w-9,iwl-12,jd-11"))


def pose(rotation: torch.Tensor, translation: list[float]) -> torch.Tensor:
    result = torch.eye(4, dtype=torch.float64)
    result[:3, :3] = rotation
    result[:3, 3] = torch.tensor(translation, dtype=torch.float64)
    return result


def test_interpolation_at_whole_positions_gives_the_poses_themselves() -> None:
    found = interpolate_poses(DRIVE, even_positions(len(DRIVE), len(DRIVE)))
    torch.testing.assert_close(found, DRIVE, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.floats(-179, 179), st.floats(0, 1))
def test_interpolation_turns_and_moves_at_a_constant_rate(degrees: float, weight: float) -> None:
    base = rotation_y(37.0) @ rotation_x(-20.0)
    ends = torch.stack(
        [pose(base, [1.0, 2.0, 3.0]), pose(base @ rotation_x(degrees), [5.0, 2.0, 1.0])]
    )
    found = interpolate_poses(ends, torch.tensor([weight], dtype=torch.float64))[0]
    expected = pose(base @ rotation_x(weight * degrees), [1 + 4 * weight, 2.0, 3 - 2 * weight])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_interpolation_takes_the_short_way_round() -> None:
    ends = torch.stack([pose(rotation_y(170.0), [0, 0, 0]), pose(rotation_y(-170.0), [0, 0, 0])])
    halfway = interpolate_poses(ends, torch.tensor([0.5]))[0, :3, :3]
    torch.testing.assert_close(halfway, rotation_y(180.0), rtol=0, atol=1e-12)


def test_quaternions_survive_half_turns_about_every_axis() -> None:
    half_turns = torch.diag_embed(
        torch.tensor([[1, -1, -1], [-1, 1, -1], [-1, -1, 1], [1, 1, 1]], dtype=torch.float64)
    )
    back = from_quaternions(to_quaternions(half_turns))
    torch.testing.assert_close(back, half_turns, rtol=0, atol=1e-12)


def test_a_position_outside_the_poses_is_refused() -> None:
    with pytest.raises(ValueError, match=r"positions span 0\.0 \.\. 33\.0 but the poses only 0"):
        interpolate_poses(DRIVE, torch.tensor([0.0, len(DRIVE)]))


def test_one_pose_alone_can_be_interpolated_and_made_relative() -> None:
    alone = interpolate_poses(DRIVE[:1], torch.zeros(2))
    torch.testing.assert_close(alone, DRIVE[:1].expand(2, 4, 4))
    torch.testing.assert_close(relative_poses(DRIVE[5:6]), torch.eye(4).double()[None])


def test_relative_poses_lead_from_one_pose_to_the_next() -> None:
    relative = relative_poses(DRIVE)
    torch.testing.assert_close(DRIVE[:-1] @ relative[1:], DRIVE[1:], rtol=0, atol=1e-12)
    continued = torch.cat([relative_poses(DRIVE[:10]), relative_poses(DRIVE[10:], DRIVE[9])])
    torch.testing.assert_close(continued, relative, rtol=0, atol=0)


def test_relative_poses_do_not_depend_on_where_the_drive_is() -> None:
    moved = pose(rotation_y(50.0), [1e5, -2e5, 3e5]) @ DRIVE
    torch.testing.assert_close(relative_poses(moved), relative_poses(DRIVE), rtol=0, atol=1e-9)


def test_offline_scaling_makes_the_longest_step_one_and_leaves_a_still_camera_still() -> None:
    relative = relative_poses(DRIVE[::4])
    scaled = scale_translations(relative, None)
    assert scaled[:, :3, 3].norm(dim=1).max().item() == pytest.approx(1)
    torch.testing.assert_close(scaled[:, :3, :3], relative[:, :3, :3])
    still = relative_poses(DRIVE[:1].expand(4, 4, 4))
    torch.testing.assert_close(scale_translations(still, None), still)


def test_a_fixed_scale_divides_and_changes_nothing_else() -> None:
    relative = relative_poses(DRIVE)
    scaled = scale_translations(relative, 0.2)
    torch.testing.assert_close(scaled[:, :3, 3], relative[:, :3, 3] / 0.2)
    torch.testing.assert_close(scaled[:, 3], relative[:, 3])


def broken(change: str) -> torch.Tensor:
    poses = DRIVE.clone()
    if change == "nan":
        poses[4, 0, 3] = math.nan
    elif change == "scale":
        poses[4, :3, :3] *= 2
    elif change == "mirror":
        poses[4, :3, 0] *= -1
    elif change == "transposed":
        poses = poses.mT
    return poses


@pytest.mark.parametrize(
    ("poses", "complaint"),
    [
        (torch.eye(4), r"has shape \[4, 4\]: camera-to-world matrices \[N, 4, 4\]"),
        (torch.zeros(0, 4, 4), "at least one pose"),
        (torch.zeros(3, 3, 4), r"has shape \[3, 3, 4\]"),
        (broken("nan"), "not finite in pose 4 of 33"),
        (broken("scale"), "no rotation in pose 4 of 33"),
        (broken("mirror"), "no rotation in pose 4 of 33"),
        (broken("transposed"), r"last row of pose 1 of some/poses\.npy"),
    ],
)
def test_matrices_that_are_no_poses_are_refused(poses: torch.Tensor, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_poses(poses, "some/poses.npy")
