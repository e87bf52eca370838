"""Numbers to a JSON file, whole or not at all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lingbot.checkpoints.atomic import atomic_file


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write plain values; numbers that are not finite, which JSON does not know, become null."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
