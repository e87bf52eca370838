"""Image files: read with limits, or refused by name in one line."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lingbot.data.first_frame import first_frame_of, read_image
from lingbot.data.image_file import MOST_PIXELS

HEIGHT, WIDTH = 24, 40


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """No two quarters alike, no symmetry."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    values = np.stack([6 * x, 10 * y, 3 * (x + y)], -1) % 256
    return Image.fromarray(values.astype(np.uint8))


def frame(source: object) -> np.ndarray:
    return first_frame_of(source, HEIGHT, WIDTH).numpy()  # type: ignore[arg-type]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def png(rows: np.ndarray, depth: int, colour: int) -> bytes:
    """A PNG with rows [H, bytes] of a bit depth and a colour type that Pillow does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, 0)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


def test_colour_of_16_bits_is_what_it_is_in_8(scene, tmp_path):
    deep = (pixels(scene).astype(np.uint16) * 257).astype(">u2")
    (tmp_path / "deep.png").write_bytes(png(deep.reshape(HEIGHT, -1).view(np.uint8), 16, 2))
    assert np.array_equal(frame(tmp_path / "deep.png"), pixels(scene))


@pytest.mark.parametrize("side", [8001, 20_000])  # below and beyond Pillow's own limit
def test_a_picture_beyond_the_limit_is_named_and_not_decoded(tmp_path, side):
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = png(np.zeros((1, 1), np.uint8), 8, 0)
    small = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 0, 0, 0, 0)
    checked = [struct.pack(">I", zlib.crc32(b"IHDR" + part)) for part in (small, header)]
    (tmp_path / "bomb.png").write_bytes(
        bomb.replace(b"IHDR" + small + checked[0], b"IHDR" + header + checked[1])
    )
    with pytest.raises(ValueError, match=rf"bomb\.png .*{MOST_PIXELS:,}") as refusal:
        frame(tmp_path / "bomb.png")
    assert "\n" not in str(refusal.value)


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    with (tmp_path / "endless.webp").open("wb") as file:
        file.write(b"RIFF\0\0\0\0WEBPVP8 ")
        file.truncate(2**40)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"endless\.webp has 1,099,511,627,776 bytes"):
        frame(tmp_path / "endless.webp")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp"])
def test_a_picture_that_is_cut_off_is_named(scene, tmp_path, suffix):
    scene.save(tmp_path / f"whole.{suffix}")
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    (tmp_path / f"half.{suffix}").write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ValueError, match=rf"half\.{suffix} cannot be decoded .* cut off"):
        frame(tmp_path / f"half.{suffix}")


@pytest.mark.parametrize("suffix", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_whatever_is_wrong_inside_a_file_it_is_named_in_one_line(scene, tmp_path, suffix):
    buffer = io.BytesIO()
    scene.save(buffer, suffix)
    draw = random.Random(suffix)
    complaints = []
    for _ in range(60):
        data = bytearray(buffer.getvalue())
        for _ in range(draw.choice([1, 3, 20])):
            data[draw.randrange(min(len(data), draw.choice([60, 10_000])))] = draw.randrange(256)
        end = draw.choice([len(data), draw.randrange(len(data))])
        (tmp_path / "broken").write_bytes(data[:end])
        try:
            assert frame(tmp_path / "broken").shape == (HEIGHT, WIDTH, 3)
        except ValueError as error:
            complaints.append(str(error))
    assert len(complaints) > 5
    assert all(str(tmp_path / "broken") in line and "\n" not in line for line in complaints)


@pytest.mark.parametrize(
    ("brands", "remedy"),
    [(b"heic\0\0\0\0mif1heic", "pip install pillow-heif"), (b"avif\0\0\0\0avifmif1", "AVIF|avif")],
)
def test_what_phones_write_is_read_or_said_how_to_get(tmp_path, monkeypatch, brands, remedy):
    monkeypatch.setattr("lingbot.data.image_file.find_spec", lambda name: None)
    monkeypatch.setattr("lingbot.data.image_file.FORMATS", ("JPEG", "PNG"))
    (tmp_path / "photo").write_bytes(b"\0\0\0\x18ftyp" + brands + bytes(100))
    with pytest.raises(ValueError, match=rf"photo is an? .*({remedy}).* or save it as JPEG or PNG"):
        frame(tmp_path / "photo")


def test_formats_for_which_pillow_starts_programs_are_not_tried(tmp_path):
    (tmp_path / "page.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ValueError, match=r"page\.jpg is not an image that can be read"):
        frame(tmp_path / "page.jpg")


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, complaint in (
        (tmp_path / "pipe", "is a pipe"),
        (Path("/dev/zero"), "a device"),
        (tmp_path, "is a folder"),
        ("", "give that of a file"),
        ("a\0b", "null byte"),
    ):
        with pytest.raises(ValueError, match=complaint):
            read_image(path, HEIGHT, WIDTH)
    with pytest.raises(FileNotFoundError, match=r"no file .*nowhere\.png"):
        frame(tmp_path / "nowhere.png")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"empty\.png is not an image"):
        frame(tmp_path / "empty.png")


def test_a_file_without_permission_is_named(scene, tmp_path, monkeypatch):
    scene.save(tmp_path / "secret.png")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may read all
    with pytest.raises(ValueError, match=r"secret\.png may not be read.*chmod"):
        frame(tmp_path / "secret.png")
