"""Pictures as people have them, made plain: upright, 8 bits, red, green and blue.

Every file is checked before it is decoded, and only formats of pixels are tried: for some others
Pillow would start programs. What a picture loses on the way is told in remarks.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lingbot.data.file_checks import check_input_file

MOST_PIXELS = 64_000_000
MOST_BYTES = 2**29  # of a file: what that many pixels take with four channels of 16 bits
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
DEEP_FORMATS = ("PNG", "PPM")  # whose pixels in mode "I" have 16 bits
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
GROUND = (255, 255, 255, 255)  # behind what is transparent


class Picture(NamedTuple):
    """A plain picture and what had to be done to make it so."""

    image: Image.Image  # RGB
    remarks: tuple[str, ...] = ()


def load_picture(path: str | Path) -> Picture:
    """An image file as a plain picture; of several frames the first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is no image, is cut off or too large, or holds values that are not
            those of a picture; the message names it.
    """
    path = check_input_file(path, "an image of the first frame", MOST_BYTES)
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of a file is told in our own words
            container = _container(file.read(64))
            return plain_picture(_opened(file, path, container), str(path))
    except OSError as error:  # a decoder's are told apart below
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error


def plain_picture(image: Image.Image, name: str) -> Picture:
    """An image of any mode, upright and in RGB.

    Args:
        image: may still be undecoded.
        name: of the file, or what else it is, for messages.

    Raises:
        ValueError: see `load_picture`.
    """
    width, height = image.size
    if not 0 < width * height <= MOST_PIXELS:
        raise ValueError(
            f"{name} has {width}x{height} pixels: give from 1 to {MOST_PIXELS:,} of them, a "
            "smaller copy will do"
        )
    remarks: list[str] = []
    try:
        if getattr(image, "is_animated", False):
            remarks.append("holds several frames: the first one is taken")
            image.seek(0)
        image.load()
        upright = ImageOps.exif_transpose(image)
    except Exception as error:
        raise _undecodable(name, error) from error
    shallow = _eight_bits(upright, name, image.format in DEEP_FORMATS)
    rgb, transparent = _on_ground(shallow, name)
    if transparent:
        remarks.append(f"is transparent in {transparent:.0%} of its pixels: it is laid on white")
    return Picture(rgb, tuple(remarks))


def _opened(file: BinaryIO, path: Path, container: str | None) -> Image.Image:
    """The image in an open file, not decoded yet."""
    if container == "HEIC" and find_spec("pillow_heif") is not None:
        import_module("pillow_heif").register_heif_opener()
    Image.init()
    try:
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} {_needs(container)}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path} is too large ({error}): give {MOST_PIXELS:,} pixels at the most, a smaller "
            "copy will do"
        ) from error
    except Exception as error:
        raise _undecodable(str(path), error) from error


def _undecodable(name: str, error: Exception) -> ValueError:
    """Whatever a decoder stumbles over is the file's fault."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return ValueError(
        f"{name} cannot be decoded as an image, it may be cut off ({reason}): save or copy it "
        "again, as JPEG or PNG"
    )


def _eight_bits(image: Image.Image, name: str, deep: bool) -> Image.Image:
    """Grey of 16 bits or of floats from 0 to 1, scaled to 8 bits; other modes as they are.

    Pillow's own conversion would cut values off at 255 instead.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and deep):
        values = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        floats = np.asarray(image)
        low, high = float(floats.min()), float(floats.max())  # NaN where one is in it
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"{name} holds floats from {low:g} to {high:g}: scale them to 0 .. 1, or save the "
                "picture with 8 bits"
            )
        return Image.fromarray((floats * 255).round().astype(np.uint8))
    if image.mode == "I":
        raise ValueError(
            f"{name} holds whole numbers of 32 bits, of which no one knows what is white: save it "
            "with 8 or 16 bits"
        )
    return image


def _on_ground(image: Image.Image, name: str) -> tuple[Image.Image, float]:
    """The image in RGB, laid on white, and the share of its pixels that were transparent."""
    try:
        if "transparency" not in image.info and not image.mode.lower().endswith("a"):
            return image.convert("RGB"), 0.0
        layer = image.convert("RGBA")
    except ValueError as error:  # such as CIELAB
        raise ValueError(
            f"{name} has pixels of mode {image.mode}, not of red, green and blue: save it as JPEG "
            "or PNG"
        ) from error
    opaque = layer.getchannel("A").histogram()[255] / (layer.width * layer.height)
    ground = Image.new("RGBA", layer.size, GROUND)
    return Image.alpha_composite(ground, layer).convert("RGB"), 1 - opaque


def _container(header: bytes) -> str | None:
    """HEIC or AVIF by the first bytes of a file; None for everything else."""
    if header[4:8] != b"ftyp":
        return None
    brands = {header[8:12], *(header[i : i + 4] for i in range(16, len(header) - 3, 4))}
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIC" if header[8:12] in HEIC_BRANDS else None


def _needs(container: str | None) -> str:
    """What to do about a file that Pillow does not know."""
    if container == "HEIC":
        return "is a HEIC image: pip install pillow-heif to read it, or save it as JPEG or PNG"
    if container == "AVIF":
        return "is an AVIF image: pip install 'pillow>=11.3' to read it, or save it as JPEG or PNG"
    return (
        "is not an image that can be read: give a JPEG, PNG, WebP or TIFF of 8 or 16 bits a channel"
    )
