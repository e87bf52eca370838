"""Options of Lightning's Trainer, held to what they mean.

Lightning checks some of them, some only when they are used, hours later, and some never: a negative
number of batches to accumulate trains on noise. Names that are not here are Lightning's business.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lingbot.cli.folders import srun_task
from lingbot.device import check_processes
from lingbot.model.checks import check_choice, check_count, check_number, check_switch

Check = Callable[[str, Any], object]
# whoever starts the processes of several nodes tells them where to meet
MEETING = ("MASTER_ADDR", "TORCHELASTIC_RUN_ID", "OMPI_COMM_WORLD_SIZE")
MOST = 1_000_000_000  # steps, batches or epochs: more than any run lives to see
PRECISIONS = (
    "32-true", "32", "bf16-mixed", "bf16-true", "bf16", "16-mixed", "16-true", "16", "64-true",
    "64", "transformer-engine", "transformer-engine-float16",
)  # fmt: skip


def check_trainer(options: Mapping[str, Any]) -> None:
    """Refuses values that no run can be made with.

    Args:
        options: of `lightning.Trainer`, by name; None is Lightning's default everywhere.

    Raises:
        ValueError: naming the value, its constraint and what to give.
    """
    for name, value in options.items():
        if name in CHECKS and value is not None:
            CHECKS[name](f"trainer.{name}", value)
    if device_of(options) == "cpu":
        check_processes("trainer.devices", count_devices(options))
        precision = str(options.get("precision"))
        if precision.startswith("16"):
            raise ValueError(
                f"trainer.precision={precision}: float16 is for GPUs, CPUs have no arithmetic for "
                f"it; choose {precision.replace('16', 'bf16', 1)} or 32-true"
            )
    nodes = options.get("num_nodes") or 1
    if nodes > 1 and not (srun_task() or any(name in os.environ for name in MEETING)):
        raise ValueError(
            f"trainer.num_nodes={nodes}: nobody has started the other nodes, and the run would "
            "wait for them; start it on every node by torchrun or srun, or set MASTER_ADDR, "
            "MASTER_PORT and NODE_RANK there"
        )


def device_of(options: Mapping[str, Any]) -> str | None:
    """cpu or cuda; None for an accelerator that nothing is known of here."""
    accelerator = options.get("accelerator") or "auto"
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}.get(str(accelerator))


def count_devices(options: Mapping[str, Any]) -> int:
    """Devices of this node: ranks on it."""
    devices = options.get("devices")
    if isinstance(devices, str) and devices not in ("auto", "-1"):
        return len(devices.split(",")) if "," in devices else int(devices)
    if devices in (None, "auto", "-1", -1):
        return torch.cuda.device_count() if device_of(options) == "cuda" else 1
    return devices if isinstance(devices, int) else len(list(devices))


def weights_dtype(options: Mapping[str, Any]) -> torch.dtype:
    """What weights are held in under this precision, or the smallest that it may be."""
    precision = str(options.get("precision") or "32-true")
    if precision in ("32", "32-true", "bf16", "16") or precision.endswith("-mixed"):
        return torch.float32
    return torch.float16 if precision == "16-true" else torch.bfloat16


def _devices(name: str, value: Any) -> None:
    numbers = value.split(",") if isinstance(value, str) else value
    numbers = [numbers] if isinstance(numbers, (int, float)) else list(numbers)
    if value in ("auto", "-1", -1):
        return
    whole = [n for n in numbers if isinstance(n, int) and not isinstance(n, bool)]
    whole += [int(n) for n in numbers if isinstance(n, str) and n.strip().isdecimal()]
    several = isinstance(value, (str, list, tuple)) and not (
        isinstance(value, str) and "," not in value
    )
    if not whole or len(whole) < len(numbers) or min(whole) < (0 if several else 1):
        raise ValueError(
            f"{name}={value!r}: give a number of devices from 1, a list of GPUs as [0,1], or auto"
        )
    if len(set(whole)) < len(whole):
        raise ValueError(f"{name}={value!r}: give every GPU once")


def _limit(least: int) -> Check:
    """A share of the batches, or a number of them."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, float):
            check_number(name, value, **({"above": 0} if least else {"low": 0}), high=1)
        else:
            check_count(name, value, low=least, high=MOST)

    return check


def _interval(name: str, value: Any) -> None:
    """Of validations: batches, a share of an epoch, or a time of Lightning's grammar."""
    if isinstance(value, float):
        check_number(name, value, above=0, high=1)
    elif isinstance(value, (int, bool)):
        check_count(name, value, high=MOST)


def _count(low: int) -> Check:
    return lambda name, value: check_count(name, value, low=low, high=MOST)


def _max_steps(name: str, value: Any) -> None:
    if check_count(name, value, low=-1, high=MOST) == 0:
        raise ValueError(f"{name}=0: nothing would be done; give 1 or more, or -1 for no end")


def _fast_dev_run(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        check_count(name, value, low=0)


def _deterministic(name: str, value: Any) -> None:
    if value != "warn":
        check_switch(name, value)


def _word(known: tuple[str, ...]) -> Check:
    return lambda name, value: check_choice(
        name, value if isinstance(value, str) else str(value), known
    )


CHECKS: dict[str, Check] = {
    "devices": _devices,
    "precision": _word(PRECISIONS),
    "gradient_clip_algorithm": _word(("norm", "value")),
    "gradient_clip_val": lambda name, value: check_number(name, value, low=0),
    "fast_dev_run": _fast_dev_run,
    "deterministic": _deterministic,
    "max_steps": _max_steps,
    "max_epochs": _max_steps,
    "val_check_interval": _interval,
    "limit_train_batches": _limit(1),
    "limit_predict_batches": _limit(1),
    "limit_val_batches": _limit(0),
    "limit_test_batches": _limit(0),
    "overfit_batches": _limit(0),
    "num_sanity_val_steps": _count(-1),
    **dict.fromkeys(
        ("num_nodes", "accumulate_grad_batches", "log_every_n_steps", "check_val_every_n_epoch"),
        _count(1),
    ),
    **dict.fromkeys(
        ("min_steps", "min_epochs", "reload_dataloaders_every_n_epochs"),
        _count(0),
    ),
    **dict.fromkeys(
        (
            "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "benchmark",
            "inference_mode", "use_distributed_sampler", "detect_anomaly", "barebones",
            "sync_batchnorm",
        ),
        check_switch,
    ),
}  # fmt: skip
