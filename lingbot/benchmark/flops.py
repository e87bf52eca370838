"""Floating-point operations of realtime and training steps, from the sizes; a multiply-add is two.

Matmuls and attention of the transformer, of all ranks together; norms, rotations and whatever is
done once a session (prompt, time embeddings) are left out. The tests hold the count against
PyTorch's own counter.
"""

from __future__ import annotations

from math import prod

from lingbot.model import Grid, KVCacheConfig, TransformerConfig
from lingbot.model.kv_cache import visible_frames

# dense matrix FLOP/s of bfloat16 and float16, from the makers' data sheets; the first name counts
PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("B200", 2250e12),
    ("A100", 312e12),
)


def peak_flops(device: str, dtype: str) -> float | None:
    """FLOP/s of a device by its name, or None where the table does not know it."""
    if dtype not in ("bfloat16", "float16"):
        return None
    return next((peak for name, peak in PEAKS if name in device), None)


class StepFlops:
    """Counts for chunks of one size.

    Args:
        config: sizes of the transformer.
        grid: token grid of a chunk.
        visible_tokens: what a chunk attends to, itself included.
    """

    def __init__(self, config: TransformerConfig, grid: Grid, visible_tokens: int) -> None:
        self.config, self.tokens, self.visible = config, grid.tokens, visible_tokens

    @property
    def block(self) -> int:
        """One block of one pass, without its camera conditioner."""
        c = self.config
        linears = 6 * self._linear(c.dim, c.dim)  # q, k, v, o and the prompt's q, o
        feed_forward = 2 * self._linear(c.dim, c.ffn_dim)
        attention = 4 * self.tokens * c.dim * (self.visible + c.text_len)
        return linears + feed_forward + attention

    @property
    def embedding(self) -> int:
        """Latents to tokens."""
        return self._linear(self.config.in_channels * prod(self.config.patch_size), self.config.dim)

    @property
    def denoise_pass(self) -> int:
        """One pass, without camera conditioners."""
        c = self.config
        head = self._linear(c.dim, c.out_channels * prod(c.patch_size))
        return self.embedding + c.num_layers * self.block + head

    @property
    def context_update(self) -> int:
        """The pass that ends with the last block's keys and values."""
        c = self.config
        keys_and_values = 2 * self._linear(c.dim, c.dim)
        return self.embedding + (c.num_layers - 1) * self.block + keys_and_values

    @property
    def camera(self) -> int:
        """Rays to embedded rays, once a step."""
        c = self.config
        rays = c.control_channels * prod(c.patch_size)
        return self._linear(rays, c.dim) + 2 * self._linear(c.dim, c.dim)

    @property
    def conditioner(self) -> int:
        """Scale and shift of one block."""
        return 4 * self._linear(self.config.dim, self.config.dim)

    def step(self, passes: int, conditioner_misses: int) -> int:
        """A realtime step in which the conditioner was computed so many times, over all blocks."""
        return (
            passes * self.denoise_pass
            + self.context_update
            + self.camera
            + conditioner_misses * self.conditioner
        )

    def _linear(self, inputs: int, outputs: int) -> int:
        return 2 * self.tokens * inputs * outputs


class ClipFlops:
    """Counts for training clips, laid out as in `lingbot.model.teacher_forcing`.

    Args:
        config: sizes of the transformer.
        grid: token grid of a chunk.
        cache: what of a clip's history a chunk sees.
    """

    def __init__(self, config: TransformerConfig, grid: Grid, cache: KVCacheConfig) -> None:
        self.config, self.grid, self.cache = config, grid, cache

    def forward(self, frames: int) -> int:
        """A pass over a clip of so many latent frames: its chunks clean, and noised."""
        total, of_chunk = 0, self.grid.frames
        for first in range(0, frames, of_chunk):
            seen = len(visible_frames(first, of_chunk, self.cache)) * self.grid.tokens_per_frame
            chunk = StepFlops(self.config, self.grid, seen)
            camera = chunk.camera + self.config.num_layers * chunk.conditioner
            total += 2 * chunk.denoise_pass + camera  # both see as much, and share their rays
        return total

    def training(self, frames: int) -> int:
        """With its backward pass, which takes twice as many; what is recomputed does not count."""
        return 3 * self.forward(frames)
