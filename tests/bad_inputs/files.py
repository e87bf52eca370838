"""Files and folders that are not what they are given for."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image


def make_files(folder: Path) -> Path:
    """Fills a folder with them; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "empty").touch()
    (folder / "nothing").mkdir()
    (folder / "noise").write_bytes(os.urandom(64))
    (folder / "words").write_text("nothing of use\n")
    os.mkfifo(folder / "fifo")
    picture = Image.new("RGB", (96, 64), (200, 40, 40))
    picture.save(folder / "red.png")
    (folder / "cut.png").write_bytes((folder / "red.png").read_bytes()[:60])
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    for name, content in (("pointer", pointer.encode()), ("cut", b"\x00" * 9), ("hollow", b"")):
        world = folder / f"world_{name}"
        world.mkdir()
        (world / "transformer.safetensors").write_bytes(content)
    (folder / "last.ckpt").write_bytes(b"PK\x03\x04")
    shapes: dict[str, np.ndarray] = {
        "nan": np.full((9, 4, 4), np.nan),
        "flat": np.zeros((9, 3)),
        "short": np.zeros((0, 4, 4)),
        "words": np.array(["w"] * 9),
        "sheared": np.ones((9, 4, 4)),
    }
    for name, poses in shapes.items():
        drive = folder / f"drive_{name}"
        drive.mkdir()
        np.save(drive / "poses.npy", poses)
        np.save(drive / "intrinsics.npy", np.array([[520.0, 520.0, 416.0, 240.0]]))
        picture.save(drive / "image.jpg")
        (drive / "prompt.txt").write_text("a red wall")
    return folder
