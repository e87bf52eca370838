"""The causal, camera-controlled video diffusion transformer of LingBot-World.

One forward predicts the flow of one chunk (driving) or of a whole clip of chunks (training); which
history a chunk sees is the K/V store's business, which tokens this rank holds is the exchange's.
Parameter names are those of the public checkpoints. Letters: B batch, C chunks, f latent frames of
a chunk, F = C * f, L local tokens of a chunk, S all tokens of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from lingbot.model.activation_checkpointing import run_block
from lingbot.model.block import Block
from lingbot.model.camera_conditioner import ConditionerCache
from lingbot.model.checks import check_count, check_number
from lingbot.model.exchange import Exchange
from lingbot.model.kv_format import PLAIN, KVFormat
from lingbot.model.kv_store import KVStore
from lingbot.model.linear import Linear
from lingbot.model.norms import modulated_norm
from lingbot.model.patch_embedding import PatchEmbedding
from lingbot.model.rope import Grid, RopeTables
from lingbot.model.time_embedding import TimeEmbedding, sinusoid

TextKV = list[tuple[Tensor, Tensor]]
COUNTS = (
    "dim", "ffn_dim", "num_heads", "num_layers", "text_dim", "text_len", "freq_dim", "in_channels",
    "out_channels",
)  # fmt: skip
MOST = 10_000_000  # of any size: far beyond memory, and products of two can still be counted
MASK_CHANNELS = 4  # of the image condition, see `lingbot.model.image_condition`
VAE_STRIDE = 8  # pixels of a latent pixel's side; rays are folded by it
RAY_CHANNELS = {"cam": 6 * VAE_STRIDE**2, "act": 7 * VAE_STRIDE**2}


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the transformer.

    Raises:
        ValueError: when the sizes contradict each other.
    """

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    in_channels: int = 36
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    control: Literal["cam", "act"] = "cam"
    eps: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        for name in COUNTS:
            check_count(f"model.{name}", getattr(self, name), high=MOST)
        # added to variances, which are about 1: a tenth would change every norm
        check_number("model.eps", self.eps, above=0, high=0.1)
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(
                f"model.dim={self.dim} must be model.num_heads={self.num_heads} times an even "
                "head width"
            )
        if self.control not in RAY_CHANNELS:
            raise ValueError(
                f"model.control={self.control!r}: choose one of {sorted(RAY_CHANNELS)}"
            )
        if len(self.patch_size) != 3 or self.patch_size[0] != 1:
            raise ValueError(
                f"model.patch_size={list(self.patch_size)}: the time patch must be 1, and two "
                "sides in space follow, as in [1,2,2]"
            )
        for side in self.patch_size:
            check_count("model.patch_size", side)
        if self.freq_dim % 2:
            raise ValueError(f"model.freq_dim={self.freq_dim} must be even")
        taken = 2 * self.out_channels + MASK_CHANNELS
        if self.in_channels != taken:
            raise ValueError(
                f"model.in_channels={self.in_channels}: with model.out_channels="
                f"{self.out_channels} give {taken}, for noise and image latents and a mask of "
                f"{MASK_CHANNELS} channels"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @property
    def control_channels(self) -> int:
        return RAY_CHANNELS[self.control]

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Token grid of a chunk of `frames` latent frames of height x width latent pixels.

        Raises:
            ValueError: when the latents do not divide into patches.
        """
        _, p, q = self.patch_size
        if height % p or width % q:
            raise ValueError(
                f"latents of {height}x{width} do not divide into {p}x{q} patches: choose a video "
                f"size whose sides are multiples of {VAE_STRIDE * p} and {VAE_STRIDE * q} pixels"
            )
        return Grid(frames, height // p, width // q)


class Head(nn.Module):
    """Norm, two modulation vectors from the time embedding itself, and the last linear."""

    def __init__(self, dim: int, out_features: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.head = Linear(dim, out_features)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        """x [B, C, L, dim], e [B, C, dim] -> [B, C, L, patch * out_channels]."""
        shift, scale = (self.modulation.float() + e.float().unsqueeze(2)).unsqueeze(3).unbind(2)
        return self.head(modulated_norm(x, scale, shift, self.eps).to(self.head.weight.dtype))


class CausalLingBotTransformer(nn.Module):
    """Predicts v = noise - clean for the chunks it is given."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = c = config
        patch = c.patch_size[1] * c.patch_size[2]
        self.patch_embedding = PatchEmbedding(c.in_channels, c.dim, c.patch_size)
        self.patch_embedding_wancamctrl = Linear(c.control_channels * patch, c.dim)
        self.c2ws_hidden_states_layer1 = Linear(c.dim, c.dim)
        self.c2ws_hidden_states_layer2 = Linear(c.dim, c.dim)
        self.text_embedding = nn.Sequential(
            nn.Linear(c.text_dim, c.dim), nn.GELU(approximate="tanh"), nn.Linear(c.dim, c.dim)
        )
        self.time_embedding = nn.Sequential(
            nn.Linear(c.freq_dim, c.dim), nn.SiLU(), nn.Linear(c.dim, c.dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(c.dim, 6 * c.dim))
        self.blocks = nn.ModuleList(
            Block(i, c.dim, c.ffn_dim, c.num_heads, c.eps) for i in range(c.num_layers)
        )
        self.head = Head(c.dim, c.out_channels * patch, c.eps)
        self.rope = RopeTables(c.head_dim)
        self.kv_format: KVFormat = PLAIN  # of the keys and values of earlier chunks
        self.activation_checkpointing = "none"  # see `lingbot.model.activation_checkpointing`

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    @property
    def kv_dtype(self) -> torch.dtype:
        """What keys and values of earlier chunks are kept in."""
        return self.kv_format.dtype(self.dtype)

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    def embed_controls(
        self, controls: Tensor, exchange: Exchange, frames_per_chunk: int | None = None
    ) -> Tensor:
        """Folded rays [B, channels, F, H, W] -> embedded rays of this rank [B, C, L, dim].

        Raises:
            ValueError: when the channels are not those of this model's control type.
        """
        if controls.shape[1] != self.config.control_channels:
            raise ValueError(
                f"controls have {controls.shape[1]} channels; control={self.config.control!r} "
                f"takes {self.config.control_channels}"
            )
        patches = self._patches(controls, frames_per_chunk)
        x = self.patch_embedding_wancamctrl(exchange.shard(patches, dim=2).to(self.dtype))
        return x + self.c2ws_hidden_states_layer2(F.silu(self.c2ws_hidden_states_layer1(x)))

    def embed_text(self, text: Tensor) -> TextKV:
        """Encoded prompt [B, tokens, text_dim] -> every block's keys and values of it.

        The prompt is padded with zeros to the full text length *before* its embedding, unmasked.

        Raises:
            ValueError: when the prompt has more tokens or another width than the model takes.
        """
        tokens, width = text.shape[1:]
        if tokens > self.config.text_len or width != self.config.text_dim:
            raise ValueError(
                f"an encoded prompt of {tokens} tokens x {width} does not fit the model's "
                f"{self.config.text_len} x {self.config.text_dim}"
            )
        padded = F.pad(text, (0, 0, 0, self.config.text_len - tokens))
        x = self.text_embedding(padded.to(self.dtype))
        return [block.text_kv(x) for block in self.blocks]  # type: ignore[operator]

    def embed_time(self, timesteps: Tensor) -> TimeEmbedding:
        """Timesteps [B, C], one a chunk -> embedding and the six modulation vectors."""
        waves = sinusoid(timesteps, self.config.freq_dim)
        e = self.time_embedding(waves.to(self.dtype))
        return TimeEmbedding(e, self.time_projection(e).unflatten(-1, (6, -1)))

    def forward(
        self,
        latents: Tensor,
        time: TimeEmbedding,
        rays: Tensor,
        text: TextKV,
        first_frames: tuple[int, ...],
        *,
        kv: KVStore,
        conditioner: ConditionerCache,
        exchange: Exchange,
    ) -> Tensor:
        """One pass.

        Args:
            latents: noisy latents, mask and image latents [B, 36, F, H, W].
            time: embedding of each chunk's timestep, from `embed_time`.
            rays: from `embed_controls`, this rank's tokens [B, C', L, dim].
            text: from `embed_text`.
            first_frames: absolute latent frame at which each of the C chunks starts.

        Returns:
            flow [B, 16, F, H, W] float32, complete on every rank.
        """
        x, rope = self._enter(latents, first_frames, exchange)
        for block, text_kv in zip(self.blocks, text, strict=True):
            x = run_block(
                self.activation_checkpointing, block, x, time.modulation, rays, text_kv, rope,
                kv=kv, conditioner=conditioner, exchange=exchange,
            )  # fmt: skip
        y = exchange.gather(self.head(x, time.e))  # [B, C, S, patch * channels]
        return self._unpatch(y.float(), latents.shape)

    def update_context(
        self,
        latents: Tensor,
        time: TimeEmbedding,
        rays: Tensor,
        text: TextKV,
        first_frames: tuple[int, ...],
        *,
        kv: KVStore,
        conditioner: ConditionerCache,
        exchange: Exchange,
    ) -> None:
        """The pass on the clean chunk that leaves its keys and values in the store.

        It ends in the last block as soon as those are stored: no query, no head, no gather.
        """
        x, rope = self._enter(latents, first_frames, exchange)
        *inner, last = self.blocks
        for block, text_kv in zip(inner, text, strict=False):
            x = block(
                x, time.modulation, rays, text_kv, rope,
                kv=kv, conditioner=conditioner, exchange=exchange, updating=True,
            )  # fmt: skip
        assert isinstance(last, Block)
        last.update_kv(x, time.modulation, rope, kv=kv, exchange=exchange)

    def _enter(
        self, latents: Tensor, first_frames: tuple[int, ...], exchange: Exchange
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """This rank's tokens [B, C, L, dim] in float32 and their rotary table."""
        frames, height, width = latents.shape[2:]
        frames_per_chunk = frames // len(first_frames)
        patches = exchange.shard(self._patches(latents, frames_per_chunk), dim=2)
        x = self.patch_embedding(patches.to(self.dtype)).float()
        grid = self.config.grid(frames_per_chunk, height, width)
        return x, self.rope(grid, first_frames, exchange, x.device)

    def _patches(self, x: Tensor, frames_per_chunk: int | None) -> Tensor:
        """[B, ch, F, H, W] -> [B, C, S, ch * p * q], channels slowest."""
        _, p, q = self.config.patch_size
        return rearrange(
            x, "b ch (c f) (h p) (w q) -> b c (f h w) (ch p q)",
            f=frames_per_chunk or x.shape[2], p=p, q=q,
        )  # fmt: skip

    def _unpatch(self, y: Tensor, shape: torch.Size) -> Tensor:
        """[B, C, S, p * q * ch] -> [B, ch, F, H, W], channels fastest."""
        _, p, q = self.config.patch_size
        return rearrange(
            y, "b c (f h w) (p q ch) -> b ch (c f) (h p) (w q)",
            f=shape[2] // y.shape[1], h=shape[3] // p, p=p, q=q,
        )  # fmt: skip
