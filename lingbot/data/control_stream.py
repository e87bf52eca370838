"""The drive as a DataLoader hands it out: one `Controls` a realtime step.

The stream is sized and iterable: give it to `Trainer.predict` as it is (every rank then drives the
whole of it) or in a `DataLoader(batch_size=None)`. A drive that does not fill its last chunk is
held still to the chunk's end, and the log says so.
"""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, islice
from numbers import Integral
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lingbot.camera.actions import parse_actions
from lingbot.camera.control_tensor import Kind
from lingbot.camera.controls import VIDEO_FRAMES, Controls, frames_in_chunk
from lingbot.camera.poses import LEAST_SCALE, largest_step, relative_poses
from lingbot.data.drive_folder import KEY_FILES, RecordedDrive, read_drive_folder, read_keys
from lingbot.model.checks import check_prompt

log = logging.getLogger(__name__)

MOST_STEPS = 100_000  # most of a day; the controls of all of them are made at once
History = Literal["keep", "recompute"]


class ControlStream:
    """A drive cut into the controls of realtime steps.

    Use `from_actions` or `from_folder`.

    Args:
        steps: the controls in order, at least one.
        first_image: path of the frame that the world starts from, where the drive brings one.
        prompt: words that the world starts from, where the drive brings them.
    """

    def __init__(
        self,
        steps: Sequence[Controls],
        first_image: Path | None = None,
        prompt: str | None = None,
    ) -> None:
        if not steps:
            raise ValueError("a control stream of no steps drives nowhere: give at least one.")
        self.steps = tuple(steps)
        self.first_image = first_image
        self.prompt = prompt

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Controls]:
        return iter(self.steps)

    def __getitem__(self, step: int) -> Controls:
        return self.steps[step]

    @classmethod
    def from_actions(
        cls,
        actions: str | Sequence[str],
        frames_per_chunk: int,
        num_steps: int | None = None,
        prompt_events: Mapping[int, str] | None = None,
        history: History = "keep",
        first_step: int = 0,
    ) -> "ControlStream":
        """Cut an action string, or the keys of each video frame, into steps.

        Args:
            actions: "w-24,jw-24", or one string of held keys a video frame.
            frames_per_chunk: latent frames in a chunk.
            num_steps: drive this many steps, cutting off or holding still; None drives to the end.
            prompt_events: new prompt by the step it comes at.
            history: what the prompt events do with the caches of the past.
            first_step: realtime step of the session at which the drive goes on.

        Raises:
            ValueError: bad actions, no steps, a prompt event outside the drive.
        """
        keys = parse_actions(actions) if isinstance(actions, str) else list(actions)
        lengths = chunk_lengths(len(keys), frames_per_chunk, num_steps, first_step)
        held = frames_held(len(keys), lengths, "actions")
        frames = iter(keys + [""] * sum(held))
        events = check_events(prompt_events, len(lengths))
        steps: list[Controls] = []
        for step, length in enumerate(lengths):
            part, event = tuple(islice(frames, length)), events.get(step)
            steps.append(Controls(part, prompt=event, history=history, held=held[step]))
        return cls(steps)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        frames_per_chunk: int,
        num_steps: int | None = None,
        prompt_events: Mapping[int, str] | None = None,
        history: History = "keep",
        kind: Kind = "cam",
    ) -> "ControlStream":
        """Cut a recorded drive in the published example format into steps.

        The folder holds `poses.npy` (camera-to-world, OpenCV axes, any unit), `intrinsics.npy`,
        `image.jpg` and `prompt.txt`; the last two become `first_image` and `prompt`. For models
        with control of the kind "act" it also holds `action.npy` or `wasd_action.npy`. The other
        arguments are those of `from_actions`.

        Raises:
            FileNotFoundError: the folder or one of its files is missing.
            ValueError: a file does not hold what it should.
        """
        drive = read_drive_folder(Path(folder))
        lengths = chunk_lengths(len(drive.poses) - 1, frames_per_chunk, num_steps)
        held = frames_held(len(drive.poses) - 1, lengths, f"frames of {drive.folder}")
        poses = hold_last(drive.poses, sum(held))[: 1 + sum(lengths)]
        keys = iter(keys_at_poses(drive, kind, sum(held)))
        longest = longest_step(poses, drive.folder)
        events = check_events(prompt_events, len(lengths))
        steps: list[Controls] = []
        for step, length in enumerate(lengths):
            length += step == 0  # the first frame of all has a pose too
            part, poses = poses[:length].clone(), poses[length:]
            steps.append(
                Controls(
                    poses=part,
                    prompt=events.get(step),
                    history=history,
                    held=held[step],
                    intrinsics=drive.intrinsics,
                    largest_step=longest,
                    pose_keys=tuple(islice(keys, length)) if kind == "act" else None,
                )
            )
        return cls(steps, first_image=drive.image, prompt=drive.prompt)


