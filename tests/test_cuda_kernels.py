"""Every fast path on a GPU, held to the reference within a stated error, on random inputs."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lingbot.kernels import KernelConfig, apply
from lingbot.kernels.cuda_graph import GraphedDecoder
from lingbot.kernels.fp8 import Fp8Linear, quantise_rows, scaled_matmul
from lingbot.kernels.fp8_kv import (
    attend_in_fp8,
    decode_values,
    encode,
    encode_keys_values,
)
from lingbot.kernels.vae import fuse_decoder
from lingbot.kernels.vae_rows import add_with_bias, join_normed, spread
from lingbot.model import (
    CachedTransformer,
    CausalLingBotTransformer,
    KVCache,
    KVCacheConfig,
    LocalExchange,
    TransformerConfig,
)
from lingbot.model.exchange import Exchange
from lingbot.model.sdpa import attend, attend_by_matmul
from lingbot.realtime.outlet import FrameOutlet
from tests.codec.test_split import latents_of, make_codec
from tests.codec.test_video import PATCHED, WAN
from tests.model.worlds import HEIGHT, WIDTH, chunk_inputs, small_transformer
from tests.realtime.test_session import DRIVE, drive
from tests.test_cuda import session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# heads as wide as the published models'
WIDE = TransformerConfig(
    dim=256, ffn_dim=512, num_heads=2, num_layers=2, text_dim=16, text_len=8, freq_dim=32
)
FAST = {"ops": "triton", "pack_qkv": True}
# as many channels at full resolution as the published decoder, which are computed as 128
WIDE_WAN = {**WAN, "base_dim": 96}


@pytest.mark.parametrize("keys", [1170, 7020])
def test_attention_and_its_gradients_agree_with_float32(keys: int) -> None:
    """Of chunks that see as much as they do in a clip, in the dtype that clips are trained in."""
    draw = torch.Generator("cuda").manual_seed(0)
    q, k, v, gradient = (
        torch.randn(1, tokens, 4, 128, device="cuda", generator=draw)
        for tokens in (1170, keys, keys, 1170)
    )
    found = []
    for dtype, kernel in ((torch.float32, attend_plainly), (torch.bfloat16, attend)):
        inputs = [x.to(dtype, copy=True).requires_grad_() for x in (q, k, v)]
        y = kernel(*inputs)
        y.backward(gradient.to(dtype))
        found.append([y.detach(), *(x.grad for x in inputs)])
    for exact, made in zip(*found, strict=True):
        assert error(made, exact) < 0.01


def attend_plainly(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return attend_by_matmul(q, k, v).transpose(1, 2)


def flows(
    kernels: KernelConfig,
    dtype: torch.dtype,
    device: str = "cuda",
    sink: int = 2,
    config: TransformerConfig = WIDE,
    exchange: Exchange | None = None,
) -> Tensor:
    """Of two passes in each of four chunks; the weights are bfloat16 numbers in any dtype."""
    transformer: CausalLingBotTransformer = small_transformer(config).bfloat16().to(device, dtype)
    apply(transformer, kernels)
    model = CachedTransformer(
        transformer, KVCacheConfig(window=6, sink=sink), config.grid(3, HEIGHT // 8, WIDTH // 8),
        exchange or LocalExchange(config.num_heads),
    )  # fmt: skip
    model.set_text(torch.linspace(-1, 1, 5 * 16, device=device).view(1, 5, 16))
    latents, condition, controls = (x.to(device) for x in chunk_inputs(config, chunks=4))
    made = []
    with torch.no_grad():
        for frame in range(0, 12, 3):
            part = slice(frame, frame + 3)
            model.begin_chunk(controls[:, :, part], condition[:, :, part], frame)
            made += [model.predict(latents[:, :, part], t) for t in (999.0, 700.0)]
            model.update_context(latents[:, :, part])
    return torch.cat(made).cpu()


def error(flow: Tensor, exact: Tensor) -> float:
    return ((flow - exact).norm() / exact.norm()).item()


def test_fast_kernels_in_float32_are_the_reference() -> None:
    exact = flows(KernelConfig(), torch.float32, "cpu")
    assert error(flows(KernelConfig(), torch.float32), exact) < 1e-5
    assert error(flows(KernelConfig(**FAST), torch.float32), exact) < 1e-5


def test_fast_kernels_in_bfloat16_err_no_more_than_the_reference_does() -> None:
    exact = flows(KernelConfig(), torch.float32)
    reference = error(flows(KernelConfig(), torch.bfloat16), exact)
    assert 1e-4 < reference < 0.02
    assert error(flows(KernelConfig(**FAST), torch.bfloat16), exact) < 1.25 * reference


def test_compiled_kernels_err_no_more_either() -> None:
    exact = flows(KernelConfig(), torch.float32)
    compiled = flows(KernelConfig("compiled"), torch.bfloat16)
    assert error(compiled, exact) < 1.25 * error(flows(KernelConfig(), torch.bfloat16), exact)


def test_fp8_kernels_err_by_a_tenth_at_most_and_no_more_than_without_fused_parts() -> None:
    exact = flows(KernelConfig(), torch.float32)
    plain = error(flows(KernelConfig(pack_qkv=True, linears="fp8"), torch.bfloat16), exact)
    fused = error(flows(KernelConfig(**FAST, linears="fp8"), torch.bfloat16), exact)
    assert 1e-3 < fused < 0.1
    assert fused < 1.25 * plain


def test_fp8_attention_errs_no_more_in_fused_parts() -> None:
    pytest.importorskip("cudnn")
    exact = flows(KernelConfig(), torch.float32)
    fp8 = {"pack_qkv": True, "linears": "fp8", "kv": "fp8"}
    plain = error(flows(KernelConfig(**fp8), torch.bfloat16), exact)
    fused = error(flows(KernelConfig("triton", **fp8), torch.bfloat16), exact)
    assert 1e-3 < fused < 0.1
    assert fused < 1.25 * plain


def test_the_camera_in_fp8_errs_no_more_in_fused_parts() -> None:
    rays = torch.randn(1, 1, 300, WIDE.dim, generator=torch.Generator().manual_seed(0)).cuda()
    made = {}
    for name, linears in (("exact", "bf16"), ("reference", "fp8"), ("triton", "fp8")):
        transformer = small_transformer(WIDE).bfloat16().cuda()
        ops = "reference" if name == "exact" else name
        apply(transformer, KernelConfig(ops, pack_qkv=True, linears=linears))
        block = transformer.blocks[0]
        with torch.no_grad():
            made[name] = torch.cat(block.ops.scale_shift(block, rays.bfloat16())).float()
    plain = error(made["reference"], made["exact"])
    assert 1e-3 < plain < 0.1
    assert error(made["triton"], made["exact"]) < 1.25 * plain


@pytest.mark.parametrize(("sink", "in_place"), [(0, True), (2, False)])
def test_triton_ops_leave_keys_and_values_where_the_cache_keeps_them(
    monkeypatch: pytest.MonkeyPatch, sink: int, in_place: bool
) -> None:
    """A ring of 6 frames has room for chunks of 3 in one piece, one of 4 not for the last."""
    stored: list[bool] = []
    store = KVCache.store

    def watched(memory: KVCache, layer: int, k: Tensor, v: Tensor) -> None:
        slots = memory.slots(layer)
        places = None if slots is None else [half.data_ptr() for half in slots.tensor]
        stored.append([k.data_ptr(), v.data_ptr()] == places)
        store(memory, layer, k, v)

    monkeypatch.setattr(KVCache, "store", watched)
    flows(KernelConfig(**FAST), torch.float32, sink=sink)
    assert all(stored) is in_place
    stored.clear()
    flows(KernelConfig(pack_qkv=True), torch.float32, sink=sink)
    assert not any(stored)


@pytest.mark.parametrize("keys", [384, 1170])
def test_fp8_attention_is_that_of_the_plain_function(keys: int) -> None:
    pytest.importorskip("cudnn")
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, n, 4, 128) for n in (195, keys, keys))
    stored = (encode(q), *encode_keys_values(k, v))
    expected = decode_values(attend_in_fp8(*stored))
    packed = torch.stack([stored[0]] * 3, dim=-2).cuda()  # q lies apart in what ranks exchange
    made = attend_in_fp8(packed[..., 1, :], *(x.cuda() for x in stored[1:]))
    assert error(decode_values(made).cpu(), expected) < 0.05  # the weights are rounded, too


def test_the_fp8_matmul_is_its_product_spelled_out() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(512, 256, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(300, 512, device="cuda", dtype=torch.bfloat16)
    rows, scale = quantise_rows(x)
    weight, weight_scale = quantise_rows(linear.weight)
    expected = scaled_matmul(rows, weight, scale, weight_scale.T) + linear.bias.float()
    made = Fp8Linear(linear)(x).float()
    assert error(made, expected) < 0.01  # of sums kept in fewer bits, and of bfloat16


@pytest.mark.parametrize("keys", [384, 1170])
def test_attention_without_gradients_is_attention(keys: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, n, 4, 128, device="cuda") for n in (195, keys, keys))
    expected = attend(q, k, v)
    with torch.no_grad():
        made = attend(*(x.bfloat16() for x in (q, k, v)))
    assert error(made.float(), expected) < 0.01


@pytest.mark.parametrize("channels", [8, 96, 100, 384])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_between_convolutions_are_those_of_the_plain_functions(
    channels: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x, before, y = (torch.randn(2, n, channels).to(dtype) for n in (333, 77, 333))
    bias, gamma = torch.randn(2, channels).to(dtype)
    there = [t.cuda() for t in (x, bias, gamma, before)]
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    expected = join_normed(*(t.float() for t in (x, bias, gamma, before)))
    assert error(join_normed(*there).float().cpu(), expected) < tolerance
    wide = join_normed(there[0], None, there[2], F.pad(there[3], (0, 28))).float().cpu()
    expected = join_normed(x.float(), None, gamma.float(), before.float())
    assert error(wide[..., :channels], expected) < tolerance
    assert wide[..., channels:].abs().max() == 0
    expected = x.float() + bias.float() + y.float()
    assert error(add_with_bias(x.cuda(), bias.cuda(), y.cuda()).float().cpu(), expected) < tolerance


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("channels", [8, 96, 384])
def test_pixels_are_spread_as_the_plain_function_does(channels: int, times: int) -> None:
    x = torch.randn(2, times * channels, 3, 5, 7).to(memory_format=torch.channels_last_3d)
    assert torch.equal(spread(x.cuda(), times).cpu(), spread(x, times))


@pytest.mark.parametrize("architecture", [WAN, WIDE_WAN, PATCHED], ids=["wan", "wide", "patched"])
def test_a_fused_decoder_shows_what_the_published_one_does(architecture: dict) -> None:
    published, fused = (make_codec(architecture).to("cuda") for _ in range(2))
    fuse_decoder(fused)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        plain, quick = published.stream(), fused.stream()
        for chunk in latents_of(24, 9).to("cuda").split(3, dim=2):
            torch.testing.assert_close(quick.decode(chunk), plain.decode(chunk), atol=1e-4, rtol=0)


@pytest.mark.parametrize("fused", [False, True], ids=["published", "fused"])
@pytest.mark.parametrize("architecture", [WAN, PATCHED], ids=["wan", "patched"])
def test_chunks_decoded_by_a_graph_are_those_of_the_decoder(
    architecture: dict, fused: bool
) -> None:
    codec = make_codec(architecture).to("cuda")
    if fused:
        fuse_decoder(codec)
    videos = latents_of(24, 30).to("cuda").split(15, dim=2)
    with torch.cuda.stream(torch.cuda.Stream()):
        graphed = GraphedDecoder(codec.stream())
        for video in videos:
            graphed.reset()
            plain = codec.stream()
            for chunk in video.split(3, dim=2):
                made, expected = graphed.pictures(chunk), plain.pictures(chunk)
                assert (made.int() - expected.int()).abs().max() <= 1
    assert graphed._replay is not None


def test_a_drive_with_a_graphed_decode_shows_the_same_and_waits_for_nothing_else() -> None:
    expected = drive(session("cuda"))
    driven = session("cuda")
    driven._outlet = FrameOutlet(GraphedDecoder(driven.codec.stream()), driven.device)
    drive(driven)  # records
    driven.draws = 0
    frames = [step.clone() for step in drive(driven)]
    for here, there in zip(frames, expected, strict=True):
        assert (here.int() - there.int()).abs().max() <= 1
    driven._noise = lambda: torch.randn(1, 16, 3, HEIGHT // 8, WIDTH // 8, device=driven.device)
    drive(driven, list(DRIVE)[:3])
    torch.cuda.set_sync_debug_mode("error")
    try:
        driven.step(DRIVE[3])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    report = driven.report
    assert report is not None
    assert report.decode_ms > 0


def test_a_steady_drive_asks_the_device_for_no_more_memory() -> None:
    driven = session("cuda")
    driven._outlet = FrameOutlet(GraphedDecoder(driven.codec.stream()), driven.device)
    for _ in range(2):
        drive(driven)
    before = torch.cuda.memory_stats()["num_device_alloc"]
    drive(driven)
    assert torch.cuda.memory_stats()["num_device_alloc"] == before > 0


def test_kernels_change_no_weight() -> None:
    transformer = small_transformer(WIDE).cuda()
    before = copy.deepcopy(transformer.state_dict())
    apply(transformer, KernelConfig(**FAST))
    after = transformer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
