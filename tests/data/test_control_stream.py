"""Drives cut into realtime steps, from action strings and from recorded folders."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from lingbot.camera.actions import action_poses, parse_actions
from lingbot.camera.controls import CameraControl
from lingbot.data.control_stream import ControlStream


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recorded drive of 21 poses: two chunks of three latent frames."""
    np.save(tmp_path / "poses.npy", action_poses(parse_actions("w-10,jw-10")).float().numpy())
    np.save(tmp_path / "intrinsics.npy", np.array([[500.0, 510.0, 416.0, 240.0]], np.float32))
    Image.new("RGB", (832, 480), (40, 90, 160)).save(tmp_path / "image.jpg")
    (tmp_path / "prompt.txt").write_text("a lake at dawn\n")
    return tmp_path


def test_an_action_string_is_cut_into_steps_that_the_camera_takes() -> None:
    stream = ControlStream.from_actions("w-8,jw-12,none-12", frames_per_chunk=3)
    assert [len(controls.actions) for controls in stream] == [8, 12, 12]
    assert len(stream) == 3
    assert [controls.held for controls in stream] == [0, 0, 0]
    camera = CameraControl("act", 16, 24, frames_per_chunk=3)
    assert all(camera.chunk(controls).shape == (1, 448, 3, 2, 3) for controls in stream)


def test_an_unfilled_chunk_is_held_still_and_the_log_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    stream = ControlStream.from_actions("w-13", frames_per_chunk=3)
    assert list(stream) == list(stream)
    assert [controls.actions for controls in stream] == [("w",) * 8, ("w",) * 5 + ("",) * 7]
    assert [controls.held for controls in stream] == [0, 7]
    (message,) = caplog.messages
    assert "13 actions do not fill the 20 video frames of 2 realtime steps" in message
    assert "held still for the last 7" in message


