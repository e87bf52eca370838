"""Training the codec: a few steps help, the statistics are those of the latents, crops fit."""

from functools import partial

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from lingbot.codec.training import (
    CodecModule,
    edge_loss,
    kl_divergence,
    latent_statistics,
    psnr,
    random_crop,
)
from lingbot.codec.video import build_codec, load_codec, uint8_to_frames
from lingbot.muon import Muon

SMALL = {
    "base_dim": 8,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "is_residual": True,
}


@pytest.fixture
def clips() -> torch.Tensor:
    """Four clips of one flat colour each, uint8 `[4, 9, 16, 16, 3]`."""
    colours = torch.tensor([[250, 10, 10], [10, 250, 10], [10, 10, 250], [128, 128, 128]])
    return colours.to(torch.uint8).view(4, 1, 1, 1, 3).expand(-1, 9, 16, 16, -1).contiguous()


def test_a_fit_lowers_the_loss_and_leaves_a_codec_with_measured_statistics(clips, tmp_path):
    torch.manual_seed(0)
    codec = build_codec(**SMALL)
    frames = uint8_to_frames(clips)
    before = (codec.decode(codec.encode(frames)) - frames).abs().mean()
    module = CodecModule(
        codec,
        optimizer=partial(Muon, lr=0.05),
        scheduler=partial(
            torch.optim.lr_scheduler.LinearLR, start_factor=1.0, end_factor=0.2, total_iters=30
        ),
        crops=[[4, 5, 16, 16], [4, 9, 8, 16]],
        export_to=str(tmp_path / "codec"),
    )
    loader = DataLoader([{"frames": clip} for clip in clips], batch_size=4)
    trainer = Trainer(
        max_steps=30,
        accelerator="cpu",
        precision="bf16-mixed",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader, loader)
    after = load_codec(tmp_path / "codec")
    assert (after.decode(after.encode(frames)) - frames).abs().mean() < 0.6 * before
    latents = after.encode(frames)
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(16), atol=0.1, rtol=0)
    assert (latents.std((0, 2, 3, 4), correction=0) < 1.1).all()
    assert "val/psnr" in trainer.callback_metrics


def test_statistics_are_those_of_the_sampled_latents_of_all_clips_together(clips):
    torch.manual_seed(0)
    codec = build_codec(**SMALL)
    means, log_variances = codec.posterior(uint8_to_frames(clips))
    mean, std = latent_statistics(codec, clips.split(2))
    torch.testing.assert_close(mean.float(), means.mean((0, 2, 3, 4)), atol=1e-5, rtol=1e-4)
    spread = means.var((0, 2, 3, 4), correction=0) + log_variances.exp().mean((0, 2, 3, 4))
    torch.testing.assert_close(std.float(), spread.sqrt(), atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="at least one clip"):
        latent_statistics(codec, [])


def test_a_crop_is_a_window_of_its_clips(clips):
    numbered = torch.arange(clips.numel()).view(clips.shape)
    crop = random_crop(numbered, (2, 5, 8, 8))
    assert crop.shape == (2, 5, 8, 8, 3)
    assert torch.equal(crop.diff(dim=2).unique(), torch.tensor([16 * 3]))
    with pytest.raises(ValueError, match="does not fit"):
        random_crop(clips, (4, 13, 16, 16))


def test_a_crop_that_the_codec_cannot_encode_is_refused_at_once():
    with pytest.raises(ValueError, match=r"4k\+1"):
        CodecModule(build_codec(**SMALL), partial(Muon), crops=[[1, 6, 16, 16]])
    with pytest.raises(ValueError, match="multiples of 8"):
        CodecModule(build_codec(**SMALL), partial(Muon), crops=[[1, 5, 16, 20]])


def test_the_loss_terms_vanish_where_they_should():
    frames = torch.rand(1, 3, 5, 8, 8)
    assert edge_loss(frames + 0.5, frames) < 1e-6  # a constant offset has no edges
    assert edge_loss(frames.flip(-1), frames) > 0.1
    assert edge_loss(torch.rand(1, 3, 1, 8, 8), frames[:, :, :1]) > 0  # one frame, no time axis
    zeros = torch.zeros(2, 16, 1, 2, 2)
    assert kl_divergence(zeros, zeros) == 0
    assert kl_divergence(zeros + 1, zeros) == 0.5


def test_psnr_is_in_decibels_over_the_range_of_two():
    frames = torch.zeros(2, 3, 1, 4, 4)
    torch.testing.assert_close(psnr(frames + 0.2, frames), torch.full((2,), 20.0))
