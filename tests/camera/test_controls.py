"""The camera of a session: chunks, clips, their equality, and what is refused."""

from typing import Any

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.apply_func import move_data_to_device

from lingbot.camera.actions import action_poses, random_actions, rotation_y
from lingbot.camera.controls import CameraControl, Controls

SIZE = {"height": 16, "width": 24}


def drive(frames: int, seed: int = 0) -> list[str]:
    return random_actions(frames, torch.Generator().manual_seed(seed), hold=(2, 6))


def cut(values: Any, frames_per_chunk: int, chunks: int, extra: int) -> list[Any]:
    """Cut what belongs to the video frames into chunks; the first has `extra` more."""
    first = 4 * (frames_per_chunk - 1) + extra
    ends = [first + 4 * frames_per_chunk * step for step in range(chunks)]
    return [values[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize("kind", ["cam", "act"])
@settings(max_examples=10, deadline=None)
@given(frames=st.integers(1, 4), chunks=st.integers(1, 4), seed=st.integers(0, 1000))
def test_chunks_of_a_drive_equal_the_whole_clip(
    kind: Any, frames: int, chunks: int, seed: int
) -> None:
    camera = CameraControl(kind, frames_per_chunk=frames, **SIZE)
    actions = drive(4 * (frames * chunks - 1), seed) if frames * chunks > 1 else []
    parts = cut(tuple(actions), frames, chunks, extra=0)
    streamed = torch.cat([camera.chunk(Controls(part)) for part in parts], dim=2)
    poses = action_poses(actions)
    whole = camera.clip(poses, frames * chunks, actions)
    assert whole.shape == (1, camera.channels, frames * chunks, 2, 3)
    torch.testing.assert_close(streamed, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(camera.pose, poses[-1], rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "scale"), [("cam", 0.2), ("act", 0.2), ("cam", "offline")])
def test_clips_together_give_what_each_gives_alone(kind: Any, scale: Any) -> None:
    camera = CameraControl(kind, frames_per_chunk=3, translation_scale=scale, **SIZE)
    drives = [drive(20, seed) for seed in range(3)]
    poses = torch.stack([action_poses(actions) for actions in drives])
    together = camera.clips(poses, 6, drives)
    alone = [camera.clip(some, 6, keys) for some, keys in zip(poses, drives, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)
    assert not torch.equal(together[0], together[1])


def test_poses_and_the_actions_that_make_them_steer_alike() -> None:
    actions = drive(32)
    poses = action_poses(actions)
    by_keys, by_poses = (CameraControl("cam", frames_per_chunk=3, **SIZE) for _ in range(2))
    seen = []
    for keys, part in zip(cut(actions, 3, 3, 0), cut(poses, 3, 3, 1), strict=True):
        expected = by_keys.chunk(Controls(tuple(keys)))
        assert torch.equal(by_poses.chunk(Controls(poses=part)), expected)
        assert torch.equal(by_poses.video_poses, by_keys.video_poses)
        seen.append(by_keys.video_poses)
    torch.testing.assert_close(torch.cat(seen), poses, rtol=0, atol=0)


def test_keys_can_take_over_from_recorded_poses() -> None:
    actions = drive(20)
    poses = action_poses(actions)
    camera = CameraControl("cam", frames_per_chunk=3, **SIZE)
    camera.chunk(Controls(poses=poses[:9]))
    taken_over = camera.chunk(Controls(tuple(actions[8:])))
    whole = camera.clip(poses, 6)
    torch.testing.assert_close(taken_over, whole[:, :, 3:], rtol=0, atol=1e-6)


def test_the_control_does_not_depend_on_where_the_drive_starts() -> None:
    start = torch.eye(4, dtype=torch.float64)
    start[:3, :3], start[:3, 3] = rotation_y(70.0), torch.tensor([5.0, -1.6, 9.0])
    camera = CameraControl("cam", frames_per_chunk=3, **SIZE)
    controls = Controls(tuple(drive(8)))
    here = camera.chunk(controls)
    camera.reset(start)
    assert torch.equal(camera.video_poses[0], start)
    torch.testing.assert_close(camera.chunk(controls), here, rtol=0, atol=1e-6)
    torch.testing.assert_close(camera.video_poses[0], start)


def test_reset_forgets_the_drive() -> None:
    camera = CameraControl("act", frames_per_chunk=2, **SIZE)
    controls = Controls(("wl",) * 4)
    first = camera.chunk(controls)
    camera.chunk(Controls(("wj",) * 8))
    camera.reset()
    assert torch.equal(camera.pose, torch.eye(4, dtype=torch.float64))
    assert torch.equal(camera.chunk(controls), first)


def test_four_frames_forward_are_a_step_of_length_one_by_default() -> None:
    camera = CameraControl("cam", frames_per_chunk=2, **SIZE)
    origin = camera.chunk(Controls(("w",) * 4))[0, :192, :, 0, 0].reshape(3, 64, 2)[:, 0]
    torch.testing.assert_close(origin, torch.tensor([[0, 0], [0, 0], [0, 1.0]]), atol=1e-5, rtol=0)


def test_act_control_holds_directions_then_the_keys_that_led_to_every_fourth_frame() -> None:
    camera = CameraControl("act", frames_per_chunk=3, **SIZE)
    actions = ("", "", "", "wd", "ia", "ia", "ia", "s")
    control = camera.chunk(Controls(actions))
    images = rearrange(control[0, 192:], "(k p) f h w -> k f (p h w)", k=4)
    assert torch.equal(images, images[..., :1].expand_as(images))
    assert images[..., 0].T.tolist() == [[0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 1, 0]]
    rays = CameraControl("cam", frames_per_chunk=3, **SIZE).chunk(Controls(actions))
    assert torch.equal(control[:, :192], rays[:, 192:])
    later = camera.chunk(Controls(("", "", "", "a") + ("",) * 8))
    assert later[0, 192 + 64].amax(dim=(1, 2)).tolist() == [1, 0, 0]


def test_a_recorded_drive_brings_its_intrinsics_and_scale_until_the_next_session() -> None:
    poses = action_poses(["w"] * 20)
    camera = CameraControl("cam", frames_per_chunk=3, translation_scale="offline", **SIZE)
    given = (400.0, 410.0, 420.0, 230.0)
    controls = [
        Controls(poses=poses[:9], intrinsics=given, largest_step=0.2),
        Controls(poses=poses[9:]),
    ]
    streamed = torch.cat([camera.chunk(part) for part in controls], dim=2)
    other = CameraControl(
        "cam", frames_per_chunk=3, intrinsics=given, translation_scale=0.2, **SIZE
    )
    torch.testing.assert_close(streamed, other.clip(poses, 6), rtol=0, atol=1e-6)
    camera.reset()
    with pytest.raises(ValueError, match="needs the longest step of the whole drive"):
        camera.chunk(Controls(poses=poses[:9]))


def test_the_camera_stays_where_it_was_when_controls_are_refused() -> None:
    camera = CameraControl("cam", frames_per_chunk=3, **SIZE)
    with pytest.raises(ValueError, match="12 actions for chunk 0 of 3 latent frames: give 8"):
        camera.chunk(Controls(("w",) * 12))
    with pytest.raises(ValueError, match="8 poses for chunk 0 of 3 latent frames: give 9"):
        camera.chunk(Controls(poses=action_poses(["w"] * 7)))
    assert torch.equal(camera.pose, torch.eye(4, dtype=torch.float64))
    camera.chunk(Controls(("w",) * 8))
    with pytest.raises(ValueError, match="8 actions for chunk 1 of 3 latent frames: give 12"):
        camera.chunk(Controls(("w",) * 8))


def test_act_control_refuses_poses_without_keys() -> None:
    camera = CameraControl("act", frames_per_chunk=3, **SIZE)
    poses = action_poses(["w"] * 8)
    with pytest.raises(ValueError, match="drive with actions, give the keys held at each pose"):
        camera.chunk(Controls(poses=poses))
    with pytest.raises(ValueError, match="drive with actions"):
        camera.clip(poses, 3)


def test_a_clip_that_does_not_fit_its_latent_frames_is_refused() -> None:
    camera = CameraControl("cam", frames_per_chunk=3, **SIZE)
    poses = action_poses(["w"] * 8)
    with pytest.raises(ValueError, match="9 poses for 4 latent frames: give 13"):
        camera.clip(poses, 4)
    with pytest.raises(ValueError, match="9 actions for 9 poses: give 8"):
        camera.clip(poses, 3, ["w"] * 9)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"kind": "pose"}, "choose cam or act"),
        ({"height": 20}, "multiples of 8"),
        ({"height": 1_600_000}, "camera.height=1600000: .* to 16,384"),
        ({"width": -8}, "camera.width=-8"),
        ({"frames_per_chunk": 0}, "camera.frames_per_chunk=0"),
        ({"frames_per_chunk": 10**9}, "camera.frames_per_chunk=1000000000"),
        ({"intrinsics": (0, 520, 416, 240)}, "fx and fy positive"),
        ({"intrinsics": (1e-30, 1e-30, 0, 0)}, "fx and fy positive"),
        ({"intrinsics": (520, 520, 1e30, 0)}, "up to 1,000,000"),
        ({"translation_scale": 1e-300}, "translation scale 1e-300"),
        ({"translation_scale": 1e300}, r"translation scale 1e\+300"),
        ({"intrinsics": (520, 520, 416)}, "give fx, fy, cx, cy"),
        ({"translation_scale": 0.0}, "give a positive length"),
        ({"translation_scale": "live"}, "give a positive length"),
        ({"translation_scale": float("nan")}, "give a positive length"),
        ({"translation_scale": 1e-300}, "give a positive length"),
        ({"recorded_scale": 0}, 'recorded scale 0: give a positive length .* or "published"'),
        ({"recorded_scale": "offline"}, "recorded scale 'offline': give a positive length"),
        ({"recorded_scale": None}, "recorded scale None"),
    ],
)
def test_a_camera_that_cannot_work_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CameraControl(**{"kind": "cam", "frames_per_chunk": 3, **SIZE, **change})


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "exactly one of the two, not neither"),
        ({"actions": ("w",), "poses": torch.eye(4)[None]}, "exactly one of the two, not both"),
        ({"actions": "w-8"}, "is the string"),
        ({"actions": ("w", "q")}, "unknown key 'q'"),
        ({"poses": torch.eye(4)}, "the poses of the controls has shape"),
        ({"actions": (), "history": "forget"}, "choose keep or recompute"),
        ({"actions": (), "prompt": "  "}, "the new prompt is empty"),
        ({"actions": (), "prompt": 7}, "the new prompt is 7: give a string"),
        ({"actions": ("w",), "pose_keys": ("w",)}, "keys of 1 poses, of which 0 are there"),
        ({"poses": torch.eye(4)[None], "pose_keys": ("w", "w")}, "keys of 2 poses, of which 1"),
        ({"poses": torch.eye(4)[None], "pose_keys": ("x",)}, "unknown key 'x'"),
    ],
)
def test_controls_that_say_nothing_clear_are_refused(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Controls(**given)


def test_lightning_moves_controls_without_changing_them() -> None:
    controls = Controls(poses=action_poses(["w"] * 8), prompt="night")
    assert move_data_to_device(controls, "cpu") is controls
