"""BlockWorld clips: a seed makes a prompt, a scene, a drive through it and the frames it shows.

Drives follow the keys a user would hold, by the same rules, and never run into a solid: a drive
that would is drawn again. Training, validation and test clips come from disjoint ranges of seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset, default_collate

from lingbot.camera.actions import action_poses, random_actions
from lingbot.data.blockworld import INTRINSICS, Scene, make_scene, random_prompt, render
from lingbot.data.blockworld_precision import float32_arithmetic
from lingbot.data.blockworld_words import choose
from lingbot.model.checks import check_count

Split = Literal["train", "val", "test"]

SPLIT_SIZE = 10**9
FIRST_SEED: dict[str, int] = {"train": 0, "val": SPLIT_SIZE, "test": 2 * SPLIT_SIZE}
HOLD = (4, 20)  # frames that one choice of keys is held
GAP = 0.35  # world units between the camera and the nearest solid, at least
PITCH = (0.0, 0.0, 10.0, 24.0)  # degrees that a drive may look up or down: most never do
TRIES = 1000
LONGEST_DRIVE = 20_000  # frames; half a minute goes by until one is found that long


@dataclass(frozen=True)
class Drive:
    """A scene and a drive through it: keys of T - 1 frames, poses [T, 4, 4] float64."""

    seed: int
    prompt: str
    scene: Scene
    actions: tuple[str, ...]
    poses: Tensor


@float32_arithmetic()
def draw_drive(seed: int, num_frames: int, variant: int = 0) -> Drive:
    """The drive of a seed; other variants are other drives from the same start in the same scene.

    Raises:
        ValueError: fewer than two frames.
        RuntimeError: no drive of this length stays clear of the scene's solids.
    """
    if num_frames < 2:
        raise ValueError(f"num_frames={num_frames}: a drive has at least 2 frames.")
    prompt = random_prompt(Generator().manual_seed(seed))
    scene = make_scene(seed, prompt)
    generator = Generator().manual_seed(seed + 7_777_777_777 * (variant + 1))
    max_pitch = choose(PITCH, generator)
    for _ in range(TRIES):
        actions = random_actions(num_frames - 1, generator, HOLD, max_pitch)
        poses = action_poses(actions)
        if scene.clearance(poses) > GAP:
            return Drive(seed, prompt, scene, tuple(actions), poses)
    raise RuntimeError(
        f"scene {seed} ({prompt}): {TRIES} drives of {num_frames} frames all ran into a solid; "
        "use shorter drives or another seed."
    )


class BlockWorldClips(Dataset[dict[str, Any]]):
    """Clips of one split, rendered when they are asked for; the same index is the same clip.

    Args:
        split: "train", "val" or "test"; no seed is in two of them.
        count: number of clips.
        num_frames: video frames a clip, T.
        height, width: pixels, multiples of 8.
        intrinsics: fx, fy, cx, cy for 832x480.
        device: where frames are rendered; anything but "cpu" needs a loader without workers.

    An item is a dict: "frames" uint8 [T, height, width, 3], "poses" float64 [T, 4, 4], "actions"
    (keys of the T - 1 frames after the first), "prompt", "seed".

    Raises:
        ValueError: an unknown split, a count that is not in 1..10^9, or drives too short or long.
    """

    def __init__(
        self,
        split: Split,
        count: int,
        num_frames: int = 93,
        height: int = 96,
        width: int = 160,
        intrinsics: Sequence[float] = INTRINSICS,
        device: str = "cpu",
    ) -> None:
        if split not in FIRST_SEED:
            raise ValueError(f"split={split!r}: use one of {', '.join(FIRST_SEED)}.")
        if not 1 <= count <= SPLIT_SIZE:
            raise ValueError(f"count={count}: a split has 1 to {SPLIT_SIZE} clips.")
        check_count("num_frames", num_frames, 2, LONGEST_DRIVE)
        self.split, self.count, self.num_frames = split, count, num_frames
        self.height, self.width, self.device = height, width, device
        self.intrinsics = tuple(float(value) for value in intrinsics)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        drive = self.drive(index)
        frames = self.render(drive)
        return {
            "frames": frames,
            "poses": drive.poses,
            "actions": drive.actions,
            "prompt": drive.prompt,
            "seed": drive.seed,
        }

    def on(self, device: torch.device | str) -> BlockWorldClips:
        """The same clips, rendered on a device."""
        clips = copy(self)
        clips.device = str(device)
        return clips

    def drive(self, index: int, variant: int = 0) -> Drive:
        """The drive of a clip without its frames, or another drive from the same start."""
        if not 0 <= index < self.count:
            raise IndexError(f"clip {index} of {self.count}")
        return draw_drive(FIRST_SEED[self.split] + index, self.num_frames, variant)

    def render(self, drive: Drive) -> Tensor:
        """The frames of a drive at this dataset's size, uint8 [T, height, width, 3]."""
        scene = drive.scene.to(self.device)
        return render(scene, drive.poses, self.intrinsics, self.height, self.width)


def collate_clips(clips: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack the tensors of several clips; their keys and prompts become lists, one entry a clip."""
    return {
        name: default_collate([clip[name] for clip in clips])
        if isinstance(clips[0][name], Tensor)
        else [clip[name] for clip in clips]
        for name in clips[0]
    }
