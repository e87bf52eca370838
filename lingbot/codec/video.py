"""Video codec: diffusers' Wan autoencoder, frames to normalised latents and back.

Frames are float in [-1, 1], `[batch, 3, time, height, width]`; latents are normalised float32,
`[batch, 16, time / 4, height / 8, width / 8]`, the first latent frame standing for one video frame
and every later one for four. Decoding streams, see `lingbot.codec.streaming`.
Autoencoder: Wan (arXiv:2503.20314).
"""

import json
import logging
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from torch import Tensor, nn

from lingbot.checkpoints.atomic import atomic_folder
from lingbot.codec.architecture import check_architecture
from lingbot.codec.decoder_ops import REFERENCE
from lingbot.codec.folder import WEIGHTS_FILE, load_vae
from lingbot.codec.pictures import frames_to_uint8, uint8_to_frames
from lingbot.codec.streaming import StreamingDecoder

__all__ = [
    "StreamingDecoder",
    "VideoCodec",
    "build_codec",
    "check_dtype",
    "frames_to_uint8",
    "load_codec",
    "uint8_to_frames",
]

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

MemoryFormat = Literal["channels_last_3d", "contiguous"]


class VideoCodec(nn.Module):
    """Frames to normalised latents and back, over an `AutoencoderKLWan`.

    Args:
        vae: the autoencoder; its config holds the latents' mean and standard deviation.
        dtype: what the weights are held and computed in: "float32", "bfloat16" or "float16".
        memory_format: layout of the convolutions. Channels last is twice as fast on CPUs.

    Raises:
        ValueError: an unknown dtype or memory format.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        dtype: str = "float32",
        memory_format: MemoryFormat = "channels_last_3d",
    ) -> None:
        super().__init__()
        check_dtype(dtype)
        if memory_format not in ("channels_last_3d", "contiguous"):
            raise ValueError(
                f"memory_format={memory_format!r} is not known; "
                f"use 'channels_last_3d' or 'contiguous'."
            )
        self.vae = vae
        self.folder: Path | None = None  # where its weights came from
        self.ops = REFERENCE
        self.to(DTYPES[dtype])
        self.memory_format = memory_format
        self._statistics_on: dict[torch.device, tuple[Tensor, Tensor]] = {}
        if memory_format == "channels_last_3d":
            _set_channels_last(self.vae)

    @property
    def latent_channels(self) -> int:
        return self.vae.config.z_dim

    @property
    def temporal_stride(self) -> int:
        """Video frames that one latent frame (after the first) stands for."""
        return self.vae.config.scale_factor_temporal

    @property
    def spatial_stride(self) -> int:
        return self.vae.config.scale_factor_spatial

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights: what the convolutions compute in."""
        return next(self.vae.parameters()).dtype

    def posterior(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the *unnormalised* latents of frames `[B, 3, 4k+1, H, W]`.

        Raises:
            ValueError: a length that is not 4k+1 (the encoder would drop the rest silently), or a
                height or width that the spatial stride does not divide.
        """
        self._check_frames(frames)
        moments = self.vae.encode(self._laid_out(frames)).latent_dist
        return moments.mean.float(), moments.logvar.float()

    def encode(self, frames: Tensor) -> Tensor:
        """Frames `[B, 3, 4k+1, H, W]` to normalised latents `[B, 16, k+1, H/8, W/8]`, float32."""
        return self.normalise(self.posterior(frames)[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents `[B, 16, F, h, w]` to frames `[B, 3, 4(F-1)+1, 8h, 8w]`."""
        return self.stream().decode(latents)

    def stream(self) -> StreamingDecoder:
        """A decoder with causal state of its own, at the start of a video."""
        return StreamingDecoder(self)

    def normalise(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents.device)
        return (latents.float() - mean) / std

    def denormalise(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents.device)
        return latents.float() * std + mean

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Normalise with `mean` and `std` (one value a latent channel) from now on."""
        if not bool((std > 0).all()):
            raise ValueError(f"std must be positive in every latent channel, got {std.tolist()}.")
        self.vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
        self._statistics_on.clear()

    def save(self, folder: str | Path, dtype: str = "float16") -> None:
        """Write config.json and the weights, stored as `dtype`, as a diffusers folder.

        A folder that is there already is replaced.
        """
        check_dtype(dtype)
        config = json.loads(self.vae.to_json_string())
        config.pop("_name_or_path", None)  # the folder it was loaded from means nothing elsewhere
        weights = {
            name: weight.detach().to("cpu", DTYPES[dtype]).contiguous()
            for name, weight in self.vae.state_dict().items()
        }
        with atomic_folder(folder) as made:
            text = json.dumps(config, indent=2, sort_keys=True) + "\n"
            (made / "config.json").write_text(text)
            save_file(weights, made / WEIGHTS_FILE, metadata={"format": "pt"})

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Latents' mean and deviation, `[16, 1, 1, 1]`; float32 whatever the weights are.

        Kept for each device: a copy from the host in every step would wait for the device.
        """
        if device not in self._statistics_on:
            config = self.vae.config
            with torch.inference_mode(False):  # they outlive the mode of the first caller
                mean, std = (
                    torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1, 1)
                    for values in (config.latents_mean, config.latents_std)
                )
            self._statistics_on[device] = mean, std
        return self._statistics_on[device]

    def _laid_out(self, x: Tensor) -> Tensor:
        """`x` in the dtype and memory format of the weights."""
        if self.memory_format == "channels_last_3d":
            return x.to(self.dtype, memory_format=torch.channels_last_3d)
        return x.to(self.dtype)

    def _check_frames(self, frames: Tensor) -> None:
        if frames.dim() != 5 or frames.shape[1] != 3:
            raise ValueError(
                f"frames must be [batch, 3, T, height, width], got {tuple(frames.shape)}."
            )
        self.check_size(*frames.shape[2:])

    def check_size(self, time: int, height: int, width: int) -> None:
        """Raise ValueError unless clips of `time` frames of `height` x `width` can be encoded."""
        if time % self.temporal_stride != 1:
            fitting = (time - 1) // self.temporal_stride * self.temporal_stride + 1
            raise ValueError(
                f"{time} frames cannot be encoded: the length must be {self.temporal_stride}k+1; "
                f"cut the clip to {max(fitting, 1)} frames."
            )
        if height % self.spatial_stride or width % self.spatial_stride:
            raise ValueError(
                f"frames of {height}x{width} cannot be encoded: "
                f"height and width must be multiples of {self.spatial_stride}; crop or resize them."
            )


