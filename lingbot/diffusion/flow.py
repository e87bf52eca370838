"""Flow matching: the schedule and the conversions between noise, flow and clean latents.

x_s = (1 - s) x0 + s n and the model predicts v = n - x0 (arXiv:2210.02747). Levels are
s' = shift * s / (1 + (shift - 1) * s) for s = linspace(0.999, 0, 1001) without its last point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Kind = Literal["published", "exact"]
STEPS = 1000


@dataclass(frozen=True)
class Level:
    """A rung of the few-step ladder.

    timestep: what the model is told. x0_sigma: level its prediction is read at.
    renoise_sigma: level the previous rung's clean latents are noised to.
    """

    timestep: float
    x0_sigma: float
    renoise_sigma: float


class FlowSchedule:
    """The 1000 levels of a shift.

    Args:
        shift: 10 at 14 B, 5 at 1.3 B and in the v1 Python default.
        kind: `published` looks levels up by the floored timestep as the published code does: where
            several share one, a prediction is read at the first and noise is added at the second.
            `exact` keeps fractional timesteps, so no two levels are confused.

    Raises:
        ValueError: for a shift that is not positive or an unknown kind.
    """

    def __init__(self, shift: float = 5.0, kind: str = "published") -> None:
        if shift <= 0:
            raise ValueError(f"schedule shift={shift} must be positive (5 and 10 are published)")
        if kind not in get_args(Kind):
            raise ValueError(f"schedule={kind!r}: choose one of {get_args(Kind)}")
        self.shift, self.kind = shift, kind
        s = torch.linspace(0.999, 0, STEPS + 1, dtype=torch.float64)
        self.sigmas = shift * s / (1 + (shift - 1) * s)  # [1001], the last is 0
        exact = STEPS * self.sigmas[:-1]
        self.timesteps = exact.floor() if kind == "published" else exact

    def level(self, index: int) -> Level:
        """The rung at `index` of the schedule.

        Raises:
            ValueError: when the index is outside 0..999.
        """
        if not 0 <= index < STEPS:
            raise ValueError(f"schedule index {index} is outside 0..{STEPS - 1}")
        timestep = float(self.timesteps[index])
        ties = torch.nonzero(self.timesteps == self.timesteps[index]).flatten().tolist()
        first, second = ties[0], ties[min(1, len(ties) - 1)]
        return Level(timestep, float(self.sigmas[first]), float(self.sigmas[second]))


def add_noise(clean: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """x_s = (1 - s) x0 + s n."""
    return (1 - sigma) * clean + sigma * noise


def clean_from_flow(noisy: Tensor, flow: Tensor, sigma: float | Tensor) -> Tensor:
    """x0 = x_s - s v."""
    return noisy - sigma * flow
