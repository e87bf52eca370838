"""The floor is made of the calls a step makes, each in the precision the setting makes it in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lingbot.benchmark import roofline
from lingbot.benchmark.roofline import StepShape, measure_floor
from lingbot.model import TransformerConfig

CONFIG = TransformerConfig(
    dim=96, ffn_dim=128, num_heads=4, num_layers=3, text_dim=16, text_len=8, freq_dim=32
)
SHAPE = StepShape(CONFIG, 24, 144, 4, 1, torch.float32, torch.device("cpu"))


@pytest.fixture
def timed(monkeypatch) -> list[torch.dtype]:
    """Makes every call take a millisecond; collects what calls timed by themselves give."""
    made: list[torch.dtype] = []

    def once(self, work) -> float:
        made.append(work().dtype)
        return 1.0

    monkeypatch.setattr(roofline._Floor, "best", once)
    monkeypatch.setattr(roofline._Floor, "_time", lambda self, works: float(len(works)))
    return made


def test_calls_are_counted_as_often_as_a_step_makes_them(timed):
    floor = measure_floor(SHAPE, None)
    parts = floor.parts_ms
    blocks = 4 * 3 + 2  # the context update ends in the last block
    assert parts == {
        "linears": blocks * 6 + 1, "self_attention": blocks, "cross_attention": blocks,
        "camera_conditioner": 3 * 4,
    }  # fmt: skip
    assert floor.sustained_ms == floor.total_ms


def test_in_8_bits_only_what_the_setting_runs_so_is_timed_so(timed):
    measure_floor(SHAPE, None)
    assert torch.float8_e4m3fn not in timed
    timed.clear()
    measure_floor(replace(SHAPE, fp8_kv=True), None)
    assert timed.count(torch.float8_e4m3fn) == 1  # self-attention's output; the prompt's is exact


def test_8_bit_linears_are_timed_without_quantising(monkeypatch):
    taken = []
    forward = roofline.Fp8Linear.forward
    monkeypatch.setattr(
        roofline.Fp8Linear, "forward", lambda self, x: (taken.append(type(x)), forward(self, x))[1]
    )
    measure_floor(replace(SHAPE, fp8_linears=True), None)
    assert {kind.__name__ for kind in taken} == {"Quantised"}
