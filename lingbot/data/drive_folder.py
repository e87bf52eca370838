"""A recorded drive in the published example format: `poses.npy`, `intrinsics.npy`, `image.jpg`,
`prompt.txt`, and the held keys in `action.npy` or `wasd_action.npy` for models with act control.

Poses are camera-to-world with OpenCV axes (x right, y down, z forward), in any unit. Every file is
checked when it is read, long before a model is loaded: an error names the file, what is in it and
what should be.
"""

import codecs
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lingbot.camera.actions import LONGEST_DRIVE, MOVE_KEYS
from lingbot.camera.plucker import GIVEN_FOR, Intrinsics, check_intrinsics
from lingbot.camera.poses import check_poses
from lingbot.data.array_file import TRUTHS, read_array
from lingbot.data.file_checks import check_input_file
from lingbot.data.image_file import load_picture
from lingbot.model.checks import check_prompt

log = logging.getLogger(__name__)

FILES = {
    "poses.npy": "camera-to-world matrices [N, 4, 4] with OpenCV axes (x right, y down, z "
    "forward), one a video frame",
    "intrinsics.npy": "fx, fy, cx, cy for 832x480, [1, 4] or [N, 4]",
    "image.jpg": "the first frame",
    "prompt.txt": "what the world looks like, in UTF-8",
}
KEY_FILES = ("action.npy", "wasd_action.npy")  # the published code reads the first
KEYS = "which of the keys w, a, s, d are held (0 or 1), [N, 4], one row a pose"

MOST_POSES = LONGEST_DRIVE + 1
FARTHEST = 1e9  # units from the origin; float64 still tells a thousandth of a unit there
OFF_CENTRE = 0.1  # of the picture's width and height, that the principal point may be off
LONGEST_PROMPT = 2**16  # bytes
NAMES_SHOWN = 10
OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}  # fmt: skip


@dataclass(frozen=True)
class RecordedDrive:
    """What a drive folder holds."""

    folder: Path
    poses: Tensor  # [N, 4, 4] float64, camera-to-world
    intrinsics: Intrinsics  # fx, fy, cx, cy for 832x480
    image: Path
    prompt: str


