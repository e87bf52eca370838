"""First frames: what people bring becomes the picture they see, or is refused in one line."""

from __future__ import annotations

import logging
import struct

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from lingbot.data.first_frame import first_frame_of

HEIGHT, WIDTH = 24, 40
ORIENTATION = 0x0112  # tag of EXIF


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


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_that_was_taken_sideways_is_upright(scene, tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turned = {6: 8, 8: 6}.get(orientation, orientation)  # a mirror image undoes itself
    as_taken = scene.copy()
    undo = Image.Exif()
    undo[ORIENTATION] = turned
    as_taken.info["exif"] = undo.tobytes()
    as_taken = ImageOps.exif_transpose(as_taken)
    as_taken.info.clear()
    path = tmp_path / f"taken.{suffix}"
    lossless = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    as_taken.save(path, exif=exif, **lossless.get(suffix, {}))
    assert np.abs(frame(path).astype(int) - pixels(scene)).mean() < 2
    with Image.open(path) as opened:  # the same picture, opened by the user
        assert np.array_equal(frame(opened), frame(path))


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_grey_of_16_bits_is_what_it_is_in_8(tmp_path, suffix):
    grey = (np.mgrid[:HEIGHT, :WIDTH].sum(0) * 4).astype(np.uint8)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / f"deep.{suffix}")
    assert np.array_equal(frame(tmp_path / f"deep.{suffix}"), np.dstack([grey] * 3))


def test_a_tiff_of_the_other_byte_order_is_what_it_is(tmp_path):
    grey = (np.mgrid[:HEIGHT, :WIDTH].sum(0) * 4).astype(np.uint8)
    values = (grey.astype(np.uint16) * 257).astype(">u2").tobytes()
    tags = [(256, WIDTH), (257, HEIGHT), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1),
            (278, HEIGHT), (279, len(values))]  # fmt: skip
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags)
    header = struct.pack(">2sHI", b"MM", 42, 8 + len(values))
    directory = struct.pack(">H", len(tags)) + entries + bytes(4)
    (tmp_path / "big.tif").write_bytes(header + values + directory)
    assert np.array_equal(frame(tmp_path / "big.tif"), np.dstack([grey] * 3))


def test_floats_from_0_to_1_are_scaled(tmp_path):
    grey = (np.mgrid[:HEIGHT, :WIDTH].sum(0) * 4).astype(np.uint8)
    Image.fromarray(grey.astype(np.float32) / 255).save(tmp_path / "float.tif")
    assert np.array_equal(frame(tmp_path / "float.tif"), np.dstack([grey] * 3))


@pytest.mark.parametrize(
    ("value", "complaint"), [(1.5, "from 0 to 1.5"), (-0.1, "from -0.1 to 0"), (np.nan, "nan")]
)
def test_other_floats_are_refused_with_their_range(tmp_path, value, complaint):
    values = np.zeros((HEIGHT, WIDTH), np.float32)
    values[3, 4] = value
    Image.fromarray(values).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=rf"float\.tif holds floats .*{complaint}"):
        frame(tmp_path / "float.tif")