def build_codec(
    dtype: str = "float32",
    memory_format: MemoryFormat = "channels_last_3d",
    **architecture: Any,
) -> VideoCodec:
    """A codec of a new `AutoencoderKLWan(**architecture)`, to be trained.

    Raises:
        ValueError: sizes that make no codec of stride 4 x 8 x 8, see `lingbot.codec.architecture`.
    """
    check_dtype(dtype)
    check_architecture(architecture)
    z_dim = architecture.setdefault("z_dim", 16)
    architecture.setdefault("latents_mean", [0.0] * z_dim)
    architecture.setdefault("latents_std", [1.0] * z_dim)
    return VideoCodec(AutoencoderKLWan(**architecture), dtype, memory_format)


def load_codec(
    folder: str | Path,
    dtype: str = "float32",
    memory_format: MemoryFormat = "channels_last_3d",
) -> VideoCodec:
    """The codec of a local diffusers folder (config.json and safetensors), frozen and in eval mode.

    Raises:
        FileNotFoundError: the folder, its config.json or its weights are missing.
        ValueError: an unknown dtype, or files that are not such a codec, see `codec.folder`.
    """
    check_dtype(dtype)
    codec = VideoCodec(load_vae(folder, DTYPES[dtype]), dtype, memory_format)
    codec.folder = Path(folder).absolute()
    log.info("codec of %s loaded, computing in %s", folder, dtype)
    return codec.eval().requires_grad_(False)


def check_dtype(dtype: str) -> None:
    """Raise ValueError unless `dtype` names one that weights may be held in."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not known; use one of {sorted(DTYPES)}.")


def _set_channels_last(module: nn.Module) -> None:
    """Lay the weights of every convolution out channels last (`Module.to` cannot mix 2D and 3D)."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv3d):
            layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last_3d)
        elif isinstance(layer, nn.Conv2d):
            layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
