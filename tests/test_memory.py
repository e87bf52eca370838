"""What is asked for is held against the memory there is, before anything is built."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from lingbot import memory
from lingbot.building import build
from lingbot.memory import check_fits, driving_need, host_room, training_need
from lingbot.parts import check_parts, weigh
from tests.commands import TINY_DRIVE, TINY_TRAINING, composed

GIB = 2**30


def module_of(*overrides: str, command: str = "generate"):
    base = TINY_DRIVE if command == "generate" else TINY_TRAINING
    given = {override.split("=")[0] for override in overrides}
    kept = [override for override in base if override.split("=")[0] not in given]
    return build(composed(command, [*kept, *overrides]).module, "module")


def test_weights_are_told_as_they_are_built():
    module = module_of("codec.dtype=bfloat16")
    told = weigh(module, 4)
    module.configure_model()
    parts = (module.transformer, module.text_encoder, module.codec)
    built = [sum(weight.nbytes for weight in part.parameters()) for part in parts]
    assert [told.transformer, told.text_encoder, told.codec] == built
    trained = sum(p.numel() for part in parts[:2] for p in part.parameters())
    assert told.trained == trained


def test_weights_in_files_count_by_their_files(tmp_path):
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "model.safetensors").write_bytes(b"\0" * 1000)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 600)
    folders = [f"{group}.folder={tmp_path}" for group in ("text", "codec")]
    cfg = composed("generate", ["text=umt5", "codec=wan", *folders])
    assert weigh(build(cfg.module, "module"), 4)[1:3] == (500, 300)


def test_a_need_beyond_the_room_is_refused_with_numbers_and_remedies(monkeypatch):
    monkeypatch.setattr(memory, "host_room", lambda: 23 * GIB)
    need = {"weights": 37 * GIB, "keys and values": 270 * GIB, "a pass": GIB // 10}
    with pytest.raises(
        ValueError,
        match=r"about 307 GiB.* needed \(270 keys and values, 37 weights\).* has 23 GiB free: "
        r"choose a smaller kv_cache.window.*; a smaller model",
    ):
        check_fits(need, "cpu")
    check_fits({"weights": 23 * GIB}, "cpu")
    check_fits(need, None)  # of an accelerator that nothing is known of


def test_processes_share_the_host_but_not_their_gpus(monkeypatch):
    monkeypatch.setattr(memory, "host_room", lambda: 10 * GIB)
    monkeypatch.setattr(memory, "gpu_room", lambda: 10 * GIB)
    check_fits({"weights": 4 * GIB}, "cuda", processes=4)
    with pytest.raises(ValueError, match=r"16 GiB.*this machine has 10 GiB free"):
        check_fits({"weights": 4 * GIB}, "cpu", processes=4)
    with pytest.raises(ValueError, match="a GPU of this machine has 10 GiB:"):
        check_fits({"weights": 11 * GIB}, "cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_s_memory_is_told_without_starting_cuda():
    most = max(
        torch.cuda.get_device_properties(index).total_memory
        for index in range(torch.cuda.device_count())
    )
    assert memory.gpu_room() == pytest.approx(most, rel=0.05)


def test_nothing_is_refused_where_nobody_says_how_much_there_is(monkeypatch):
    monkeypatch.setattr(memory, "gpu_room", lambda: None)
    check_fits({"weights": 10**18}, "cuda")


def test_the_host_has_what_is_available_within_its_control_group(monkeypatch, tmp_path: Path):
    meminfo, limit = tmp_path / "meminfo", tmp_path / "memory.max"
    meminfo.write_text("MemTotal: 9000 kB\nMemAvailable: 5000 kB\nSwapFree: 100 kB\n")
    monkeypatch.setattr(memory, "HOST_FILES", (meminfo, limit))
    monkeypatch.setattr(memory, "CGROUP_1", tmp_path / "nowhere")
    assert host_room() == 1024 * 5100
    limit.write_text("max\n")
    assert host_room() == 1024 * 5100
    limit.write_text("2048\n")
    assert host_room() == 2048
    meminfo.unlink()
    limit.unlink()
    assert host_room() is None


def test_ranks_share_history_and_tokens_but_each_holds_the_weights():
    module = module_of("kv_cache=sliding")
    one, two = (driving_need(module, torch.float32, ranks) for ranks in (1, 2))
    assert two["weights"] == one["weights"]
    assert two["keys and values"] == one["keys and values"] // 2
    sharded = driving_need(module, torch.float32, 2, shards=2)
    assert sharded["weights"] < one["weights"]
    half = driving_need(module, torch.bfloat16)
    assert half["keys and values"] == one["keys and values"] // 2


def test_without_the_conditioner_cache_nothing_is_kept_for_it():
    need = driving_need(module_of("conditioner_cache=off"), torch.float32)
    assert "camera scale and shift" not in need


@pytest.mark.parametrize(("optimizer", "states"), [("adamw", 2), ("muon", 1)])
def test_training_needs_gradients_and_what_the_optimizer_keeps(optimizer, states):
    module = module_of(f"optimizer={optimizer}", command="train")
    need = training_need(module, (1, 6), kept=module.check_training())
    assert need["the optimizer"] == states * need["gradients"]
    shared = training_need(module, (1, 6), kept=states, sequence_ranks=2, shards=4)
    assert shared["gradients"] == need["gradients"] // 4
    assert shared["activations"] == need["activations"] // 2


@pytest.mark.parametrize(
    ("experiment", "ranks"),
    [("world_fast_14b_streaming", 1), ("world_v2_14b", 1), ("world_fast_14b", 4)],
)
def test_a_world_of_14_b_fits_gpus_of_80_gb(experiment, ranks, monkeypatch):
    overrides = [f"experiment={experiment}", "weights=FOLDER"]
    module = build(composed("generate", overrides).module, "module")
    need = driving_need(module, torch.bfloat16, ranks)
    assert 36 * GIB < sum(need.values()) < 79 * GIB
    monkeypatch.setattr(memory, "gpu_room", lambda: 79 * GIB)
    check_fits(need, "cuda")
    monkeypatch.setattr(memory, "gpu_room", lambda: 24 * GIB)
    with pytest.raises(ValueError, match=r"weights.*a GPU of this machine has 24 GiB"):
        check_fits(need, "cuda")


def test_parts_that_do_not_fit_the_transformer_are_refused():
    module = module_of()
    check_parts(module)
    module._make_text_encoder.keywords["text_len"] = 65
    with pytest.raises(ValueError, match=r"text\.text_len=65 is more than model\.text_len=64"):
        check_parts(module)


def test_another_library_s_factories_count_as_nothing_and_are_not_called():
    module = module_of()
    module._make_codec = partial(pytest.fail, "called")
    assert weigh(module, 4).codec == 0
    check_parts(module)