def test_whole_numbers_of_32_bits_are_refused(tmp_path):
    Image.fromarray(np.full((HEIGHT, WIDTH), 9, np.int32)).save(tmp_path / "int.tif")
    with pytest.raises(ValueError, match="save it with 8 or 16 bits"):
        frame(tmp_path / "int.tif")


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "colour key"])
def test_what_is_transparent_becomes_white_and_is_told_once(kind, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    hidden = np.full((HEIGHT, WIDTH, 4), (0, 0, 0, 0), np.uint8)
    hidden[:, : WIDTH // 4] = (90, 90, 90, 255)
    layer = Image.fromarray(hidden)
    if kind == "LA":
        layer = layer.convert("LA")
    if kind in ("palette", "colour key"):
        flat = layer.convert("RGB")
        layer = flat.convert("P", palette=Image.Palette.ADAPTIVE) if kind == "palette" else flat
        black = layer.getpixel((WIDTH - 1, 0))
        layer.save(tmp_path / "cut.png", transparency=black)
    else:
        layer.save(tmp_path / "cut.png")
    seen = frame(tmp_path / "cut.png")
    assert (seen[:, : WIDTH // 4 - 4] == 90).all()
    assert (seen[:, WIDTH // 4 + 4 :] == 255).all()
    (message,) = caplog.messages
    assert "cut.png is transparent in 75% of its pixels" in message


def test_an_opaque_alpha_channel_changes_nothing_and_is_not_mentioned(scene, caplog):
    caplog.set_level(logging.INFO)
    assert np.array_equal(frame(scene.convert("RGBA")), pixels(scene))
    assert not caplog.messages


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_images_of_other_modes_are_seen_as_pillow_shows_them(scene, mode):
    other = scene.convert(mode)
    assert np.array_equal(frame(other), pixels(other))


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_taken_and_it_is_said(tmp_path, caplog, suffix):
    caplog.set_level(logging.INFO)
    red, blue = (Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ("red", "blue"))
    path = tmp_path / f"moving.{suffix}"
    red.save(path, save_all=True, append_images=[blue, red])
    assert np.abs(frame(path).astype(int) - (255, 0, 0)).max() <= 3
    assert ["holds several frames" in message for message in caplog.messages] == [True]
    with Image.open(path) as opened:
        opened.seek(1)
        assert np.abs(frame(opened).astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 1)])
def test_tiny_and_long_pictures_fill_the_frame(size):
    assert (frame(Image.new("RGB", size, (9, 200, 3))) == (9, 200, 3)).all()


def test_a_frame_that_shows_little_of_its_picture_says_so(caplog):
    caplog.set_level(logging.INFO)
    frame(Image.new("RGB", (WIDTH, 10 * HEIGHT)))
    assert "10% are seen in a frame of 40x24" in caplog.text
    caplog.clear()
    frame(Image.new("RGB", (4 * WIDTH, 3 * HEIGHT)))
    assert not caplog.messages


def test_a_file_an_image_and_an_array_of_any_size_make_the_same_frame(scene, tmp_path):
    large = scene.resize((100, 90), Image.Resampling.BICUBIC)
    large.save(tmp_path / "large.png")
    expected = frame(tmp_path / "large.png")
    assert expected.shape == (HEIGHT, WIDTH, 3)
    for source in (str(tmp_path / "large.png"), large, np.asarray(large), np.asarray(large)[:, :]):
        assert np.array_equal(frame(source), expected)
    mirrored = np.asarray(large)[:, ::-1]  # negative strides
    assert np.abs(frame(mirrored).astype(int) - expected[:, ::-1]).max() <= 1


def test_a_tensor_of_the_frames_size_is_taken_as_it_is(scene):
    tensor = torch.from_numpy(pixels(scene).copy())
    assert first_frame_of(tensor, HEIGHT, WIDTH) is tensor
    assert np.array_equal(frame(pixels(scene)), tensor.numpy())


@pytest.mark.parametrize(
    "source",
    [
        torch.zeros(HEIGHT, WIDTH, 3),
        torch.zeros(HEIGHT, WIDTH + 8, 3, dtype=torch.uint8),
        np.zeros((HEIGHT, WIDTH, 3), np.float32),
        np.zeros((3, HEIGHT, WIDTH), np.uint8),
        np.zeros((HEIGHT, WIDTH), np.uint8),
        np.zeros((0, WIDTH, 3), np.uint8),
        [[[0, 0, 0]]],
        b"photo.png",
        None,
        7,
    ],
    ids=str,
)
def test_what_is_no_first_frame_is_refused_with_what_would_be(source):
    with pytest.raises(ValueError, match=r"the first frame is a.*: give .*(uint8|path)"):
        frame(source)
