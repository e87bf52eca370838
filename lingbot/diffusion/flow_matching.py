"""Training by flow matching over a clip of chunks, with teacher forcing.

Every chunk of the clip draws its own noise level and sees the clean history of the others, exactly
what the caches hold when driving. The loss is the mean squared error of the flow on the noisy
chunks (arXiv:2210.02747; per-chunk levels as in Diffusion Forcing, arXiv:2407.01392).

A driven world sees its own output, not the truth, as history. Two options train for that: noise on
the history, and a history that the model itself has made of the clip (as in Resampling Forcing,
arXiv:2512.15702, but of all chunks in one pass).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
from lingbot.model.checks import check_count, check_number
from lingbot.model.transformer import TextKV


@dataclass(frozen=True)
class ClipPass:
    """One pass over whole clips: all noisy chunks at once, each seeing the history before it."""

    transformer: CausalLingBotTransformer
    schedule: FlowSchedule
    memory: TeacherForcing
    condition: Tensor  # [B, 20, F, H, W]
    rays: Tensor  # [B, n, L, dim]
    text: TextKV
    exchange: Exchange

    def __call__(self, history: Tensor, noisy: Tensor, levels: Tensor) -> Tensor:
        """History and noisy chunks [B, 16, F, H, W] at `levels` [B, n] -> flow of the latter."""
        told = self.schedule.timesteps[levels]
        timesteps = torch.cat([torch.zeros_like(told), told], dim=1).to(noisy.device)
        frames = self.memory.frames_per_chunk
        flow = self.transformer(
            torch.cat([torch.cat([history, noisy], 2), torch.cat([self.condition] * 2, 2)], dim=1),
            self.transformer.embed_time(timesteps),
            self.rays,
            self.text,
            tuple(i * frames for i in range(self.memory.chunks)) * 2,
            kv=self.memory,
            conditioner=ConditionerCache("off"),
            exchange=self.exchange,
        )
        return flow[:, :, noisy.shape[2] :]


class FlowMatching:
    """The objective.

    Args:
        schedule: where noise levels come from.
        frames_per_chunk: latent frames of a chunk.
        few_step_indices: rungs the sampler will use when driving.
        few_step_fraction: share of chunks trained at those rungs; the others draw any level.
        history_noise: the clean history is noised to a level drawn from [0, history_noise], so
            that the model learns to live with its own small errors.
        resampled_history: share of training steps whose history is the model's own estimate of the
            clean clip, made without gradient from one of the sampler's rungs. Those steps
            are spread evenly.

    Raises:
        ValueError: for fractions outside [0, 1], chunks of no frames, or rungs that are none.
    """

    def __init__(
        self,
        schedule: FlowSchedule,
        frames_per_chunk: int = 3,
        few_step_indices: Sequence[int] = (0, 179, 358, 679),
        few_step_fraction: float = 0.5,
        history_noise: float = 0.0,
        resampled_history: float = 0.0,
    ) -> None:
        for name, value in (
            ("few_step_fraction", few_step_fraction),
            ("history_noise", history_noise),
            ("resampled_history", resampled_history),
        ):
            check_number(f"objective.{name}", value, low=0, high=1)
        if not isinstance(schedule, FlowSchedule):
            raise ValueError(f"objective.schedule={schedule!r}: give a FlowSchedule")
        self.schedule = schedule
        self.frames_per_chunk = check_count("objective.frames_per_chunk", frames_per_chunk)
        rungs = schedule.check_indices("objective.few_step_indices", few_step_indices)
        self.few_step_indices = torch.tensor(rungs)
        self.few_step_fraction, self.history_noise = few_step_fraction, history_noise
        self.resampled_history = resampled_history

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
        step: int | None = None,
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
            step: of the training; None in a validation, whose history is the clean clip.

        Returns:
            `loss` to be minimised, and `clean_error`, the mean squared error of the clean latents.

        Raises:
            ValueError: when F is not a whole number of chunks.
        """
        chunks = self._count_chunks(clean)
        predict = ClipPass(
            transformer, self.schedule, TeacherForcing(cache, chunks, self.frames_per_chunk),
            condition, transformer.embed_controls(controls, exchange, self.frames_per_chunk),
            transformer.embed_text(text), exchange,
        )  # fmt: skip
        levels = self.draw_levels(clean.shape[0], chunks, generator)  # [B, n] indices
        normal = self._noise_source(clean, generator)
        sigma = self._per_frame(self.schedule.sigmas[levels], clean)
        noise = normal()
        noisy = add_noise(clean, noise, sigma)
        resample = step is not None and self._resamples(step)
        history = self._resampled(clean, predict, generator, normal) if resample else clean
        history = self._noised(history, chunks, generator, normal)
        flow = predict(history, noisy, levels)
        error = clean_from_flow(noisy, flow.detach(), sigma) - clean
        return {
            "loss": (flow - (noise - clean)).square().mean(),
            "clean_error": error.square().mean(),
        }

    def _resamples(self, step: int) -> bool:
        """Whether training step `step` resamples its history: evenly spread, alike on all ranks."""
        return int((step + 1) * self.resampled_history) > int(step * self.resampled_history)

    def draw_levels(self, batch: int, chunks: int, generator: torch.Generator) -> Tensor:
        """Indices into the schedule [batch, chunks]."""
        anywhere = torch.randint(0, STEPS, (batch, chunks), generator=generator)
        rungs = self._draw_rungs(batch, chunks, generator)
        few = torch.rand((batch, chunks), generator=generator) < self.few_step_fraction
        return torch.where(few, rungs, anywhere)

    def _draw_rungs(self, batch: int, chunks: int, generator: torch.Generator) -> Tensor:
        """Indices of the sampler's rungs [batch, chunks]."""
        rung = torch.randint(0, len(self.few_step_indices), (batch, chunks), generator=generator)
        return self.few_step_indices[rung]

    def _noise_source(self, like: Tensor, generator: torch.Generator) -> Callable[[], Tensor]:
        """Draws noise of the shape of `like`, on its device, from a seed out of `generator`."""
        seed = int(torch.randint(2**62, (), generator=generator))
        there = torch.Generator(like.device).manual_seed(seed)
        return lambda: torch.randn(
            like.shape, generator=there, device=like.device, dtype=like.dtype
        )

    @torch.no_grad()
    def _resampled(
        self,
        clean: Tensor,
        predict: ClipPass,
        generator: torch.Generator,
        normal: Callable[[], Tensor],
    ) -> Tensor:
        """What the model makes of the clip, each chunk from a rung of the sampler's own."""
        levels = self._draw_rungs(clean.shape[0], predict.memory.chunks, generator)
        sigma = self._per_frame(self.schedule.sigmas[levels], clean)
        noisy = add_noise(clean, normal(), sigma)
        made = clean_from_flow(noisy, predict(clean, noisy, levels), sigma)
        torch.clear_autocast_cache()  # it may hold casts of the weights without their gradient
        return made

    def _noised(
        self,
        history: Tensor,
        chunks: int,
        generator: torch.Generator,
        normal: Callable[[], Tensor],
    ) -> Tensor:
        if self.history_noise == 0:
            return history
        level = self.history_noise * torch.rand((history.shape[0], chunks), generator=generator)
        return add_noise(history, normal(), self._per_frame(level, history))

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
