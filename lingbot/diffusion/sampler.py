"""The few-step chunk sampler: predict the clean chunk, noise it afresh, predict again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lingbot.diffusion.flow import FlowSchedule, add_noise, clean_from_flow

V1_INDICES = (0, 179, 358, 679)
V2_INDICES = (0, 250, 500, 750)


class FewStepSampler:
    """Makes a chunk in `len(indices)` passes; no guidance.

    Args:
        schedule: the flow schedule.
        indices: rungs of the schedule, from noise to clean; v1 [0, 179, 358, 679],
            v2 [0, 250, 500, 750].

    Raises:
        ValueError: when indices are empty, unordered or outside the schedule.
    """

    def __init__(self, schedule: FlowSchedule, indices: Sequence[int] = V1_INDICES) -> None:
        if not isinstance(schedule, FlowSchedule):
            raise ValueError(f"sampler.schedule={schedule!r}: give a FlowSchedule, shift and kind")
        self.schedule = schedule
        self.indices = schedule.check_indices("sampler.indices", indices)
        self.levels = [schedule.level(index) for index in indices]

    def __call__(
        self,
        noise: Tensor,
        predict: Callable[[Tensor, float], Tensor],
        fresh_noise: Callable[[], Tensor],
    ) -> Tensor:
        """noise [B, 16, f, H, W] -> clean chunk of the same shape.

        Args:
            predict: (noisy chunk, timestep) -> flow; one pass.
            fresh_noise: draws noise of the chunk's shape, once between two passes.
        """
        noisy = noise
        for i, level in enumerate(self.levels):
            clean = clean_from_flow(noisy, predict(noisy, level.timestep), level.x0_sigma)
            if i + 1 < len(self.levels):
                noisy = add_noise(clean, fresh_noise(), self.levels[i + 1].renoise_sigma)
        return clean
