"""Optimizers and schedules of any library, tried on one weight."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import ConstantLR

from lingbot.learning_rate import warmup_cosine
from lingbot.muon import Muon
from lingbot.training.optimizer_check import check_optimizer


@pytest.mark.parametrize(
    ("make", "kept"),
    [(partial(AdamW, lr=1e-3), 2), (partial(Muon, lr=0.01), 1), (partial(SGD, lr=0.1), 0),
     (partial(SGD, lr=0.1, momentum=0.9), 1), (partial(torch.optim.LBFGS, lr=0.1), 0)],
)  # fmt: skip
def test_an_optimizer_that_works_tells_what_it_keeps_of_a_weight(make, kept):
    assert check_optimizer(make, partial(ConstantLR, factor=1.0)) == kept


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(AdamW, lr=math.inf), r"optimizer\.lr=inf"),
        (partial(AdamW, lr=math.nan), "optimizer"),
        (partial(AdamW, lr=0.0), r"optimizer\.lr=0: nothing would be learned"),
        (partial(AdamW, weight_decay=math.inf), r"optimizer\.weight_decay=inf"),
        (partial(AdamW, eps=math.nan), "optimizer"),
        (partial(AdamW, betas=(0.9, 1.0)), "optimizer"),
        (partial(SGD, lr=0.1, momentum=1.5), r"optimizer\.momentum=1\.5: give numbers below 1"),
        (partial(AdamW, foo=1), "optimizer: .*'foo'"),
        (partial(AdamW, lr="fast"), "optimizer: "),
        (lambda _: None, "optimizer=None"),
    ],
)
def test_rates_and_decays_that_are_none_are_refused_whoever_s_they_are(make, message):
    with pytest.raises(ValueError, match=message):
        check_optimizer(make)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(warmup_cosine, warmup_steps=9, total_steps=2), r"scheduler\.warmup_steps=9"),
        (partial(ConstantLR, foo=1), "scheduler: .*'foo'"),
        (lambda _: 5, "scheduler=5"),
    ],
)
def test_schedules_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        check_optimizer(partial(AdamW, lr=1e-3), make)
