"""The camera conditioner of a block, and the cache that computes it once per realtime step.

A block's scale and shift depend on the chunk's embedded rays alone, not on the timestep, so all
denoise passes and the context update of a realtime step may share them: four matmuls per token and
block are done once instead of five times. The policies agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from lingbot.model.linear import Linear

Policy = Literal["step", "denoise", "off"]
ScaleShift = tuple[Tensor, Tensor]


class CameraLayers(nn.Module):
    """The four linears behind scale and shift, see `lingbot.model.ops.scale_shift`.

    A mixin for the block: the public checkpoints keep these layers among the block's own.
    """

    cam_injector_layer1: nn.Linear
    cam_injector_layer2: nn.Linear
    cam_scale_layer: nn.Linear
    cam_shift_layer: nn.Linear

    def make_camera_layers(self, dim: int) -> None:
        self.cam_injector_layer1 = Linear(dim, dim)
        self.cam_injector_layer2 = Linear(dim, dim)
        self.cam_scale_layer = Linear(dim, dim)
        self.cam_shift_layer = Linear(dim, dim)


@dataclass
class ConditionerCounts:
    """What the cache did since the counts were last reset."""

    hits: int = 0
    misses: int = 0
    bytes: int = 0


class ConditionerCache:
    """Scale and shift of every block, kept for as long as the embedded rays stay the same tensor.

    Args:
        policy: `step` reuses them in every pass and in the context update; `denoise` in the
            passes, and recomputes in the context update; `off` recomputes always.

    Raises:
        ValueError: for any other policy.
    """

    def __init__(self, policy: str = "step") -> None:
        if policy not in get_args(Policy):
            raise ValueError(
                f"conditioner_cache={policy!r} is not a policy: choose one of {get_args(Policy)}"
            )
        self.policy = policy
        self.counts = ConditionerCounts()
        self._rays: Tensor | None = None
        self._version = -1
        self._kept: dict[int, ScaleShift] = {}

    def __call__(
        self, layer: int, rays: Tensor, compute: Callable[[Tensor], ScaleShift], *, updating: bool
    ) -> ScaleShift:
        """Scale and shift of `layer` for these rays, computed or remembered.

        Raises:
            ValueError: for rays made under `torch.inference_mode`, whose changes cannot be seen.
        """
        if self.policy == "off" or (updating and self.policy == "denoise"):
            self.counts.misses += 1
            return compute(rays)
        self._follow(rays)
        if layer in self._kept:
            self.counts.hits += 1
            return self._kept[layer]
        self.counts.misses += 1
        kept = self._kept[layer] = compute(rays)
        self.counts.bytes += sum(t.numel() * t.element_size() for t in kept)
        return kept

    def drop(self) -> None:
        """Forgets scale and shift; the counts go on."""
        self._rays, self._version = None, -1
        self._kept.clear()
        self.counts.bytes = 0

    def take_counts(self) -> ConditionerCounts:
        """The counts since the last call; hits and misses start again at zero."""
        taken = self.counts
        self.counts = ConditionerCounts(bytes=taken.bytes)
        return taken

    def _follow(self, rays: Tensor) -> None:
        """Drops what belongs to other rays. Holding the tensor keeps its identity from reuse."""
        if rays.is_inference():
            raise ValueError(
                "the embedded rays were made under torch.inference_mode, where in-place changes "
                "cannot be seen: embed the controls under torch.no_grad instead"
            )
        if rays is not self._rays or rays._version != self._version:
            self.drop()
            self._rays, self._version = rays, rays._version
