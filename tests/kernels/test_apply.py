"""What may be chosen, and what `apply` does with it."""

from __future__ import annotations

import logging

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lingbot.kernels import KernelConfig, apply
from lingbot.parallel.exchange import SequenceExchange
from lingbot.parallel.splits import even_splits
from tests.codec.test_split import make_codec
from tests.codec.test_video import WAN
from tests.distributed import run_ranks
from tests.kernels.driving import applied, chosen, drive
from tests.model.worlds import SMALL


def test_triton_is_compiled_where_there_is_no_gpu_and_the_log_says_so(caplog):
    caplog.set_level(logging.INFO)
    transformer = applied(KernelConfig("triton", pack_qkv=True))
    assert "Kernels: ops compiled, q, k, v packed, linears bf16" in caplog.text
    assert {block.ops.name for block in transformer.blocks} == {"compiled"}


def _driven_by_a_rank(rank: int, config: KernelConfig) -> Tensor:
    splits = even_splits(18, dist.get_world_size())
    exchange = SequenceExchange(dist.group.WORLD, splits, SMALL.num_heads)
    return drive(applied(config), exchange=exchange)


@pytest.mark.processes
@pytest.mark.parametrize(
    "config",
    [{"pack_qkv": True}, {"pack_qkv": True, "linears": "fp8", "kv": "fp8"}],
    ids=["packed", "fp8"],
)
def test_ranks_drive_as_one_does_in_every_precision(config):
    kernels = chosen(**config)
    expected = drive(applied(kernels))
    for made in run_ranks(_driven_by_a_rank, 2, kernels):
        torch.testing.assert_close(made, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"ops": "fast"}, r"kernels.ops='fast': choose one of reference, compiled, triton"),
        ({"linears": "int8"}, r"kernels.linears='int8': choose one of bf16, fp8"),
        ({"kv": None}, "kernels.kv=None"),
        ({"vae": "quick"}, "kernels.vae='quick'"),
        ({"pack_qkv": "yes"}, "kernels.pack_qkv='yes': give true or false"),
        ({"cuda_graph": 1}, "kernels.cuda_graph=1"),
        ({"ops": "triton"}, "set kernels.pack_qkv=true"),
    ],
)
def test_choices_that_are_none_are_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        KernelConfig(**bad)


def test_kernels_without_a_backward_pass_are_refused_for_training():
    for config in (
        KernelConfig("triton", pack_qkv=True), KernelConfig(linears="fp8"), chosen(kv="fp8"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="is for driving: train with kernels=reference"):
            config.check_training()
    KernelConfig("compiled", pack_qkv=True).check_training()


def test_fp8_on_a_gpu_without_its_library_is_refused_before_anything_is_built(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("lingbot.kernels.fp8_kv.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lingbot-on-lightning\[fp8\].*kernels.kv=bf16"):
        KernelConfig(kv="fp8")
    KernelConfig(linears="fp8")


def test_kernels_may_be_applied_again_and_changed_where_no_weights_have_been_given_up():
    transformer = applied(KernelConfig("compiled", pack_qkv=True))
    assert {block.self_attn.ops.name for block in transformer.blocks} == {"compiled"}
    apply(transformer, KernelConfig(pack_qkv=True, cuda_graph=True))
    assert torch.equal(drive(transformer), drive(applied(KernelConfig(pack_qkv=True))))
    apply(transformer, KernelConfig(pack_qkv=True, linears="fp8"))
    in_fp8 = drive(transformer)
    apply(transformer, KernelConfig(pack_qkv=True, linears="fp8"))
    assert torch.equal(drive(transformer), in_fp8)


def test_weights_that_have_been_given_up_are_not_asked_for_again():
    with pytest.raises(RuntimeError, match=r"are packed and cannot change.*build another"):
        apply(applied(KernelConfig(pack_qkv=True)), KernelConfig())
    in_fp8 = applied(KernelConfig(linears="fp8"))
    with pytest.raises(RuntimeError, match=r"are in fp8 and cannot change.*build another"):
        apply(in_fp8, KernelConfig())
    with pytest.raises(RuntimeError, match="in fp8 and cannot be packed any more"):
        apply(in_fp8, KernelConfig(pack_qkv=True, linears="fp8"))
    codec = make_codec(WAN)
    apply(codec, KernelConfig(vae="fused"))
    with pytest.raises(RuntimeError, match="fused and cannot change to vae=reference"):
        apply(codec, KernelConfig())
