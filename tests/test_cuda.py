"""What runs on a CPU in the other tests runs on a GPU here, and gives the same."""

from __future__ import annotations

import copy
import os
import socket
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from lingbot.codec.split import SplitDecoder
from lingbot.data.blockworld import render
from lingbot.data.blockworld_clips import draw_drive
from lingbot.diffusion import FewStepSampler, FlowMatching, FlowSchedule
from lingbot.model import (
    CachedTransformer,
    CausalLingBotTransformer,
    KVCacheConfig,
    LocalExchange,
)
from lingbot.model.initialisation import return_the_noise
from lingbot.parallel.communication_log import CommunicationLog
from lingbot.parallel.exchange import SequenceExchange
from lingbot.parallel.splits import even_splits
from lingbot.realtime.outlet import FrameOutlet
from lingbot.realtime.session import RealtimeSession
from tests.codec.test_split import latents_of, make_codec, rank_of
from tests.codec.test_video import PATCHED, WAN
from tests.model.worlds import (
    HEIGHT,
    SMALL,
    WIDTH,
    PromptLengths,
    chunk_inputs,
    small_camera,
    small_codec,
    small_transformer,
)
from tests.realtime.test_session import DRIVE, IMAGE, drive

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GRID = SMALL.grid(3, HEIGHT // 8, WIDTH // 8)
WINDOW = KVCacheConfig(window=6, sink=2)


class SameNoise(RealtimeSession):
    """Draws its noise on the CPU wherever it runs, so that two devices can be compared."""

    def _noise(self) -> torch.Tensor:
        shape = (1, 16, GRID.frames, HEIGHT // 8, WIDTH // 8)
        self.draws = getattr(self, "draws", 0) + 1
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.draws)).to(
            self.device
        )


def session(
    device: str, exchange: object | None = None, log: CommunicationLog | None = None
) -> SameNoise:
    model = CachedTransformer(
        small_transformer().to(device), WINDOW, GRID, exchange or LocalExchange(SMALL.num_heads)
    )
    return SameNoise(
        model, small_codec().to(device), PromptLengths(), small_camera(),
        FewStepSampler(FlowSchedule(5.0)), log,
    )  # fmt: skip


@pytest.fixture
def nccl() -> Iterator[dist.ProcessGroup]:
    """A group of this process alone."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")
    dist.init_process_group(
        "nccl", f"tcp://localhost:{port}", rank=0, world_size=1, device_id=torch.device("cuda", 0)
    )
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_drive_shows_the_same_frames_as_on_the_cpu() -> None:
    here, there = (torch.cat(drive(session(device))) for device in ("cpu", "cuda"))
    difference = (here.int() - there.int()).abs()
    assert difference.max() <= 2
    assert (difference > 0).float().mean() < 0.1


def test_the_parts_of_a_step_are_timed_and_lie_within_the_step() -> None:
    driven = session("cuda")
    drive(driven)
    report = driven.report
    assert report is not None
    parts = [*report.pass_ms, report.context_update_ms, report.camera_ms, report.decode_ms]
    assert len(report.pass_ms) == 4
    assert all(part > 0 for part in parts)
    assert sum(parts) <= 1.001 * (report.total_ms + report.overlap_ms)
    assert 0 <= report.overlap_ms <= min(report.decode_ms, report.context_update_ms)


def slow_updates(driven: SameNoise, cycles: int = 400_000_000) -> None:
    """Makes the device idle for a fifth of a second or so in every context update."""
    update = driven.model.update_context

    def slow(clean: torch.Tensor) -> None:
        torch.cuda._sleep(cycles)
        update(clean)

    driven.model.update_context = slow


def test_frames_leave_while_the_context_update_is_still_at_work() -> None:
    expected = drive(session("cuda"))
    driven = session("cuda")
    drive(driven, list(DRIVE)[:2])  # warm: kernels are loaded, memory is there
    slow_updates(driven)
    driven.draws = 0
    driven.reset(IMAGE, "dusk")
    frames = driven.step(DRIVE[0])
    update_is_done = torch.cuda.current_stream().query()
    assert not update_is_done
    assert frames.is_pinned()
    assert torch.equal(frames, expected[0])
    assert driven.finished_reports() == []  # and did not wait
    assert not torch.cuda.current_stream().query()
    report = driven.report  # waits
    assert torch.cuda.current_stream().query()
    assert report is not None
    assert driven.finished_reports() == [report]
    assert report.context_update_ms > 50
    assert report.key_to_frame_ms < report.total_ms - 0.5 * report.context_update_ms
    assert report.total_ms >= 0.99 * (report.context_update_ms + sum(report.pass_ms))
    assert torch.equal(driven.step(DRIVE[1]), expected[1])  # queues up behind the update
    assert [r.step for r in driven.all_reports()] == [0, 1]


def test_a_step_waits_for_its_frames_and_for_nothing_else() -> None:
    """Warnings of torch's synchronisation watch: the wait for an event is not among them."""
    driven = session("cuda")
    driven._noise = lambda: torch.randn(
        1, 16, GRID.frames, HEIGHT // 8, WIDTH // 8, device=driven.device
    )
    drive(driven, list(DRIVE)[:2])
    torch.cuda.set_sync_debug_mode("error")
    try:
        driven.step(DRIVE[2])
        driven.finished_reports()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_frames_of_every_step_are_memory_of_their_own() -> None:
    driven = session("cuda")
    frames = drive(driven)
    kept = [step.clone() for step in frames]
    drive(driven, seed=1)
    assert all(torch.equal(*pair) for pair in zip(frames, kept, strict=True))


