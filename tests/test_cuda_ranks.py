"""Two GPUs drive as one does, by every choice of kernels and every way to exchange."""

from __future__ import annotations

import signal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lingbot.data.video_file import read_frames
from lingbot.kernels import KernelConfig
from lingbot.model import TransformerConfig
from lingbot.parallel.choice import choose_exchange
from lingbot.parallel.communication_log import Collective, CommunicationLog
from lingbot.parallel.splits import even_splits
from tests.commands import TINY_DRIVE
from tests.distributed import run_ranks
from tests.model.worlds import HEIGHT, WIDTH
from tests.support.faults import end_of_launched, fault
from tests.test_cuda_kernels import error, flows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.processes,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]
FOUR_HEADS = TransformerConfig(
    dim=512, ffn_dim=512, num_heads=4, num_layers=2, text_dim=16, text_len=8, freq_dim=32
)
CHOICES = {
    "reference": {},
    "fast": {"ops": "triton", "pack_qkv": True},
    "fp8": {"ops": "triton", "pack_qkv": True, "linears": "fp8", "kv": "fp8"},
}
TOLERANCES = {"reference": 0.02, "fast": 0.02, "fp8": 0.1}


EXCHANGES = {"pushed": (None, True), "uniform": (None, False), "variable": (False, None)}


def _driven(
    rank: int, kernels: KernelConfig, uniform: bool | None, push: bool | None, sink: int
) -> tuple[Tensor, list[Collective]]:
    torch.cuda.set_device(rank)
    group, log, device = dist.new_group(backend="nccl"), CommunicationLog(), f"cuda:{rank}"
    assert isinstance(group, dist.ProcessGroup)
    tokens = FOUR_HEADS.grid(3, HEIGHT // 8, WIDTH // 8).tokens
    exchange = choose_exchange(
        group, even_splits(tokens, 2), 4, torch.device(device),
        log=log, uniform=uniform, push=push, pictures=None, timeout_s=60.0,
    )  # fmt: skip
    log.clear()
    made = flows(kernels, torch.bfloat16, device, sink, FOUR_HEADS, exchange)
    collectives = log.collect()
    dist.destroy_process_group(group)
    return made, collectives


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("choice", CHOICES)
def test_two_gpus_drive_as_one_does(choice: str, exchange: str) -> None:
    """With histories that take a chunk in one piece, and in two."""
    if choice == "fp8":
        pytest.importorskip("cudnn")
    kernels = KernelConfig(**CHOICES[choice])
    for sink in (0, 2):
        alone = flows(kernels, torch.bfloat16, sink=sink, config=FOUR_HEADS)
        for made, collectives in run_ranks(_driven, 2, kernels, *EXCHANGES[exchange], sink):
            assert error(made, alone) < TOLERANCES[choice]
            paths = {c.name: c.path for c in collectives}
            assert paths.pop("gather") == ("variable" if exchange == "variable" else "uniform")
            assert paths == dict.fromkeys(("qkv", "kv", "out"), exchange)
            assert all(c.elapsed_ms > 0 for c in collectives)


@pytest.mark.parametrize("exchange", ["pushed", "uniform"])
def test_a_gpu_that_waits_for_a_lost_rank_is_ended_with_whole_files(exchange, tmp_path):
    """Nothing fails by itself there: neither NCCL nor memory that others write notices."""
    options = [
        *TINY_DRIVE, "trainer.accelerator=gpu", "trainer.devices=2", "kv_cache=sliding",
        "strategy=sequence_parallel", "num_steps=50000", "callbacks.step_plot=null",
        f"strategy.push={'null' if exchange == 'pushed' else 'false'}",
        fault(tmp_path, 2, rank1=signal.SIGKILL),
    ]  # fmt: skip
    ended = end_of_launched("generate", options, tmp_path)
    line = f"rank 1 (pid {ended.lost}) died of signal 9 at realtime step 2; the others were ended; "
    assert line + "files up to step 1 are whole" in ended.output
    assert ended.codes == [1]
    assert "Traceback" not in ended.output
    assert ended.seconds < 15
    assert len(read_frames(tmp_path / "run" / "drive.mp4")) == 9 + 12
