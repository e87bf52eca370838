"""A golden file and a comparison with one of its tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lingbot.model.tensor_files import check_file

WHENCE = (
    "golden files are computed by the published LingBot-World code and do not come with this "
    "package: `lingbot.golden` says what one holds"
)


class UnusableFile(Exception):
    """A file that parity cannot be checked with, and why."""


@dataclass(frozen=True)
class Comparison:
    """Greatest difference from a golden tensor, absolute and relative to its greatest value."""

    tensor: str
    max_error: float
    relative_error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.max_error <= self.tolerance  # False for NaN

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.ok}


def compare(name: str, ours: Tensor, golden: Tensor, tolerance: float) -> Comparison:
    """Compares in float64; shapes that differ count as an infinite error."""
    if ours.shape != golden.shape:
        return Comparison(name, float("inf"), float("inf"), tolerance)
    difference = (ours.double().cpu() - golden.double()).abs().max().item()
    scale = golden.double().abs().max().item()
    return Comparison(name, difference, difference / scale if scale else difference, tolerance)


class GoldenFile:
    """Tensors and metadata of a golden file, read when asked for.

    Raises:
        UnusableFile: when the file is missing, not safetensors or without metadata.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            check_file(path)
        except FileNotFoundError as error:
            raise UnusableFile(f"no such file; {WHENCE}") from error
        except (ValueError, OSError) as error:
            raise UnusableFile(str(error)) from error
        try:
            self._file = safe_open(path, "pt")
        except SafetensorError as error:
            raise UnusableFile(f"not a safetensors file ({error})") from error
        self.names = set(self._file.keys())
        self.metadata: dict[str, str] = self._file.metadata() or {}
        if not self.metadata:
            raise UnusableFile(f"it has no metadata, so its sizes are unknown; {WHENCE}")

    @property
    def is_causal(self) -> bool:
        return "num_layers" in self.metadata

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.names:
            raise UnusableFile(f"tensor {name!r} is missing")
        return self._file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the file's header."""
        if name not in self.names:
            raise UnusableFile(f"tensor {name!r} is missing")
        return tuple(self._file.get_slice(name).get_shape())

    def number(self, name: str) -> int:
        """A whole number of the metadata."""
        text = self.text(name)
        try:
            return int(text)
        except ValueError as error:
            raise UnusableFile(f"metadata {name}={text!r} is not a whole number") from error

    def text(self, name: str) -> str:
        if name not in self.metadata:
            raise UnusableFile(f"metadata {name!r} is missing")
        return self.metadata[name]

    def state_dict(self) -> dict[str, Tensor]:
        """The model's weights under their published names."""
        return {
            name.removeprefix("model."): self[name]
            for name in sorted(self.names)
            if name.startswith("model.")
        }


class WorstOf:
    """Collects comparisons of the slices of one golden tensor into a single row."""

    def __init__(self, name: str, golden: Tensor, tolerance: float) -> None:
        self.name, self.golden, self.tolerance = name, golden, tolerance
        self.ours = torch.full_like(golden, torch.nan)  # what is never given stays NaN and fails

    def give(self, index: Any, ours: Tensor) -> None:
        self.ours[index] = ours.to(self.ours)

    def row(self) -> Comparison:
        return compare(self.name, self.ours, self.golden, self.tolerance)
