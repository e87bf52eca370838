"""Training of a small video codec on raw clips: reconstruct them through a nearly free bottleneck.

The loss is L1 on the pixels, L1 on their differences along width, height and time (edges stay sharp
and motion stays smooth), and a small KL term that keeps the latents compact enough for a diffusion
model. Random crops in space and time make a step cheap; the decoder is convolutional, so what it
learns on crops holds for whole frames. After the fit the latents' mean and standard deviation are
measured on training clips and stored in the codec's config.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lingbot.codec.video import VideoCodec, uint8_to_frames
from lingbot.model.checks import check_count, check_number
from lingbot.training.optimizer_check import check_optimizer
from lingbot.training.resume import align_progress, note_endless, step_generator

log = logging.getLogger(__name__)


class CodecModule(LightningModule):
    """Trains a `VideoCodec` on batches `{"frames": uint8 [B, T, H, W, 3]}`.

    Args:
        codec: the codec, in float32; run it under the Trainer's `precision="bf16-mixed"`.
        optimizer: parameters to optimizer.
        scheduler: optimizer to learning-rate schedule, stepped after every training step.
        crops: shapes of the training crops (clips, frames, height, width); every step draws one.
            Short ones are cheap, long ones teach the decoder its causal state; None: whole clips.
        edge_weight: weight of the differences along width, height and time.
        kl_weight: weight of the KL divergence from a unit normal, per latent value.
        statistics_batches: training batches that the latents' mean and deviation are measured on.
        export_to: folder that gets the codec (diffusers format, float16) when the fit ends.
        seed: of the crops and of the posterior's noise.

    Raises:
        ValueError: a crop that the codec cannot encode.
    """

    logged = ("train/loss", "train/pixels", "train/edges", "train/kl", "val/psnr")

    def __init__(
        self,
        codec: VideoCodec,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        scheduler: Callable[[Optimizer], LRScheduler] | None = None,
        crops: Sequence[Sequence[int]] | None = None,
        edge_weight: float = 0.5,
        kl_weight: float = 1e-4,
        statistics_batches: int = 16,
        export_to: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(codec, VideoCodec):
            raise ValueError(f"module.codec={codec!r}: give a codec to train")
        if optimizer is None:
            raise ValueError("module.optimizer=null: training needs one, see conf/optimizer")
        for crop in crops or ():
            if len(crop) != 4:
                raise ValueError(f"module.crops={crops}: give (clips, frames, height, width) each")
            for side in crop:
                check_count("module.crops", side)
            codec.check_size(*crop[1:])
        check_number("module.edge_weight", edge_weight, low=0)
        check_number("module.kl_weight", kl_weight, low=0)
        check_count("module.statistics_batches", statistics_batches)
        self.codec = codec.requires_grad_(True).train()
        self.optimizer, self.scheduler = optimizer, scheduler
        self.crops = crops
        self.edge_weight, self.kl_weight = edge_weight, kl_weight
        self.statistics_batches = statistics_batches
        self.export_to, self.seed = export_to, seed

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        pictures = batch["frames"]
        generator = step_generator(self.seed, self.global_rank, self.global_step, batch_idx)
        if self.crops is not None:
            drawn = int(torch.randint(len(self.crops), (), generator=generator))
            pictures = random_crop(pictures, self.crops[drawn], generator)
        frames = uint8_to_frames(pictures)
        mean, log_variance = self.codec.posterior(frames)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        latents = mean + (0.5 * log_variance).exp() * noise
        decoded = self.codec.stream().decode_unclamped(self.codec.normalise(latents))
        losses = {
            "pixels": (decoded - frames).abs().mean(),
            "edges": edge_loss(decoded, frames),
            "kl": kl_divergence(mean, log_variance),
        }
        loss = losses["pixels"] + self.edge_weight * losses["edges"] + self.kl_weight * losses["kl"]
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in losses.items()})
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Reconstructs whole clips and logs their PSNR as `val/psnr`."""
        frames = uint8_to_frames(batch["frames"])
        decoded = self.codec.decode(self.codec.encode(frames))
        quality = psnr(decoded, frames).mean()
        self.log("val/psnr", quality, prog_bar=True, sync_dist=True, batch_size=len(frames))

    def on_train_end(self) -> None:
        """Measures the latents' statistics, in the precision of the run, and exports the codec."""
        assert self.trainer.train_dataloader is not None
        clips = (batch["frames"] for batch in self.trainer.train_dataloader)
        mean, std = latent_statistics(
            self.codec,
            islice(clips, self.statistics_batches),
            self.trainer.precision_plugin.forward_context,
        )
        self.codec.set_statistics(mean, std)
        if self.export_to is not None and self.trainer.is_global_zero:
            self.codec.save(Path(self.export_to))
            log.info("codec saved to %s", self.export_to)

    def check_training(self) -> float:
        """Bytes the optimizer keeps for each of a weight; ValueError for rates that are none."""
        return check_optimizer(self.optimizer, self.scheduler)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        note_endless(self._trainer, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        align_progress(self._trainer, checkpoint)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"},
        }


@torch.no_grad()
def latent_statistics(
    codec: VideoCodec,
    clips: Iterable[Tensor],
    precision: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of the sampled latents of uint8 clips `[B, T, H, W, 3]`.

    The deviation counts the posterior's own noise, so a channel that the codec does not use (its
    posterior is the unit normal, its mean says nothing) keeps a deviation of one and normalises to
    nearly nothing, rather than being blown up into something a diffusion model would have to learn.
    Clips are encoded under `precision`, and drawn outside of it.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for clip in clips:
        with precision():
            mean, log_variance = codec.posterior(uint8_to_frames(clip.to(codec.device)))
        count += mean[:, 0].numel()
        total = total + mean.double().sum(dim=(0, 2, 3, 4)).cpu()
        second_moment = mean.double().square() + log_variance.double().exp()
        squares = squares + second_moment.sum(dim=(0, 2, 3, 4)).cpu()
    if count == 0:
        raise ValueError("latent statistics need at least one clip; the training loader is empty.")
    mean = total / count
    return mean, (squares / count - mean.square()).clamp_min(1e-12).sqrt()


def random_crop(
    pictures: Tensor, size: Sequence[int], generator: torch.Generator | None = None
) -> Tensor:
    """One random crop of `size` (clips, frames, height, width) of pictures `[B, T, H, W, 3]`."""
    available = pictures.shape[:4]
    if any(have < want for have, want in zip(available, size, strict=True)):
        raise ValueError(f"a crop of {tuple(size)} does not fit in clips of {tuple(available)}.")
    for axis, (have, want) in enumerate(zip(available, size, strict=True)):
        start = int(torch.randint(have - want + 1, (), generator=generator))
        pictures = pictures.narrow(axis, start, want)
    return pictures


def edge_loss(decoded: Tensor, frames: Tensor) -> Tensor:
    """Mean L1 between the differences of neighbours along time, height and width."""
    error = decoded - frames
    axes = [axis for axis in (2, 3, 4) if error.shape[axis] > 1]
    return torch.stack([error.diff(dim=axis).abs().mean() for axis in axes]).mean()


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL divergence of the latents' normal distributions from a unit normal, per latent value."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def psnr(decoded: Tensor, frames: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of frames in [-1, 1] `[B, ...]`, one value a clip."""
    error = (decoded.float() - frames.float()).square().flatten(1).mean(dim=1)
    return -10 * torch.log10(error.clamp_min(1e-10) / 4)
