"""Training by flow matching over a clip of chunks, with teacher forcing.

Every chunk of the clip draws its own noise level and sees the clean history of the others, exactly
what the caches hold when driving. The loss is the mean squared error of the flow on the noisy
chunks (arXiv:2210.02747; per-chunk levels as in Diffusion Forcing, arXiv:2407.01392).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from einops import rearrange
from torch import Tensor

from lingbot.diffusion.flow import STEPS, FlowSchedule, add_noise, clean_from_flow
from lingbot.model import (
    CausalLingBotTransformer,
    ConditionerCache,
    Exchange,
    KVCacheConfig,
    TeacherForcing,
)


class FlowMatching:
    """The objective.

    Args:
        schedule: where noise levels come from.
        frames_per_chunk: latent frames of a chunk.
        few_step_indices: rungs the sampler will use when driving.
        few_step_fraction: share of chunks trained at those rungs; the others draw any level.
        history_noise: the clean history is noised to a level drawn from [0, history_noise], so
            that the model learns to live with its own small errors.

    Raises:
        ValueError: for fractions outside [0, 1].
    """

    def __init__(
        self,
        schedule: FlowSchedule,
        frames_per_chunk: int = 3,
        few_step_indices: Sequence[int] = (0, 179, 358, 679),
        few_step_fraction: float = 0.5,
        history_noise: float = 0.0,
    ) -> None:
        for name, value in (
            ("few_step_fraction", few_step_fraction),
            ("history_noise", history_noise),
        ):
            if not 0 <= value <= 1:
                raise ValueError(f"objective.{name}={value} must lie in [0, 1]")
        self.schedule, self.frames_per_chunk = schedule, frames_per_chunk
        self.few_step_indices = torch.tensor(list(few_step_indices))
        self.few_step_fraction, self.history_noise = few_step_fraction, history_noise

    def __call__(
        self,
        transformer: CausalLingBotTransformer,
        clean: Tensor,
        condition: Tensor,
        controls: Tensor,
        text: Tensor,
        *,
        cache: KVCacheConfig,
        exchange: Exchange,
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """Losses of one batch.

        Args:
            clean: latents [B, 16, F, H, W], F a whole number of chunks.
            condition: mask and image latents [B, 20, F, H, W].
            controls: folded rays [B, channels, F, H, W].
            text: encoded prompts [B, tokens, text_dim].
            cache: window and sink the clip is trained for.
            exchange: the identity or the sequence group's; its chunk is one of these chunks.
            generator: CPU generator, alike on all ranks of a sequence group.

        Returns:
            `loss` to be minimised, and `clean_error`, the mean squared error of the clean latents.

        Raises:
            ValueError: when F is not a whole number of chunks.
        """
        chunks = self._count_chunks(clean)
        levels = self.draw_levels(clean.shape[0], chunks, generator)  # [B, n] indices
        sigma = self._per_frame(self.schedule.sigmas[levels], clean)
        normal = self._noise_source(clean, generator)
        noise = normal()
        noisy = add_noise(clean, noise, sigma)
        history = self._history(clean, chunks, generator, normal)

        timesteps = torch.cat(
            [torch.zeros_like(levels, dtype=torch.float64), self.schedule.timesteps[levels]], dim=1
        ).to(clean.device)
        flow = transformer(
            torch.cat([torch.cat([history, noisy], 2), torch.cat([condition] * 2, 2)], dim=1),
            transformer.embed_time(timesteps),
            transformer.embed_controls(controls, exchange, self.frames_per_chunk),
            transformer.embed_text(text),
            tuple(i * self.frames_per_chunk for i in range(chunks)) * 2,
            memory=TeacherForcing(cache, chunks, self.frames_per_chunk),
            conditioner=ConditionerCache("off"),
            exchange=exchange,
        )[:, :, clean.shape[2] :]
        error = clean_from_flow(noisy, flow.detach(), sigma) - clean
        return {
            "loss": (flow - (noise - clean)).square().mean(),
            "clean_error": error.square().mean(),
        }

    def draw_levels(self, batch: int, chunks: int, generator: torch.Generator) -> Tensor:
        """Indices into the schedule [batch, chunks]."""
        anywhere = torch.randint(0, STEPS, (batch, chunks), generator=generator)
        rung = torch.randint(0, len(self.few_step_indices), (batch, chunks), generator=generator)
        few = torch.rand((batch, chunks), generator=generator) < self.few_step_fraction
        return torch.where(few, self.few_step_indices[rung], anywhere)

    def _noise_source(self, like: Tensor, generator: torch.Generator) -> Callable[[], Tensor]:
        """Draws noise of the shape of `like`, on its device, from a seed out of `generator`."""
        seed = int(torch.randint(2**62, (), generator=generator))
        there = torch.Generator(like.device).manual_seed(seed)
        return lambda: torch.randn(
            like.shape, generator=there, device=like.device, dtype=like.dtype
        )

    def _history(
        self,
        clean: Tensor,
        chunks: int,
        generator: torch.Generator,
        normal: Callable[[], Tensor],
    ) -> Tensor:
        if self.history_noise == 0:
            return clean
        level = self.history_noise * torch.rand((clean.shape[0], chunks), generator=generator)
        return add_noise(clean, normal(), self._per_frame(level, clean))

    def _count_chunks(self, clean: Tensor) -> int:
        frames = clean.shape[2]
        if frames % self.frames_per_chunk:
            raise ValueError(
                f"a clip of {frames} latent frames is not a whole number of chunks of "
                f"{self.frames_per_chunk}: cut it to "
                f"{frames - frames % self.frames_per_chunk} latent frames"
            )
        return frames // self.frames_per_chunk

    def _per_frame(self, values: Tensor, like: Tensor) -> Tensor:
        """One value a chunk [B, n] -> [B, 1, F, 1, 1] on the device of `like`."""
        frames = values.repeat_interleave(self.frames_per_chunk, dim=1)
        return rearrange(frames, "b f -> b 1 f 1 1").to(like)