def chunk_lengths(
    num_frames: int, frames_per_chunk: int, num_steps: int | None, first_step: int = 0
) -> list[int]:
    """Video frames that each step adds to the first one, in steps enough for `num_frames`."""
    if frames_per_chunk < 1:
        raise ValueError(f"frames_per_chunk={frames_per_chunk}: at least 1 is needed.")
    first = frames_in_chunk(first_step, frames_per_chunk)
    later = frames_in_chunk(first_step + 1, frames_per_chunk)
    if num_steps is None:
        num_steps = 1 + math.ceil(max(num_frames - first, 0) / later)
    if not 1 <= num_steps <= MOST_STEPS:
        raise ValueError(
            f"num_steps={num_steps}: a drive takes 1 to {MOST_STEPS:,} realtime steps."
        )
    return [first] + [later] * (num_steps - 1)


def frames_held(num_frames: int, lengths: Sequence[int], what: str) -> list[int]:
    """How many frames of each step are held still; log where a drive is lengthened or cut off."""
    total = sum(lengths)
    if num_frames < total:
        log.info(
            "The drive's %d %s do not fill the %d video frames of %d realtime steps: the camera is "
            "held still for the last %d.",
            *(num_frames, what, total, len(lengths), total - num_frames),
        )
    elif num_frames > total:
        log.info(
            "%d realtime steps take %d of the drive's %d %s: the rest is not driven.",
            *(len(lengths), total, num_frames, what),
        )
    ends = accumulate(lengths)
    return [min(max(end - num_frames, 0), n) for end, n in zip(ends, lengths, strict=True)]


def hold_last(poses: Tensor, count: int) -> Tensor:
    """Repeat the last of poses [N, 4, 4] `count` times, [N + count, 4, 4]."""
    return torch.cat([poses, poses[-1:].expand(count, 4, 4)])


def keys_at_poses(drive: RecordedDrive, kind: Kind, held: int) -> tuple[str, ...]:
    """Keys of a recorded drive's poses and of `held` more at its end, where `kind` needs them."""
    if kind == "act":
        return (*read_keys(drive.folder, len(drive.poses)), *("",) * held)
    for name in KEY_FILES:
        if (drive.folder / name).exists():
            log.info("%s is not read: the drive follows poses.npy.", drive.folder / name)
    return ()


def longest_step(poses: Tensor, folder: Path) -> float:
    """Longest translation between the latent frames of a recorded drive [N, 4, 4], in its unit."""
    longest = largest_step(relative_poses(poses[::VIDEO_FRAMES]))
    if longest < LEAST_SCALE:  # as published it would become 1, and rounding errors with it
        log.info("%s moves by less than %g: its camera stands still.", folder, LEAST_SCALE)
        return 1.0
    return longest


def check_events(events: Mapping[int, str] | None, num_steps: int) -> dict[int, str]:
    """Return the prompt events by step, or raise ValueError where one lies outside the drive."""
    if events is not None and not isinstance(events, Mapping):
        raise ValueError(f"prompt_events={events!r}: give prompts by step, as in {{3: 'night'}}")
    checked: dict[int, str] = {}
    for step, prompt in (events or {}).items():
        whole = isinstance(step, Integral) and not isinstance(step, bool)
        if not whole or not 0 <= step < num_steps:
            raise ValueError(
                f"the prompt event at step {step!r} lies outside the drive: its steps are "
                f"0 .. {num_steps - 1}."
            )
        checked[int(step)] = check_prompt(prompt, f"the prompt event at step {step}")
    return checked