def read_drive_folder(folder: Path) -> RecordedDrive:
    """Read and check the four files of a recorded drive.

    Raises:
        FileNotFoundError: the folder or one of its files is missing.
        ValueError: a file cannot be read, or does not hold what it should.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder: a recorded drive is a folder with {', '.join(FILES)}."
        )
    for name, content in FILES.items():
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder / name} is missing: it should hold {content}. The folder has "
                f"{_names(folder)}."
            )
    poses = read_poses(folder / "poses.npy")
    load_picture(folder / "image.jpg")
    return RecordedDrive(
        folder=folder,
        poses=poses,
        intrinsics=read_intrinsics(folder / "intrinsics.npy", len(poses)),
        image=folder / "image.jpg",
        prompt=read_prompt(folder / "prompt.txt"),
    )


def read_poses(path: Path) -> Tensor:
    """Read camera-to-world poses, [N, 4, 4] float64."""

    def check_shape(shape: tuple[int, ...]) -> None:
        if len(shape) != 3 or shape[1:] != (4, 4) or not 1 <= shape[0] <= MOST_POSES:
            raise ValueError(
                f"{path} has shape {list(shape)}: {FILES[path.name]}, are needed, from 1 to "
                f"{MOST_POSES:,} of them."
            )

    poses = torch.from_numpy(read_array(path, FILES[path.name], check_shape))
    check_poses(poses, str(path))
    if (farthest := float(poses[:, :3, 3].abs().max())) > FARTHEST:
        raise ValueError(
            f"{path} goes {farthest:g} units from the origin: take a larger unit, {FARTHEST:g} at "
            "the most."
        )
    return poses


def read_intrinsics(path: Path, num_poses: int) -> Intrinsics:
    """Read the intrinsics of the first frame; the published code uses them for all frames."""

    def check_shape(shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] != 4 or shape[0] not in (1, num_poses):
            raise ValueError(
                f"{path} has shape {list(shape)}: fx, fy, cx, cy for 832x480 are needed, once, "
                f"[1, 4], or for each of the {num_poses} poses, [{num_poses}, 4]."
            )

    rows = read_array(path, FILES[path.name], check_shape)
    if not np.isfinite(rows).all():
        raise ValueError(f"{path} holds values that are not finite: every entry must be a number.")
    if (rows != rows[0]).any():
        log.info("%s changes along the drive: the first row is used throughout.", path)
    try:
        if min(rows[0][:2]) > 0:  # first, since it says how normalised ones are scaled
            check_centred(rows[0].tolist())
        return check_intrinsics(rows[0].tolist())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_centred(intrinsics: Sequence[float]) -> None:
    """Refuses intrinsics whose principal point is far from the middle of the size they are for.

    Raises:
        ValueError: they are those of a picture of another size; with what they would be here.
    """
    fx, fy, cx, cy = intrinsics
    height, width = GIVEN_FOR
    if abs(cx / width - 0.5) <= OFF_CENTRE and abs(cy / height - 0.5) <= OFF_CENTRE:
        return
    remedy = "give fx, fy, cx, cy in pixels of that size"
    if cx > 0 and cy > 0:
        across, down = width / (2 * cx), height / (2 * cy)
        scaled = f"[{fx * across:g}, {fy * down:g}, {width / 2:g}, {height / 2:g}]"
        remedy = f"those of a picture of {2 * cx:g}x{2 * cy:g} would be {scaled}; {remedy}"
    raise ValueError(
        f"the principal point [{cx:g}, {cy:g}] is far from the middle of {width}x{height}, "
        f"[{width / 2:g}, {height / 2:g}]: {remedy}."
    )


def read_keys(folder: Path, num_poses: int) -> tuple[str, ...]:
    """Read the move keys that are held at each pose, as act control takes them.

    Row n belongs to pose n, as in the published code. A file with one row less than there are
    poses, of a trajectory made of its rows, holds no key at the last pose.

    Raises:
        FileNotFoundError: there is no file of keys.
        ValueError: it does not hold what it should.
    """
    there = [folder / name for name in KEY_FILES if (folder / name).exists()]
    if not there:
        raise FileNotFoundError(
            f"{folder / KEY_FILES[0]} (or {KEY_FILES[1]}) is missing: act control needs {KEYS}. "
            f"The folder has {_names(folder)}."
        )
    rows = _read_rows(there[0], num_poses)
    if there[1:] and not np.array_equal(rows, _read_rows(there[1], num_poses)):
        log.info("%s says otherwise than %s: the latter is used.", there[1], there[0].name)
    keys = ["".join(key for key, held in zip(MOVE_KEYS, row, strict=True) if held) for row in rows]
    return (*keys, *("",) * (num_poses - len(keys)))


def _read_rows(path: Path, num_poses: int) -> np.ndarray:
    def check_shape(shape: tuple[int, ...]) -> None:
        if len(shape) != 2 or shape[1] != len(MOVE_KEYS) or num_poses - shape[0] not in (0, 1):
            raise ValueError(
                f"{path} has shape {list(shape)}: for {num_poses} poses [{num_poses}, 4] is "
                f"needed, {KEYS}."
            )

    rows = read_array(path, KEYS, check_shape, TRUTHS)
    if not np.isin(rows, (0, 1)).all():
        raise ValueError(f"{path} holds other values than 0 and 1: it should say {KEYS}.")
    return rows


def read_prompt(path: Path) -> str:
    """Read the words of a prompt file, without a byte order mark or the space around them."""
    data = check_input_file(path, FILES["prompt.txt"], LONGEST_PROMPT).read_bytes()
    for mark, encoding in OTHER_ENCODINGS.items():
        if data.startswith(mark):
            raise ValueError(f"{path} is {encoding}, not UTF-8: save the prompt as UTF-8.")
    try:
        return check_prompt(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save the prompt as UTF-8.") from error


def _names(folder: Path) -> str:
    """Names of what is in a folder, the first of many."""
    names = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(names[:NAMES_SHOWN]) or "no files"
    more = len(names) - NAMES_SHOWN
    return f"{shown} and {more:,} more" if more > 0 else shown
