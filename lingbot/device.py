"""The device that a command works on, and what it is called."""

from __future__ import annotations

import os
import re

import torch

MOST_RANKS = 16  # also where there are fewer cores: ranks are tried out on small machines
DEVICE = re.compile(r"cpu|cuda(?::(\d{1,3}))?")


def choose_device(name: str) -> torch.device:
    """The device that was asked for; `auto` takes CUDA where it can.

    Raises:
        ValueError: for an unknown device, or one that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    match = DEVICE.fullmatch(name)
    if match is None:
        raise ValueError(f"device={name!r}: choose auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name!r}: there is no CUDA device here, choose auto or cpu")
    if match[1] is not None and int(match[1]) >= torch.cuda.device_count():
        raise ValueError(
            f"device={name!r}: this machine has {torch.cuda.device_count()} CUDA devices, counted "
            f"from 0; choose cuda:{torch.cuda.device_count() - 1} or less"
        )
    return torch.device(name)


def check_processes(name: str, ranks: int) -> None:
    """Raises ValueError for more ranks on the CPU than a machine of these cores can run."""
    cores = os.cpu_count() or 1
    most = max(MOST_RANKS, cores)
    if ranks > most:
        raise ValueError(
            f"{name}={ranks}: each rank is a process and this machine has {cores} cores; give at "
            f"most {most}"
        )


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"
