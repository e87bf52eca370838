"""What an exported world says of itself: `world.json` beside its weights.

Sizes, chunk, sampler, schedule, camera, cache, text encoder, latents and fps it was trained with,
and what it was trained from. The names are those of the commands' options. Values are plain and
nothing in the file is ever instantiated: a world folder is data, whoever made it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import lingbot
from lingbot.model.tensor_files import check_file

WORLD_FILE = "world.json"
FORMAT = 1
LARGEST = 1_000_000  # bytes
LIBRARIES = ("diffusers", "lightning", "torch")
BYTES, UMT5 = "bytes", "umt5"
LATENTS = ("latents_mean", "latents_std")


@dataclass(frozen=True)
class WorldFile:
    """A world's description, checked.

    Args:
        file: where it was read.
        options: dotted names of options and the values that the world was trained with.
        text: the text encoder: `encoder` is bytes, umt5 or the class of another, and its values.
        latents: mean and deviation of each channel of the latents it lives in.
        trained: what it was trained from, or None.
    """

    file: Path
    options: dict[str, Any]
    text: dict[str, Any]
    latents: dict[str, list[float]]
    trained: dict[str, Any] | None

    @property
    def folder(self) -> Path:
        return self.file.parent


def training_record(
    command: str | None, step: int, started_from: WorldFile | None
) -> dict[str, Any]:
    """What a world was trained from: the command, its step, the versions, the world before it."""
    return {
        "command": command,
        "step": step,
        "started_from": None if started_from is None else started_from.trained,
        "versions": {"lingbot": lingbot.__version__} | {name: version(name) for name in LIBRARIES},
    }


def write_world_file(description: Mapping[str, Any], folder: Path) -> None:
    """Writes a description, lists of numbers on one line each; `read_world_file` takes it back."""
    text = json.dumps(description, indent=2, allow_nan=False)
    text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
    (folder / WORLD_FILE).write_text(text + "\n", encoding="utf-8")


def read_world_file(folder: Path) -> WorldFile | None:
    """The description in a folder, or None where there is none (older or public layouts).

    Raises:
        ValueError: naming the file and what it says that cannot be, or does not say.
    """
    file = folder / WORLD_FILE
    if not file.exists():
        return None
    check_file(file)
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{file} is no description of a world: it has more than 1 MB")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON ({error})") from error
    if not isinstance(found, dict) or not _whole(found.get("format")):
        raise ValueError(f"{file} is no description of a world: it has no format")
    if found["format"] > FORMAT:
        raise ValueError(
            f"{file} has format {found['format']}, and this version reads up to {FORMAT}: "
            "upgrade lingbot-on-lightning"
        )
    return _checked(file, found)


def check_described(
    weights: str | Path, model: Mapping[str, Any], frames_per_chunk: int, height: int, width: int
) -> None:
    """Refuses to drive weights as another world than their folder describes; see `world_options`.

    Raises:
        ValueError: naming what differs.
    """
    world = read_world_file(Path(weights).expanduser())
    if world is None:
        return
    here = {f"model.{name}": value for name, value in model.items()}
    here["model.patch_size"] = list(model["patch_size"])
    here |= {"frames_per_chunk": frames_per_chunk, "camera.height": height, "camera.width": width}
    for name, value in here.items():
        if value != world.options[name]:
            raise ValueError(
                f"{name}={value}: the world in {world.folder} was trained with "
                f"{world.options[name]}"
            )


def _checked(file: Path, found: dict[str, Any]) -> WorldFile:
    options = {}
    for name, fits in OPTIONS.items():
        value: Any = found
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not fits(value):
            raise ValueError(f"{file}: {name} is {value!r}, which is none; export the world again")
        options[name] = value
    text, latents, trained = (found.get(name) for name in ("text", "latents", "trained"))
    if not isinstance(text, dict) or not _known_text(text):
        raise ValueError(f"{file}: text is {text!r}, which describes no text encoder")
    if not isinstance(latents, dict) or not all(_numbers(latents.get(name)) for name in LATENTS):
        raise ValueError(f"{file}: latents need {' and '.join(LATENTS)}, numbers of each channel")
    if trained is not None and not isinstance(trained, dict):
        raise ValueError(f"{file}: trained is {trained!r}, where a record or null belongs")
    return WorldFile(file, options, text, latents, trained)


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_number, value))


def _wholes(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_whole, value))


def _word(value: object) -> bool:
    """A word that the configuration cannot take for a reference to something else."""
    return isinstance(value, str) and re.fullmatch(r"[\w.]+", value) is not None


def _known_text(text: dict[str, Any]) -> bool:
    wanted: dict[str, Callable[[object], bool]] = {"encoder": _word}
    if text.get("encoder") == BYTES:
        wanted |= {"text_dim": _whole, "text_len": _whole, "kernel_size": _whole}
    if text.get("encoder") == UMT5:
        wanted |= {"text_len": _whole, "folder": lambda value: isinstance(value, str)}
    return all(fits(text.get(name)) for name, fits in wanted.items())


SIZES = (
    "dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "text_len", "freq_dim", "in_channels",
    "out_channels",
)  # fmt: skip
OPTIONS: dict[str, Callable[[object], bool]] = {
    **{f"model.{name}": _whole for name in SIZES},
    "model.patch_size": _wholes,
    "model.control": _word,
    "model.eps": _number,
    "frames_per_chunk": _whole,
    "camera.height": _whole,
    "camera.width": _whole,
    "camera.intrinsics": _numbers,
    "camera.translation_scale": lambda value: _number(value) or _word(value),
    "sampler.schedule.shift": _number,
    "sampler.indices": _wholes,
    "schedule": _word,
    "kv_cache.window": _whole,
    "kv_cache.sink": _whole,
    "fps": lambda value: value is None or _whole(value),
}
