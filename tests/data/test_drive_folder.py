"""Recorded folders: their files with limits, without pickle, and in the units they have."""

from __future__ import annotations

import codecs
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from safetensors.torch import load_file

from lingbot.camera.actions import action_poses, parse_actions
from lingbot.camera.controls import CameraControl
from lingbot.data.control_stream import ControlStream
from lingbot.data.drive_folder import MOST_POSES, read_drive_folder

KEYS = np.random.default_rng(0).integers(0, 2, (21, 4)).astype(np.int32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recorded drive of 21 poses: two chunks of three latent frames."""
    np.save(tmp_path / "poses.npy", action_poses(parse_actions("w-10,jw-10")).numpy())
    np.save(tmp_path / "intrinsics.npy", np.array([[500.0, 510.0, 416.0, 240.0]], np.float32))
    Image.new("RGB", (104, 60), (40, 90, 160)).save(tmp_path / "image.jpg")
    (tmp_path / "prompt.txt").write_text("a lake at dawn\n")
    return tmp_path


def header(shape: tuple[int, ...], dtype: str = "<f8") -> bytes:
    """The start of a .npy file that promises this much."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": dtype, "fortran_order": False, "shape": shape}
    )
    return file.getvalue()


def puts(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def saves(name: str, array: object) -> Callable[[Path], object]:
    return lambda folder: np.save(folder / name, np.asarray(array))


def archive(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def pipe(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return make


class Trap:
    """Leaves a trace where a pickle of it is loaded."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (puts("poses.npy", header((10**8, 4, 4))), r"poses\.npy has shape \[100000000, 4, 4\]"),
        (puts("poses.npy", header((2**62, 4, 4))), r"poses\.npy has shape"),
        (puts("poses.npy", header((-1, 4, 4))), r"poses\.npy has shape \[-1, 4, 4\]"),
        (puts("poses.npy", header((21, 4, 4)) + bytes(99)), r"poses\.npy is cut off: .* 336 .*12 "),
        (puts("poses.npy", header((MOST_POSES, 4, 4))), r"poses\.npy is cut off"),
        (puts("poses.npy", header((21, 4, 4), "|O") + b"cos\nsystem\n."), "Python objects"),
        (puts("poses.npy", header((21, 4, 4), "<c16")), r"poses\.npy holds complex128: real"),
        (puts("poses.npy", b"\x93NUMPY\x01\x00\x10\x00import os; 1\n  "), r"poses\.npy cannot be"),
        (puts("poses.npy", archive(a=np.eye(4))), r"poses\.npy is an archive of arrays \(\.npz\)"),
        (pipe("poses.npy"), r"poses\.npy is a pipe"),
        (pipe("image.jpg"), r"image\.jpg is a pipe"),
        (pipe("prompt.txt"), r"prompt\.txt is a pipe"),
        (puts("prompt.txt", b"x" * 100_000), r"prompt\.txt has 100,000 bytes"),
        (puts("prompt.txt", "dusk".encode("utf-16")), r"prompt\.txt is UTF-16, not UTF-8"),
        (puts("prompt.txt", codecs.BOM_UTF16_BE + b"\0d"), r"prompt\.txt is UTF-16, not UTF-8"),
        (puts("prompt.txt", "dusk".encode("utf-32")), r"prompt\.txt is UTF-32, not UTF-8"),
        (puts("prompt.txt", "dusk".encode("utf-16-le")), r"control character U\+0000"),
        (puts("prompt.txt", codecs.BOM_UTF8 + b" \n"), r"prompt\.txt is empty"),
        (
            saves("intrinsics.npy", [[1200.0, 1200, 960, 540]]),
            r"intrinsics\.npy: the principal point \[960, 540\] is far from the middle of 832x480, "
            r"\[416, 240\]: those of a picture of 1920x1080 would be \[520, 533.333, 416, 240\]",
        ),
        (saves("intrinsics.npy", [[0.62, 1.1, 0.5, 0.5]]), r"of 1x1 would be \[515.84, 528,"),
        (saves("intrinsics.npy", [[520.0, 520, -416, 240]]), r"\[-416, 240\] .* give fx, fy"),
        (saves("intrinsics.npy", [[500.0, 500, 320, 240]]), r"of 640x480 would be \[650, 500"),
    ],
)  # fmt: skip
def test_what_is_no_drive_is_refused_by_its_file_in_one_line(folder, spoil, complaint):
    spoil(folder)
    with pytest.raises(ValueError, match=complaint) as refusal:
        read_drive_folder(folder)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_pickle_in_a_file_of_numbers_is_not_loaded(folder):
    trap = np.empty(1, object)
    trap[0] = Trap(folder / "trace")
    np.save(folder / "poses.npy", trap, allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        read_drive_folder(folder)
    assert not (folder / "trace").exists()


def test_a_pose_out_of_all_proportion_is_refused(folder):
    poses = np.load(folder / "poses.npy")
    poses[7, 0, 3] = 1e12
    np.save(folder / "poses.npy", poses)
    with pytest.raises(ValueError, match=r"poses\.npy goes 1e\+12 units from the origin"):
        read_drive_folder(folder)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_of_any_width_and_order_are_read_as_they_are(folder, dtype, order):
    poses = np.load(folder / "poses.npy").astype(dtype)
    np.save(folder / "poses.npy", np.asarray(poses, order=order))
    read = read_drive_folder(folder).poses
    assert read.dtype == torch.float64
    assert np.array_equal(read.numpy(), poses.astype(np.float64))


def test_a_byte_order_mark_is_no_part_of_a_prompt(folder):
    (folder / "prompt.txt").write_bytes(codecs.BOM_UTF8 + "un café\r\nat dusk\n".encode())
    assert read_drive_folder(folder).prompt == "un café at dusk"


def test_what_poses_are_is_said_where_they_are_missing_or_wrong(folder):
    np.save(folder / "poses.npy", np.eye(4))
    with pytest.raises(ValueError, match=r"camera-to-world .* OpenCV axes \(x right, y down"):
        read_drive_folder(folder)
    (folder / "poses.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"camera-to-world .* OpenCV axes \(x right"):
        read_drive_folder(folder)


def test_a_folder_of_many_files_is_not_listed_in_full(folder):
    (folder / "poses.npy").unlink()
    for number in range(50):
        (folder / f"a{number:03}").touch()
    with pytest.raises(FileNotFoundError, match=r"a009 and 43 more\.$"):
        read_drive_folder(folder)


def origins(control: torch.Tensor) -> torch.Tensor:
    """Lengths of the ray origins of each latent frame, [F]."""
    rays = rearrange(control[0, :192], "(c p) f h w -> f c (p h w)", c=3)
    return rays[..., 0].norm(dim=1)


def driven(stream: ControlStream, **options: object) -> torch.Tensor:
    camera = CameraControl("cam", 32, 48, 3, **options)  # type: ignore[arg-type]
    return torch.cat([camera.chunk(controls) for controls in stream], dim=2)


def test_the_longest_step_of_a_recorded_drive_counts_as_1(folder):
    poses = np.load(folder / "poses.npy")
    expected = driven(ControlStream.from_folder(folder, 3))
    assert origins(expected).max().item() == pytest.approx(1, abs=1e-6)
    for unit in (30.0, 1e-3):
        poses_there = poses.copy()
        poses_there[:, :3, 3] *= unit
        np.save(folder / "poses.npy", poses_there)
        found = driven(ControlStream.from_folder(folder, 3))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_recorded_drive_can_keep_the_units_it_has(folder):
    stream = ControlStream.from_folder(folder, 3)
    found = driven(stream, recorded_scale=0.1, translation_scale=0.7)
    assert origins(found)[1].item() == pytest.approx(2, abs=1e-4)  # 4 frames of 0.05
    poses = torch.from_numpy(np.load(folder / "poses.npy"))
    fixed = CameraControl("cam", 32, 48, 3, stream[0].intrinsics, translation_scale=0.1).clip(
        poses, 6
    )
    torch.testing.assert_close(found, fixed, rtol=0, atol=1e-6)


def test_a_camera_that_only_trembles_in_place_stands_still(folder, caplog):
    caplog.set_level(logging.INFO)
    poses = np.tile(np.eye(4), (21, 1, 1))
    poses[:, 2, 3] = 1e-9 * (np.arange(21) % 3)
    np.save(folder / "poses.npy", poses)
    assert origins(driven(ControlStream.from_folder(folder, 3))).max() < 1e-6
    assert "its camera stands still" in caplog.text


@pytest.mark.parametrize("example", ["00", "03"])
def test_a_published_example_is_driven_by_the_golden_rays(golden_dir, folder, example):
    golden = load_file(golden_dir / "camera_schedule.safetensors")
    np.save(folder / "poses.npy", golden[f"{example}.poses"].numpy())
    np.save(folder / "intrinsics.npy", golden[f"{example}.intrinsics"].numpy())
    found = driven(ControlStream.from_folder(folder, 3))
    torch.testing.assert_close(found[0], golden[f"{example}.plucker_packed"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("example", ["00", "03"])
def test_act_control_of_a_published_example_has_the_golden_directions(golden_dir, folder, example):
    golden = load_file(golden_dir / "camera_schedule.safetensors")
    poses = golden[f"{example}.poses"].numpy()
    keys = np.arange(4 * len(poses)).reshape(-1, 4) % 5 % 2
    np.save(folder / "poses.npy", poses)
    np.save(folder / "intrinsics.npy", golden[f"{example}.intrinsics"].numpy())
    np.save(folder / "action.npy", keys)
    camera = CameraControl("act", 32, 48, 3)
    stream = ControlStream.from_folder(folder, 3, kind="act")
    control = torch.cat([camera.chunk(controls) for controls in stream], dim=2)[0]
    expected = golden[f"{example}.plucker_packed"][192:]
    torch.testing.assert_close(control[:192], expected, rtol=0, atol=2e-5)
    assert np.array_equal(control[192::64, :, 0, 0].T.numpy(), keys[::4])


@pytest.mark.parametrize("name", ["action.npy", "wasd_action.npy"])
@pytest.mark.parametrize("dtype", [np.int32, np.float32, bool])
def test_act_control_takes_every_fourth_row_of_keys_beside_the_rays(folder, name, dtype):
    np.save(folder / name, KEYS.astype(dtype))
    camera = CameraControl("act", 32, 48, 3)
    stream = ControlStream.from_folder(folder, 3, kind="act")
    control = torch.cat([camera.chunk(controls) for controls in stream], dim=2)
    assert control.shape == (1, 448, 6, 4, 6)
    images = rearrange(control[0, 192:], "(k p) f h w -> f k (p h w)", k=4)
    assert torch.equal(images, images[..., :1].expand_as(images))
    assert np.array_equal(images[..., 0].numpy(), KEYS[::4])  # channels w, a, s, d
    rays = driven(ControlStream.from_folder(folder, 3))
    torch.testing.assert_close(control[:, :192], rays[:, 192:], rtol=0, atol=0)


def test_keys_are_let_go_of_where_a_drive_is_held_still(folder):
    np.save(folder / "action.npy", np.ones((20, 4), np.int32))  # of a trajectory made of them
    stream = ControlStream.from_folder(folder, 3, num_steps=3, kind="act")
    keys = [key for controls in stream for key in controls.pose_keys]
    assert keys == ["wasd"] * 20 + [""] * 13
    assert [len(controls.pose_keys) for controls in stream] == [9, 12, 12]


def test_of_two_files_of_keys_the_published_choice_is_taken_and_told(folder, caplog):
    caplog.set_level(logging.INFO)
    np.save(folder / "action.npy", KEYS)
    np.save(folder / "wasd_action.npy", KEYS)
    ControlStream.from_folder(folder, 3, kind="act")
    assert not caplog.messages
    np.save(folder / "wasd_action.npy", 1 - KEYS)
    stream = ControlStream.from_folder(folder, 3, kind="act")
    assert ("w" in stream[0].pose_keys[0]) == bool(KEYS[0, 0])
    assert "wasd_action.npy says otherwise than action.npy" in caplog.text


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: None, r"action\.npy \(or wasd_action\.npy\) is missing: act control needs"),
        (
            saves("action.npy", KEYS[:19]),
            r"action\.npy has shape \[19, 4\]: for 21 poses \[21, 4\]",
        ),
        (saves("action.npy", KEYS[:, :3]), r"action\.npy has shape \[21, 3\]"),
        (saves("wasd_action.npy", KEYS * 2), r"wasd_action\.npy holds other values than 0 and 1"),
        (saves("action.npy", np.full((21, 4), np.nan)), "holds other values than 0 and 1"),
        (saves("action.npy", KEYS.astype(str)), "real numbers are needed"),
        (pipe("poses.npy"), "is a pipe"),
    ],
)
def test_act_control_without_keys_it_can_read_is_refused_by_file(folder, spoil, complaint):
    spoil(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=complaint):
        ControlStream.from_folder(folder, 3, kind="act")


def test_cam_control_does_not_mind_what_is_in_files_of_keys(folder, caplog):
    caplog.set_level(logging.INFO)
    (folder / "action.npy").write_text("nonsense")
    ControlStream.from_folder(folder, 3)
    assert "action.npy is not read: the drive follows poses.npy" in caplog.text
