"""A recorded drive in the published example format: `poses.npy`, `intrinsics.npy`, `image.jpg`,
`prompt.txt`.

Every file is checked when it is read, long before a model is loaded: an error names the file, what
is in it and what should be.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from lingbot.camera.plucker import Intrinsics, check_intrinsics
from lingbot.camera.poses import check_poses

log = logging.getLogger(__name__)

FILES = {
    "poses.npy": "camera-to-world matrices [N, 4, 4], one a video frame",
    "intrinsics.npy": "fx, fy, cx, cy for 832x480, [1, 4] or [N, 4]",
    "image.jpg": "the first frame",
    "prompt.txt": "what the world looks like, in UTF-8",
}


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
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing: it should hold {content}. The folder has "
                f"{', '.join(sorted(path.name for path in folder.iterdir())) or 'no files'}."
            )
    poses = read_numbers(folder / "poses.npy")
    check_poses(poses, str(folder / "poses.npy"))
    if (folder / "action.npy").exists():
        log.info("%s is not read: the drive follows poses.npy.", folder / "action.npy")
    return RecordedDrive(
        folder=folder,
        poses=poses,
        intrinsics=read_intrinsics(folder / "intrinsics.npy", len(poses)),
        image=check_image(folder / "image.jpg"),
        prompt=read_prompt(folder / "prompt.txt"),
    )


def read_numbers(path: Path) -> Tensor:
    """Load a .npy file of numbers as float64, whatever its shape."""
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as a .npy file of numbers: it should hold {FILES[path.name]}; "
            "write it with numpy.save."
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        found = getattr(array, "dtype", type(array).__name__)
        raise ValueError(
            f"{path} holds {found}: real numbers are needed, namely {FILES[path.name]}."
        )
    return torch.from_numpy(array.astype(np.float64))


def read_intrinsics(path: Path, num_poses: int) -> Intrinsics:
    """Read the intrinsics of the first frame; the published code uses them for all frames."""
    rows = read_numbers(path)
    if rows.ndim != 2 or rows.shape[1] != 4 or rows.shape[0] not in (1, num_poses):
        raise ValueError(
            f"{path} has shape {list(rows.shape)}: fx, fy, cx, cy for 832x480 are needed, once, "
            f"[1, 4], or for each of the {num_poses} poses, [{num_poses}, 4]."
        )
    if not bool(torch.isfinite(rows).all()):
        raise ValueError(f"{path} holds values that are not finite: every entry must be a number.")
    if bool((rows != rows[0]).any()):
        log.info("%s changes along the drive: the first row is used throughout.", path)
    try:
        return check_intrinsics(rows[0].tolist())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_image(path: Path) -> Path:
    """Return the path of an image that can be decoded."""
    try:
        with Image.open(path) as image:
            image.load()
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(
            f"{path} cannot be decoded as an image ({error}): give a JPEG of the first frame."
        ) from error
    return path


def read_prompt(path: Path) -> str:
    """Read the words of a prompt file, without the space around them."""
    try:
        prompt = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}): save the prompt as UTF-8.") from error
    if not prompt:
        raise ValueError(f"{path} is empty: write what the world looks like.")
    return prompt
