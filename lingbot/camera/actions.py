"""Keys to camera poses: the rules by which a drive is spoken.

A drive is written `w-10,iw-15,none-5`: the keys that are held and for how many video frames.
w, s move along the heading and a, d sideways, on the ground plane; i, k pitch the camera up and
down, j, l turn it left and right. The rules are LingBot-World's; the same ones drive a session,
the ground truth beside it, and the random drives that training data is made of.
"""

import math
import re
from collections.abc import Iterable

import torch
from torch import Generator, Tensor

from lingbot.camera.poses import check_poses

KEYS = "wasdijkl"
MOVE_KEYS = "wasd"
IDLE = "none"

MOVE_PER_FRAME = 0.05
TURN_PER_FRAME = 2.0  # degrees
PITCH_LIMIT = 85.0  # degrees either way; a key press that would lead beyond does nothing

# The published rule divides a direction by its length plus this, so a step is 5e-8 short of 0.05.
LENGTH_GUARD = 1e-6
LONGEST_DRIVE = 1_000_000  # frames, 17 hours at 16 fps: beyond, the count is surely a typing error

SEGMENT = re.compile(r"(?P<keys>[^\s-]+)-(?P<count>[0-9]+)")
EXAMPLE = 'write the held keys and a count of video frames, as in "w-10,iw-15,none-5"'

MOVES = ("w", "w", "w", "w", "s", "a", "d", "")
TURNS = ("", "j", "j", "l", "l", "i", "k")


def parse_actions(text: str) -> list[str]:
    """Read an action string into one string of held keys a video frame ("" where none is held).

    Raises:
        ValueError: nothing in the string, an unknown or repeated key, a missing or zero count.
    """
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"the action string is {text!r}: it holds no action; {EXAMPLE}.")
    actions: list[str] = []
    for segment in text.split(","):
        match = SEGMENT.fullmatch(segment.strip())
        if match is None:
            raise ValueError(
                f"segment {segment.strip()!r} of the actions {text!r} is not keys, a hyphen and a "
                f"whole positive count; {EXAMPLE}."
            )
        keys = "" if match["keys"] == IDLE else check_keys(match["keys"])
        # The digits are counted first: Python refuses to read a number of thousands of digits.
        count = int(match["count"]) if len(match["count"]) < 10 else LONGEST_DRIVE + 1
        if count == 0:
            raise ValueError(
                f"segment {segment.strip()!r} lasts no frame: give at least 1, or drop it."
            )
        if len(actions) + count > LONGEST_DRIVE:
            raise ValueError(
                f"segment {segment.strip()!r} makes the drive longer than {LONGEST_DRIVE} video "
                "frames: give a smaller count, or drive step by step."
            )
        actions += [keys] * count
    return actions


def check_keys(keys: str) -> str:
    """Return the held keys, or raise ValueError where one is unknown or named twice."""
    unknown = sorted(set(keys) - set(KEYS))
    if unknown:
        raise ValueError(
            f"unknown key {unknown[0]!r} in {keys!r}: the keys are {', '.join(KEYS)} "
            f'(lower case), and "{IDLE}" for no key.'
        )
    if len(set(keys)) != len(keys):
        raise ValueError(f"a key is named twice in {keys!r}: name each held key once.")
    return keys


class CameraDriver:
    """A camera moved by keys, one video frame at a time.

    Args:
        pose: camera-to-world pose to start from, [4, 4]; identity when not given.
    """

    def __init__(self, pose: Tensor | None = None) -> None:
        self.pose = torch.eye(4, dtype=torch.float64) if pose is None else pose.double().clone()
        check_poses(self.pose[None], "the start pose")
        rise = float(-self.pose[1, 2].clamp(-1.0, 1.0))  # y points down
        self.pitch = math.degrees(math.asin(rise))

    def step(self, keys: str) -> Tensor:
        """Hold these keys for one video frame; return the new pose, [4, 4] float64."""
        check_keys(keys)
        turn = self._pitch_by(TURN_PER_FRAME * balance(keys, "i", "k"))
        yaw = TURN_PER_FRAME * balance(keys, "l", "j")
        rotation = rotation_y(yaw) @ self.pose[:3, :3] @ rotation_x(turn)
        forward, right = on_ground(rotation[:, 2]), on_ground(rotation[:, 0])
        move = balance(keys, "w", "s") * forward + balance(keys, "d", "a") * right
        pose = self.pose.clone()
        pose[:3, :3] = rotation
        pose[:3, 3] += MOVE_PER_FRAME * move
        self.pose = pose
        return pose.clone()

    def _pitch_by(self, degrees: float) -> float:
        """Add to the pitch unless that leads beyond the limit; return what was really added."""
        reached = self.pitch + degrees
        if abs(reached) > PITCH_LIMIT and abs(reached) > abs(self.pitch):
            return 0.0
        self.pitch = reached
        return degrees


def action_poses(actions: Iterable[str], start: Tensor | None = None) -> Tensor:
    """Poses of a drive, the start first: N frames of held keys to [N + 1, 4, 4] float64."""
    driver = CameraDriver(start)
    return torch.stack([driver.pose.clone(), *(driver.step(keys) for keys in actions)])


def random_actions(
    num_frames: int,
    generator: Generator,
    hold: tuple[int, int] = (6, 24),
    max_pitch: float = 20.0,
) -> list[str]:
    """Draw a drive: keys held for a random time each, now and then none at all.

    Args:
        num_frames: length of the drive in video frames.
        generator: source of every choice; the same state draws the same drive.
        hold: shortest and longest time that one choice of keys is held, in frames.
        max_pitch: degrees; i and k are let go of where the drive would look further up or down.
    """
    shortest, longest = hold
    if num_frames < 1 or not 1 <= shortest <= longest:
        raise ValueError(
            f"num_frames={num_frames} and hold={hold}: a drive needs at least one frame and "
            "1 <= shortest <= longest."
        )

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    actions: list[str] = []
    pitch = 0.0
    while len(actions) < num_frames:
        move, turn = MOVES[draw(0, len(MOVES) - 1)], TURNS[draw(0, len(TURNS) - 1)]
        for _ in range(draw(shortest, longest)):
            reached = pitch + TURN_PER_FRAME * balance(turn, "i", "k")
            turn = turn if abs(reached) <= max_pitch else ""
            pitch = reached if turn else pitch
            actions.append(move + turn)
    return actions[:num_frames]


def balance(keys: str, plus: str, minus: str) -> int:
    """+1, -1, or 0 where neither or both of two opposite keys are held."""
    return (plus in keys) - (minus in keys)


def on_ground(direction: Tensor) -> Tensor:
    """Project a direction [3] on the ground plane (y = 0) and give it the length 1."""
    flat = direction * direction.new_tensor([1.0, 0.0, 1.0])
    return flat / (flat.norm() + LENGTH_GUARD)


def rotation_x(degrees: float) -> Tensor:
    """Rotation about the camera's x axis, [3, 3] float64; positive looks up."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[1, 0, 0], [0, c, -s], [0, s, c]], dtype=torch.float64)


def rotation_y(degrees: float) -> Tensor:
    """Rotation about the world's vertical, [3, 3] float64; positive turns right."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
