"""The video codec: streaming equals one-shot, lengths are checked, folders survive a round trip."""

import json

import pytest
import torch
from diffusers import AutoencoderKLWan
from safetensors import safe_open

from lingbot.codec.video import (
    VideoCodec,
    build_codec,
    frames_to_uint8,
    load_codec,
    uint8_to_frames,
)

WAN = {"base_dim": 8, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1}
PATCHED = {
    "base_dim": 8,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "is_residual": True,
}


@pytest.fixture(params=[WAN, PATCHED], ids=["wan", "patched"])
def codec(request) -> VideoCodec:
    torch.manual_seed(0)
    codec = build_codec(**request.param).eval().requires_grad_(False)
    codec.set_statistics(torch.linspace(-1, 1, 16), torch.linspace(0.5, 2, 16))
    return codec


def latents_of(frames: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 16, frames, 3, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("chunks", [[3, 3, 2], [4, 4], [1, 3, 4], [1] * 8, [8]], ids=str)
def test_a_stream_gives_the_frames_of_a_one_shot_decode_however_it_is_cut(codec, chunks):
    latents = latents_of(8)
    stream = codec.stream()
    pieces = [stream.decode(chunk) for chunk in latents.split(chunks, dim=2)]
    assert [piece.shape[2] for piece in pieces] == [4 * chunks[0] - 3, *(4 * n for n in chunks[1:])]
    assert torch.equal(torch.cat(pieces, dim=2), codec.decode(latents))


def test_one_shot_decode_is_that_of_diffusers(codec):
    latents = latents_of(4)
    expected = codec.vae.decode(codec.denormalise(latents)).sample
    torch.testing.assert_close(codec.decode(latents), expected, atol=2e-6, rtol=0)


def test_two_streams_over_the_same_weights_do_not_disturb_each_other(codec):
    first, second = latents_of(6, seed=1), latents_of(6, seed=2)
    streams = codec.stream(), codec.stream()
    pieces: tuple[list, list] = ([], [])
    for chunk in range(2):
        for stream, latents, out in zip(streams, (first, second), pieces, strict=True):
            out.append(stream.decode(latents[:, :, 3 * chunk : 3 * chunk + 3]))
        codec.encode(torch.zeros(1, 3, 5, 16, 16))  # nor does encoding in between
    for latents, out in zip((first, second), pieces, strict=True):
        assert torch.equal(torch.cat(out, dim=2), codec.decode(latents))


def test_a_reset_stream_begins_a_new_video(codec):
    latents, stream = latents_of(3), codec.stream()
    before = stream.decode(latents)
    assert not torch.equal(stream.decode(latents)[:, :, -9:], before)
    stream.reset()
    assert torch.equal(stream.decode(latents), before)


def test_a_stream_refuses_latents_of_another_size_or_channel_count(codec):
    stream = codec.stream()
    stream.decode(latents_of(1))
    with pytest.raises(ValueError, match="reset"):
        stream.decode(torch.zeros(1, 16, 1, 4, 4))
    with pytest.raises(ValueError, match=r"\[batch, 16"):
        stream.decode(torch.zeros(1, 4, 1, 3, 4))


def test_frames_stay_within_minus_one_and_one(codec):
    frames = codec.decode(100 * latents_of(2))
    assert frames.dtype == torch.float32
    assert frames.abs().max() <= 1


@pytest.mark.parametrize("length", [2, 4, 8, 12])
def test_encoding_refuses_a_length_whose_last_frames_would_be_dropped(codec, length):
    with pytest.raises(ValueError, match=rf"{length} frames .* 4k\+1; cut the clip to"):
        codec.encode(torch.zeros(1, 3, length, 16, 16))


def test_encoding_refuses_a_size_that_the_stride_does_not_divide(codec):
    with pytest.raises(ValueError, match="multiples of 8"):
        codec.encode(torch.zeros(1, 3, 1, 20, 16))


def test_latents_are_the_normalised_posterior_mean_in_float32(codec):
    frames = torch.rand(2, 3, 9, 16, 24) * 2 - 1
    mean = codec.vae.encode(frames).latent_dist.mean
    latents = codec.encode(frames)
    assert latents.shape == (2, 16, 3, 2, 3)
    assert latents.dtype == torch.float32
    expected = (mean - torch.linspace(-1, 1, 16).view(-1, 1, 1, 1)) / torch.linspace(
        0.5, 2, 16
    ).view(-1, 1, 1, 1)
    torch.testing.assert_close(latents, expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(codec.denormalise(latents), mean, atol=1e-4, rtol=1e-4)


def test_encoding_is_causal_so_the_first_image_alone_has_the_first_latent(codec):
    frames = torch.rand(1, 3, 9, 16, 16) * 2 - 1
    torch.testing.assert_close(
        codec.encode(frames[:, :, :1]), codec.encode(frames)[:, :, :1], atol=1e-5, rtol=1e-4
    )


def test_a_saved_codec_is_a_diffusers_folder_in_half_precision_that_loads_into_float32(
    codec, tmp_path
):
    codec.save(tmp_path / "codec")
    with safe_open(tmp_path / "codec" / "diffusion_pytorch_model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float16}  # noqa: SIM118
    loaded = load_codec(tmp_path / "codec")
    assert loaded.dtype == torch.float32
    assert not any(weight.requires_grad for weight in loaded.parameters())
    latents = latents_of(2)
    torch.testing.assert_close(loaded.decode(latents), codec.decode(latents), atol=5e-3, rtol=0)
    public = AutoencoderKLWan.from_pretrained(tmp_path / "codec", torch_dtype=torch.float32)
    config = json.loads((tmp_path / "codec" / "config.json").read_text())
    assert config["latents_std"] == pytest.approx(torch.linspace(0.5, 2, 16).tolist())
    assert public.config.latents_mean == pytest.approx(torch.linspace(-1, 1, 16).tolist())


def test_a_loaded_codec_is_saved_without_the_folder_it_came_from(codec, tmp_path):
    codec.save(tmp_path / "first")
    load_codec(tmp_path / "first").save(tmp_path / "second")
    saved = [(tmp_path / name / "config.json").read_text() for name in ("first", "second")]
    assert saved[0] == saved[1]
    assert str(tmp_path) not in saved[1]


def test_saved_in_float32_nothing_is_lost(codec, tmp_path):
    codec.save(tmp_path, dtype="float32")
    assert torch.equal(load_codec(tmp_path).decode(latents_of(2)), codec.decode(latents_of(2)))


def test_bfloat16_computes_in_bfloat16_and_speaks_float32(codec, tmp_path):
    codec.save(tmp_path)
    fast = load_codec(tmp_path, dtype="bfloat16")
    assert fast.dtype == torch.bfloat16
    frames = fast.decode(latents_of(2))
    assert frames.dtype == fast.encode(frames).dtype == torch.float32
    assert (frames - codec.decode(latents_of(2))).abs().mean() < 0.02


def test_statistics_stay_float32_when_the_module_is_cast(codec):
    frames = torch.rand(1, 3, 1, 16, 16)
    expected = codec.encode(frames)
    mean, std = codec.to(torch.bfloat16)._statistics(torch.device("cpu"))
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(codec.float().encode(frames), expected, atol=0.1, rtol=0.1)


def test_new_statistics_hold_at_once_and_those_of_an_inference_can_be_trained_with(codec):
    frames = torch.rand(1, 3, 1, 16, 16)
    with torch.inference_mode():
        before = codec.encode(frames)
    latents = torch.zeros(1, 16, 1, 2, 2, requires_grad=True)
    codec.stream().decode_unclamped(latents).sum().backward()
    assert latents.grad.any()
    codec.set_statistics(torch.zeros(16), torch.ones(16))
    assert not torch.allclose(codec.encode(frames), before)


def test_pictures_are_the_frames_in_8_bits(codec):
    latents = latents_of(4)
    assert torch.equal(codec.stream().pictures(latents), frames_to_uint8(codec.decode(latents)))


def test_memory_format_changes_only_the_speed(codec, tmp_path):
    codec.save(tmp_path, dtype="float32")
    plain = load_codec(tmp_path, memory_format="contiguous")
    torch.testing.assert_close(
        plain.decode(latents_of(2)), codec.decode(latents_of(2)), atol=1e-5, rtol=0
    )


def test_bad_choices_are_refused_before_anything_is_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no codec in .*config.json"):
        load_codec(tmp_path / "missing")
    with pytest.raises(ValueError, match="int8"):
        load_codec(tmp_path / "missing", dtype="int8")
    with pytest.raises(ValueError, match="memory_format"):
        build_codec(memory_format="nchw", **PATCHED)
    with pytest.raises(ValueError, match="positive"):
        build_codec(**PATCHED).set_statistics(torch.zeros(16), torch.zeros(16))


def test_uint8_pictures_survive_the_way_to_frames_and_back():
    pictures = torch.arange(256, dtype=torch.uint8).view(2, 2, 8, 8, 1).expand(-1, -1, -1, -1, 3)
    frames = uint8_to_frames(pictures)
    assert frames.shape == (2, 3, 2, 8, 8)
    assert frames.min() == -1
    assert frames.max() == 1
    assert torch.equal(frames_to_uint8(frames), pictures)
    assert frames_to_uint8(torch.full((3, 1, 1, 1), 7.0)).tolist() == [[[[255, 255, 255]]]]
    with pytest.raises(ValueError, match="uint8"):
        uint8_to_frames(pictures.float())
