"""Tiny exported worlds that tests load, contradict and break."""

from __future__ import annotations

from pathlib import Path

import torch
from hydra.utils import instantiate

from lingbot.world import save_world
from tests.commands import TINY_DRIVE, composed

# what nobody would get by default: chunk 4, the v2 sampler, the exact schedule, a window
OTHER = [
    "frames_per_chunk=4", "sampler=v2", "schedule=exact", "kv_cache=v2", "text.kernel_size=5",
    "camera.translation_scale=0.5", "fps=12",
]  # fmt: skip
RECORD = {"command": "lingbot-train model.dim=48", "step": 7, "started_from": None, "versions": {}}


def tiny_world(folder: Path) -> Path:
    """A folder of a world with random weights, of other options than any command's defaults."""
    torch.manual_seed(5)
    module = instantiate(composed("generate", [*TINY_DRIVE, *OTHER]).module, _convert_="all")
    module.configure_model()
    save_world(module, folder, RECORD, fps=12)
    return folder
