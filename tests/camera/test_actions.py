"""The rules of driving: what a string of keys does to the camera."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from lingbot.camera.actions import (
    KEYS,
    PITCH_LIMIT,
    CameraDriver,
    action_poses,
    parse_actions,
    random_actions,
)


@pytest.mark.parametrize("name", ["action.a", "action.b"])
def test_poses_of_the_published_action_strings_agree(golden_dir: Path, name: str) -> None:
    with safe_open(golden_dir / "camera_schedule.safetensors", "pt") as file:
        text, expected = file.metadata()[name], file.get_tensor(name)
    torch.testing.assert_close(action_poses(parse_actions(text)), expected, rtol=0, atol=1e-9)


def test_an_action_string_becomes_one_string_of_keys_a_frame() -> None:
    assert parse_actions("w-2, iw-1 ,none-3") == ["w", "w", "iw", "", "", ""]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "holds no action"),
        ("  ", "holds no action"),
        ("w", "a hyphen and a whole positive count"),
        ("w-", "a hyphen and a whole positive count"),
        ("-5", "a hyphen and a whole positive count"),
        ("w-5,", "a hyphen and a whole positive count"),
        ("w-5,,d-3", "a hyphen and a whole positive count"),
        ("w--5", "a hyphen and a whole positive count"),
        ("w-1.5", "a hyphen and a whole positive count"),
        ("w 5", "a hyphen and a whole positive count"),
        ("w-0", "lasts no frame"),
        ("q-5", "unknown key 'q'"),
        ("W-5", "unknown key 'W'"),
        ("nonew-5", "unknown key"),
        ("ww-5", "named twice"),
        ("w-600000,s-600000", "longer than 1000000"),
        ("w-" + "9" * 5000, "longer than 1000000"),
    ],
)
def test_a_bad_action_string_is_refused_with_what_would_be_right(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_actions(text)


def test_the_camera_walks_on_level_ground_however_it_looks() -> None:
    poses = action_poses(parse_actions("i-20,w-10"))
    assert torch.all(poses[:, 1, 3] == 0)
    assert poses[-1, 2, 3].item() == pytest.approx(0.5, abs=1e-4)


def test_opposite_keys_cancel_and_released_keys_leave_the_camera_still() -> None:
    start = action_poses(parse_actions("lw-3"))[-1]
    poses = action_poses(["wsadijkl", ""], start)
    torch.testing.assert_close(poses[1:], start.expand(2, 4, 4), rtol=0, atol=1e-12)


def test_pitch_stops_at_the_limit_and_comes_back() -> None:
    driver = CameraDriver()
    for _ in range(60):
        driver.step("i")
    assert driver.pitch == 84
    driver.step("k")
    assert driver.pitch == 82


def test_a_start_pose_keeps_its_own_pitch() -> None:
    start = action_poses(parse_actions("il-30"))[-1]
    driver = CameraDriver(start)
    assert driver.pitch == pytest.approx(60)
    for _ in range(30):
        driver.step("i")
    assert driver.pitch <= PITCH_LIMIT


def test_what_step_returns_is_not_the_camera_itself() -> None:
    driver = CameraDriver()
    driver.step("w").zero_()
    assert driver.pose[3, 3] == 1


@pytest.mark.parametrize("pose", [torch.eye(3), torch.full((4, 4), float("nan"))])
def test_a_start_pose_that_is_no_matrix_is_refused(pose: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="the start pose"):
        CameraDriver(pose)


def test_an_unknown_key_is_refused_while_driving() -> None:
    with pytest.raises(ValueError, match="unknown key 'x'"):
        CameraDriver().step("x")


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 200), st.integers(0, 2**31 - 1))
def test_random_drives_are_reproducible_and_follow_the_rules(frames: int, seed: int) -> None:
    first = random_actions(frames, torch.Generator().manual_seed(seed), max_pitch=12.0)
    again = random_actions(frames, torch.Generator().manual_seed(seed), max_pitch=12.0)
    assert first == again
    assert len(first) == frames
    assert set("".join(first)) <= set(KEYS)
    driver = CameraDriver()
    pitches = [(driver.step(keys), driver.pitch)[1] for keys in first]
    assert max(map(abs, pitches)) <= 12.0


def test_random_drives_use_every_key() -> None:
    drive = random_actions(5000, torch.Generator().manual_seed(0))
    assert set("".join(drive)) == set(KEYS)
    assert "" in drive
