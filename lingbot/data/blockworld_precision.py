"""BlockWorld computes in float32 whatever precision its caller trains or drives in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def float32_arithmetic() -> Iterator[None]:
    """No autocast, and float32 as the default dtype; a context or a decorator."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_default_dtype(before)
