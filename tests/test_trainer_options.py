"""Options of Lightning's Trainer, before there is one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lingbot.trainer_options import (
    MEETING,
    check_trainer,
    count_devices,
    device_of,
    weights_dtype,
)

CPU = {"accelerator": "cpu"}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("devices", [0, -2, True, 1.5, "abc", "0", [0, 0], "1,1", [], 64]),
        ("num_nodes", [0, -1, 1.5, True, "two"]),
        ("precision", ["31", "double", "bf17-mixed", 31, "16-mixed", 16]),
        ("gradient_clip_val", [-1, math.nan, math.inf, "small"]),
        ("accumulate_grad_batches", [0, -1, 1.5]),
        ("log_every_n_steps", [0, -1, 2.5]),
        ("max_steps", [0, -2, 1.5]),
        ("max_epochs", [0, -2]),
        ("val_check_interval", [0, -1, 1.5, math.nan, 0.0, True]),
        ("limit_train_batches", [0, -1, 0.0, 1.5, "abc", math.nan]),
        ("limit_predict_batches", [0, -1, "abc"]),
        ("limit_val_batches", [-1, 1.5, "abc"]),
        ("overfit_batches", [-1, 1.5]),
        ("check_val_every_n_epoch", [0, -1]),
        ("num_sanity_val_steps", [-2, 0.5]),
        ("fast_dev_run", [-1, "yes"]),
        ("enable_checkpointing", ["maybe", 1]),
        ("deterministic", ["maybe", 1]),
        ("gradient_clip_algorithm", ["max", 5]),
    ],
)
def test_values_that_mean_nothing_are_refused_by_name(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"trainer\.{name}="):
            check_trainer({**CPU, name: value})


@pytest.mark.parametrize(
    "options",
    [
        {}, {"devices": 1}, {"devices": "auto"}, {"devices": -1}, {"devices": 16},
        {"max_steps": -1, "max_epochs": -1}, {"limit_val_batches": 0}, {"overfit_batches": 0.0},
        {"val_check_interval": 0.25}, {"val_check_interval": "00:01:00:00"},
        {"precision": "bf16-mixed"}, {"precision": 32}, {"deterministic": "warn"},
        {"fast_dev_run": True}, {"fast_dev_run": 3}, {"gradient_clip_val": None},
        {"check_val_every_n_epoch": None}, {"profiler": "simple"},
    ],
    ids=str,
)  # fmt: skip
def test_what_lightning_takes_is_taken(options: dict[str, Any]) -> None:
    check_trainer({**CPU, **options})


def test_other_nodes_that_nobody_has_started_are_not_waited_for(monkeypatch) -> None:
    for name in MEETING:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=r"trainer\.num_nodes=2: nobody has started.*torchrun"):
        check_trainer({**CPU, "num_nodes": 2})
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    check_trainer({**CPU, "num_nodes": 2})


def test_devices_are_counted_however_they_are_written(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert [count_devices({**CPU, "devices": n}) for n in (1, "2", "auto", -1, None)] == [
        1, 2, 1, 1, 1,
    ]  # fmt: skip
    gpus = [count_devices({"accelerator": "gpu", "devices": n}) for n in ("0,3", [1, 2, 3], "auto")]
    assert gpus == [2, 3, 8]


def test_the_device_is_the_accelerator_s(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_of({"accelerator": "auto"}) == device_of({}) == "cuda"
    assert device_of(CPU) == "cpu"
    assert device_of({"accelerator": "tpu"}) is None


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("bf16-true", torch.bfloat16),
        ("bf16-mixed", torch.float32),
        (None, torch.float32),
        ("16-true", torch.float16),
        ("transformer-engine", torch.bfloat16),
    ],
)
def test_weights_are_held_as_the_precision_says(precision, dtype) -> None:
    assert weights_dtype({"precision": precision}) == dtype
