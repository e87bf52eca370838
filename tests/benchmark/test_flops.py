import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lingbot.benchmark.flops import ClipFlops, StepFlops, peak_flops
from lingbot.diffusion import FlowSchedule
from lingbot.diffusion.flow_matching import ClipPass
from lingbot.model import KVCacheConfig, LocalExchange, TeacherForcing
from tests.model.worlds import HEIGHT, SMALL, WIDTH, cached, chunk_inputs, small_transformer

GRID = SMALL.grid(3, HEIGHT // 8, WIDTH // 8)
CACHE = KVCacheConfig(6, 2)


@pytest.fixture(autouse=True)
def _no_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that a CPU's linears are padded with are no work of the model's."""
    monkeypatch.setattr("lingbot.model.linear.FEWEST_ROWS", 1)
    monkeypatch.setattr("lingbot.model.linear.TILE", 1)


def counted(work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@torch.no_grad()
def test_the_count_is_that_of_the_operators():
    """In bfloat16, where attention on the CPU is two matmuls that PyTorch counts."""
    model = cached(small_transformer().bfloat16(), CACHE)
    model.kv_cache.fill_random(6, torch.Generator().manual_seed(0))
    latents, condition, controls = chunk_inputs(SMALL, 1)
    flops = StepFlops(SMALL, GRID, 6 * GRID.tokens_per_frame)
    model._time(500.0, torch.bfloat16, latents.device)  # once a session
    model._time(0.0, torch.bfloat16, latents.device)
    conditioners = SMALL.num_layers * flops.conditioner
    assert counted(lambda: model.begin_chunk(controls, condition, 6)) == flops.camera
    first = counted(lambda: model.predict(latents, 500.0))
    assert first == flops.denoise_pass + conditioners
    assert counted(lambda: model.predict(latents, 500.0)) == flops.denoise_pass
    assert counted(lambda: model.update_context(latents)) == flops.context_update


def test_a_step_is_its_passes_context_update_camera_and_conditioners():
    flops = StepFlops(SMALL, GRID, 36)
    once = flops.step(4, SMALL.num_layers)
    parts = 4 * flops.denoise_pass + flops.context_update + flops.camera
    assert once == parts + 3 * flops.conditioner
    assert flops.step(4, 5 * 3 - 1) - once == 11 * flops.conditioner


@torch.no_grad()
def test_the_count_of_a_clip_is_that_of_the_operators():
    transformer, frames = small_transformer().bfloat16(), 9
    parts = [chunk_inputs(SMALL, 1) for _ in range(3)]
    latents, condition, controls = (torch.cat(given, dim=2) for given in zip(*parts, strict=True))
    exchange = LocalExchange(SMALL.num_heads)
    text = transformer.embed_text(torch.randn(1, 4, SMALL.text_dim))
    work = ClipPass(
        transformer, FlowSchedule(5.0), TeacherForcing(CACHE, 3, 3), condition,
        transformer.embed_controls(controls, exchange, 3), text, exchange,
    )  # fmt: skip
    once = counted(lambda: transformer.embed_controls(controls, exchange, 3))
    once += counted(lambda: work(latents, latents, torch.tensor([[0, 1, 2]])))
    once -= counted(lambda: transformer.embed_time(torch.zeros(1, 6)))
    flops = ClipFlops(SMALL, GRID, CACHE)
    assert flops.forward(frames) == once
    assert flops.training(frames) == 3 * once


@pytest.mark.parametrize(
    ("device", "dtype", "peak"),
    [("NVIDIA H100 80GB HBM3", "bfloat16", 989e12), ("NVIDIA H200", "bfloat16", 989e12),
     ("NVIDIA H100 PCIe", "bfloat16", 756e12), ("NVIDIA H200", "float32", None),
     ("CPU", "bfloat16", None)],
)  # fmt: skip
def test_a_peak_is_known_for_named_devices_or_left_out(device, dtype, peak):
    assert peak_flops(device, dtype) == peak
