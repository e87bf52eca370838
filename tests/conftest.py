"""What every test shares: one thread a process, and the folder of golden tensors.

Golden tensors were computed by the published model at tiny sizes. They live beside a checkout, in
`../shared/golden`, or wherever `LINGBOT_GOLDEN` says; without them the tests that need them are
skipped, saying so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

# before torch is imported: the tests' processes share few cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Commands set the level of the package's log, for a process that is theirs alone."""
    yield
    logging.getLogger("lingbot").setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden tensors, or a skip that says where it was looked for."""
    folder = Path(os.environ.get("LINGBOT_GOLDEN", REPOSITORY.parent / "shared" / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no golden tensors in {folder}: set LINGBOT_GOLDEN to their folder")
    return folder


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout the tests run from."""
    return REPOSITORY
