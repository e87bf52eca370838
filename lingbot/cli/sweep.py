"""What a job knows of the sweep that it belongs to."""

from __future__ import annotations

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode


def searching() -> bool:
    """Whether this is a job of a sweeper that decides by its result what comes next."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    return not str(HydraConfig.get().sweeper._target_).endswith(".BasicSweeper")
