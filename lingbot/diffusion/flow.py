"""Flow matching: the schedule and the conversions between noise, flow and clean latents.

x_s = (1 - s) x0 + s n and the model predicts v = n - x0 (arXiv:2210.02747). Levels are
s' = shift * s / (1 + (shift - 1) * s) for s = linspace(0.999, 0, 1001) without its last point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lingbot.model.checks import check_number

Kind = Literal["published", "exact"]
STEPS = 1000
LARGEST_SHIFT = 1000.0  # beyond it nearly every level is noise


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
        ValueError: for a shift that is not between 0 and 1,000 or an unknown kind.
    """

    def __init__(self, shift: float = 5.0, kind: str = "published") -> None:
        check_number("schedule.shift", shift, above=0, high=LARGEST_SHIFT)
        if kind not in get_args(Kind):
            raise ValueError(f"schedule={kind!r}: choose one of {get_args(Kind)}")
        self.shift, self.kind = shift, kind
        s = torch.linspace(0.999, 0, STEPS + 1, dtype=torch.float64)
        self.sigmas = shift * s / (1 + (shift - 1) * s)  # [1001], the last is 0
        exact = STEPS * self.sigmas[:-1]
        self.timesteps = exact.floor() if kind == "published" else exact

    @staticmethod
    def check_indices(name: str, indices: Sequence[int]) -> tuple[int, ...]:
        """The rungs of a few-step ladder, each once, from noise to clean.

        Raises:
            ValueError: when they are empty, unordered or outside the schedule.
        """
        given = list(indices)
        whole = all(isinstance(i, int) and not isinstance(i, bool) for i in given)
        inside = whole and all(0 <= i < STEPS for i in given)
        if not given or not inside or given != sorted(set(given)):
            raise ValueError(
                f"{name}={given}: give whole numbers from 0 to {STEPS - 1} that rise strictly, as "
                "[0,179,358,679] do"
            )
        return tuple(given)

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