def test_the_number_of_steps_cuts_a_drive_off_or_holds_it_still(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    cut = ControlStream.from_actions("w-8,s-12", frames_per_chunk=3, num_steps=1)
    assert [controls.actions for controls in cut] == [("w",) * 8]
    assert "the rest is not driven" in caplog.text
    longer = ControlStream.from_actions("w-10", frames_per_chunk=3, num_steps=3)
    assert [controls.held for controls in longer] == [0, 10, 12]


def test_a_full_drive_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ControlStream.from_actions("w-20", frames_per_chunk=3)
    assert not caplog.messages


def test_chunks_of_one_latent_frame_begin_with_the_image_alone() -> None:
    stream = ControlStream.from_actions("w-5", frames_per_chunk=1)
    assert [len(controls.actions) for controls in stream] == [0, 4, 4]


def test_prompt_events_arrive_at_their_step() -> None:
    stream = ControlStream.from_actions("w-32", 3, prompt_events={2: "night"}, history="recompute")
    assert [controls.prompt for controls in stream] == [None, None, "night"]
    assert stream[2].history == "recompute"


@pytest.mark.parametrize("events", [{3: "night"}, {-1: "night"}, {"2": "night"}])
def test_a_prompt_event_outside_the_drive_is_refused(events: dict[int, str]) -> None:
    with pytest.raises(ValueError, match=r"lies outside the drive: its steps are 0 \.\. 2"):
        ControlStream.from_actions("w-32", 3, prompt_events=events)


def test_a_prompt_event_may_come_at_a_step_of_numpy() -> None:
    stream = ControlStream.from_actions("w-32", 3, prompt_events={np.int64(1): " night\n"})
    assert [controls.prompt for controls in stream] == [None, "night", None]


@pytest.mark.parametrize(
    ("events", "complaint"),
    [
        ({1: ""}, "prompt event at step 1 is empty"),
        ({1: "  "}, "prompt event at step 1 is empty"),
        ({1: None}, "prompt event at step 1 is None: give a string"),
        ({1: "caf\udce9"}, "prompt event at step 1 holds bytes that are not UTF-8"),
        ("night", "prompt_events='night': give prompts by step"),
        (["night"], "give prompts by step"),
        ({1.0: "night"}, "at step 1.0 lies outside"),
        ({True: "night"}, "at step True lies outside"),
    ],
)
def test_a_prompt_event_without_words_is_refused(events: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ControlStream.from_actions("w-32", 3, prompt_events=events)


@pytest.mark.parametrize("num_steps", [0, -2])
def test_a_drive_of_no_steps_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match="takes 1 to 100,000 realtime steps"):
        ControlStream.from_actions("w-32", 3, num_steps=num_steps)


def test_a_dataloader_hands_out_the_steps_as_they_are() -> None:
    stream = ControlStream.from_actions("w-32", frames_per_chunk=3)
    loader = DataLoader(stream, batch_size=None)
    assert len(loader) == 3
    assert list(loader) == list(stream)


def test_a_recorded_folder_drives_like_its_trajectory(folder: Path) -> None:
    stream = ControlStream.from_folder(folder, frames_per_chunk=3)
    assert [len(controls.poses) for controls in stream] == [9, 12]
    assert stream.prompt == "a lake at dawn"
    assert stream.first_image == folder / "image.jpg"
    camera = CameraControl("cam", 16, 24, frames_per_chunk=3, translation_scale="offline")
    streamed = torch.cat([camera.chunk(controls) for controls in stream], dim=2)
    given = (500.0, 510.0, 416.0, 240.0)
    offline = CameraControl("cam", 16, 24, 3, intrinsics=given, translation_scale="offline")
    poses = torch.from_numpy(np.load(folder / "poses.npy"))
    torch.testing.assert_close(streamed, offline.clip(poses, 6), rtol=0, atol=1e-6)


def test_a_recorded_folder_is_held_still_at_its_last_pose(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stream = ControlStream.from_folder(folder, frames_per_chunk=4, prompt_events={1: "snow"})
    assert [controls.held for controls in stream] == [0, 8]
    last = stream[1].poses
    assert torch.equal(last[8:], last[7:8].expand(8, 4, 4))
    assert "held still for the last 8" in caplog.text
    assert stream[1].prompt == "snow"


def test_intrinsics_a_pose_count_by_their_first_row(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rows = np.linspace([500.0, 500, 400, 240], [600.0, 600, 400, 240], 21)
    np.save(folder / "intrinsics.npy", rows)
    stream = ControlStream.from_folder(folder, frames_per_chunk=3)
    assert stream[0].intrinsics == (500, 500, 400, 240)
    assert "the first row is used" in caplog.text


@pytest.mark.parametrize("name", ["poses.npy", "intrinsics.npy", "image.jpg", "prompt.txt"])
def test_a_missing_file_is_named_with_what_it_should_hold(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name} is missing: it should hold"):
        ControlStream.from_folder(folder, 3)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        ControlStream.from_folder(tmp_path / "nowhere", 3)


def rewrite(name: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, array)


EYES = np.tile(np.eye(4), (21, 1, 1))


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (rewrite("poses.npy", np.eye(4)), r"poses\.npy has shape \[4, 4\]"),
        (rewrite("poses.npy", EYES[:0]), r"poses\.npy has shape \[0, 4, 4\]"),
        (rewrite("poses.npy", EYES * np.nan), r"poses\.npy holds values that are not finite"),
        (rewrite("poses.npy", EYES * 2), r"poses\.npy holds no rotation in pose 0 of 21"),
        (rewrite("poses.npy", EYES > 0), r"poses\.npy holds bool: real numbers are needed"),
        (
            rewrite("poses.npy", np.array([None, 3], dtype=object)),
            r"poses\.npy cannot be read as a \.npy file of numbers",
        ),
        (
            lambda folder: (folder / "poses.npy").write_bytes(b""),
            r"poses\.npy cannot be read as a \.npy file of numbers",
        ),
        (rewrite("intrinsics.npy", np.eye(3)), r"shape \[3, 3\]: .* \[1, 4\], .*\[21, 4\]"),
        (rewrite("intrinsics.npy", np.ones((5, 4))), r"shape \[5, 4\]: .* \[1, 4\], .*\[21, 4\]"),
        (rewrite("intrinsics.npy", np.full((1, 4), np.inf)), r"intrinsics\.npy holds values that"),
        (rewrite("intrinsics.npy", -np.ones((1, 4))), r"intrinsics\.npy: intrinsics \[-1\.0"),
        (
            lambda folder: (folder / "image.jpg").write_text("not a picture"),
            r"image\.jpg is not an image that can be read",
        ),
        (
            lambda folder: (folder / "image.jpg").write_bytes(
                (folder / "image.jpg").read_bytes()[:2000]
            ),
            r"image\.jpg cannot be decoded as an image",
        ),
        (lambda folder: (folder / "prompt.txt").write_text(" \n"), r"prompt\.txt is empty"),
        (
            lambda folder: (folder / "prompt.txt").write_bytes(b"caf\xe9"),
            r"prompt\.txt is not UTF-8",
        ),
    ],
)
def test_a_malformed_file_is_named_with_what_is_needed(
    folder: Path, spoil: Callable[[Path], object], complaint: str
) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=complaint):
        ControlStream.from_folder(folder, 3)