@pytest.mark.parametrize("architecture", [WAN, PATCHED], ids=["wan", "patched"])
def test_strips_decoded_on_the_gpu_are_a_decode_of_the_whole_picture(architecture: dict) -> None:
    codec = make_codec(architecture).to("cuda")
    chunks = latents_of(24).to("cuda").split(2, dim=2)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        whole = codec.stream()
        expected = torch.cat([whole.decode(chunk) for chunk in chunks], dim=2)
        strips = []
        for rank in range(3):
            decoder = SplitDecoder(codec, rank_of(3, rank), 24)
            strips.append(torch.cat([decoder.decode(chunk) for chunk in chunks], dim=2))
    torch.testing.assert_close(torch.cat(strips, dim=-1), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("uniform", [True, False])
def test_nccl_exchanges_are_timed_by_events_and_change_nothing(nccl, uniform: bool) -> None:
    log = CommunicationLog()
    splits = even_splits(GRID.tokens, 1)
    pictures = dist.new_group([0])  # as the strategy makes it, so that nothing waits in line
    exchange = SequenceExchange(nccl, splits, SMALL.num_heads, log, uniform, pictures)
    alone, grouped = session("cuda"), session("cuda", exchange, log)
    codec = grouped.codec
    grouped._outlet = FrameOutlet(SplitDecoder(codec, exchange, WIDTH // 8), grouped.device)
    assert torch.equal(torch.cat(drive(alone)), torch.cat(drive(grouped)))
    report = grouped.report
    assert report is not None
    path = "uniform" if uniform else "variable"
    assert {entry.path for entry in report.collectives} == {path}
    blocks = 5 * SMALL.num_layers - 1
    calls = {entry.name: entry.calls for entry in report.collectives}
    assert calls == {"qkv": blocks, "kv": 1, "out": blocks, "gather": 4, "frames": 1}
    assert all(entry.elapsed_ms > 0 for entry in report.collectives)
    assert report.communication_ms < report.total_ms


@pytest.mark.parametrize("kept", ["none", "full", "selective"])
def test_a_training_loss_and_its_gradients_agree_with_the_cpu(kept: str) -> None:
    losses, gradients = [], []
    for device in ("cpu", "cuda"):
        transformer = small_transformer().requires_grad_(True).to(device)
        transformer.activation_checkpointing = kept if device == "cuda" else "none"
        latents, condition, controls = (x.to(device) for x in chunk_inputs(SMALL, chunks=3))
        objective = CpuNoise(FlowSchedule(5.0), few_step_fraction=1.0, history_noise=0.2)
        loss = objective(
            transformer, latents, condition, controls,
            torch.linspace(-1, 1, 5 * 16, device=device).view(1, 5, 16),
            cache=WINDOW, exchange=LocalExchange(SMALL.num_heads),
            generator=torch.Generator().manual_seed(0),
        )["loss"]  # fmt: skip
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.cpu() for p in transformer.parameters() if p.grad is not None])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for here, there in zip(*gradients, strict=True):
        assert (here - there).norm() <= 1e-3 * here.norm() + 1e-6


class CpuNoise(FlowMatching):
    """Draws on the CPU wherever it trains."""

    def _noise_source(self, like, generator):
        return lambda: torch.randn(like.shape, generator=generator).to(like)


def test_bfloat16_drives_stay_near_float32() -> None:
    exact = session("cuda")
    rough = session("cuda")
    rough.model = CachedTransformer(
        copy.deepcopy(exact.model.transformer).bfloat16(), WINDOW, GRID,
        LocalExchange(SMALL.num_heads),
    )  # fmt: skip
    first = [next(iter(drive(one, list(DRIVE)[:1]))).float() for one in (exact, rough)]
    assert (first[0] - first[1]).abs().mean() < 4  # of 255


def test_blockworld_looks_the_same_rendered_on_the_gpu() -> None:
    taken = draw_drive(5, 21)
    here = render(taken.scene, taken.poses, height=96, width=160)
    there = render(taken.scene.to("cuda"), taken.poses, height=96, width=160).cpu()
    differing = (here.int() - there.int()).abs().amax(-1) > 3
    assert differing.float().mean() < 0.005


def test_the_image_of_a_session_may_lie_on_the_cpu() -> None:
    driven = session("cuda")
    driven.reset(IMAGE, "dusk")
    assert driven.step(next(iter(DRIVE))).device.type == "cpu"


def test_training_on_a_gpu_begins_where_it_does_on_the_cpu() -> None:
    """Lightning builds modules on their device; the least squares must not notice."""
    flows = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        with torch.device(device):
            transformer = CausalLingBotTransformer(SMALL)
            return_the_noise(transformer)
        weight = transformer.head.head.weight
        assert weight.device.type == device
        assert weight.abs().max() < 10
        flows.append(weight.norm().item())
    assert flows[1] == pytest.approx(flows[0], rel=0.5)
